"""Tasks, the training protocol, runs that survive interruption, and their reports."""
