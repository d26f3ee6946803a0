"""Logits to parameters: loss, optimizer, step, checkpoints and the loop."""
