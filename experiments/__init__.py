"""What is asked: thin programs, presets and the declared studies."""
