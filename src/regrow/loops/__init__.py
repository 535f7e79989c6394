"""Adapters to training loops of other libraries, each imported by its own name, and edits for loggers."""
