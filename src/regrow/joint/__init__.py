"""Methods that grow and prune at once."""
