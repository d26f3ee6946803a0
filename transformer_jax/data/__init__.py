"""Sentences to arrays: text and tasks, vocabulary, token cache, batches."""
