"""Methods that grow."""
