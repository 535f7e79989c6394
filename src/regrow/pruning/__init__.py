"""Methods that prune."""
