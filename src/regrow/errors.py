"""The errors of the product itself."""


class NotPermissible(ValueError):
    """A structural edit that cannot be."""


class NothingToDo(NotPermissible):
    """All that could be edited is protected, or has reached the size it may have."""
