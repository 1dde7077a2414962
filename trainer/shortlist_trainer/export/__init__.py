"""Turning trained embeddings into a published model folder."""
