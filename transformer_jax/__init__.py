"""The Transformer of "Attention Is All You Need", and why it is built so."""
