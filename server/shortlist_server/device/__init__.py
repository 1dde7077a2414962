"""The device that user tables live on: which one, its memory, and tables that several workers have there once."""
