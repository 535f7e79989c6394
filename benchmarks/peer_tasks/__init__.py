"""The same tasks in the APIs of regrow, Torch-Pruning and GroMo, what is measured of them, and the page about it.

What a library has to be told is in functions that ``docs/peers.md`` shows as they are. The peers, of the extra "peers",
are imported inside of those that need them.
"""
