"""The one error for what a user asked and cannot have."""

from types import ModuleType


class InputError(ValueError):
    """A wrong option, file or folder. Its message is one sentence for the person who typed the command."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: dotted name, such as `"pyarrow.parquet"`.
        extra: the extra of this package that installs it.

    Raises:
        InputError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f"{package} is not installed; run: pip install 'regrow[{extra}]'") from error
