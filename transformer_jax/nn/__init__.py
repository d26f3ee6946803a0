"""Arrays to logits: pure maths, then the Flax modules that own parameters."""
