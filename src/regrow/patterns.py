"""Names of axes and tensors that a pattern means, as people write them: ``"layer[34].*"``."""

from __future__ import annotations

from fnmatch import fnmatchcase


def means(pattern: str, name: str) -> bool:
    """Whether a pattern means a name: it is that name, brackets and all, or matches it as a shell's patterns do.

    >>> means("layer[34].*", "layer3.conv"), means("proj.weight[0]#1", "proj.weight[0]#1")
    (True, True)
    """
    return pattern == name or fnmatchcase(name, pattern)
