"""Published models on disk: reading and verifying a folder, and choosing which version answers."""
