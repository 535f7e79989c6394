"""The command `regrow inspect`: what may change in a model, as a table and as a page to follow axes on."""
