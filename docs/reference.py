"""What the reference has to document: every public name, each with what its docstring owes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

#: Modules whose public names are for users; "regrow" itself lists its own in ``__all__``.
MODULES = (
    "regrow",
    "regrow.measure",
    "regrow.testing",
    "regrow.loops.accelerate",
    "regrow.loops.events",
    "regrow.loops.lightning",
    "regrow.loops.transformers",
    "regrow.bench.registry",
    "regrow.bench.suites",
    "regrow.bench.results",
    "regrow.bench.comparison",
)


def public_names(module_name: str) -> Iterator[tuple[str, object]]:
    """Names that a module makes public, each with what it is.

    >>> dict(public_names("regrow.measure"))["parameters"].__name__
    'parameters'
    """
    module = importlib.import_module(module_name)
    for name in getattr(module, "__all__", None) or vars(module):
        value = getattr(module, name)
        own = getattr(value, "__module__", None) == module_name and callable(value)
        if not name.startswith("_") and (own or name in getattr(module, "__all__", ())):
            yield f"{module_name}.{name}", value


def members(name: str, cls: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties that a class of ours defines."""
    for member, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else value
        if not member.startswith("_") and inspect.isroutine(getattr(function, "__func__", function)):
            yield f"{name}.{member}", value


def missing(documented: set[str]) -> list[str]:
    """What is public and isn't documented: neither by a page, nor, for what a page shows, by a docstring."""
    found = []
    for module in MODULES:
        for name, value in public_names(module):
            if inspect.ismodule(value):
                continue
            if name not in documented:
                found.append(f"{name} is on no page of the reference")
            parts = members(name, value) if inspect.isclass(value) else ()
            found += [f"{part} has no docstring" for part, it in ((name, value), *parts) if not inspect.getdoc(it)]
    return found


def complain(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each; warnings end the build."""
    documented = {name for name, *_ in env.get_domain("py").get_objects()}
    for line in missing(documented):
        logging.getLogger(__name__).warning(line)
