"""Parameters to text and scores."""
