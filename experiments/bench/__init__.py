"""How fast: training, where its time goes, decoding and reading data."""
