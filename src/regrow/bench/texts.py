"""Texts, a character a symbol."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .arrays import Arrays, Rows
from .errors import InputError

POSITIONS = 64
TEST_SHARE = 0.1
FILE = "input.txt"


@dataclass(frozen=True)
class Text(Arrays):
    """Windows of a text as symbols, and at each position the symbol that follows.

    Attributes:
        characters: what the symbols stand for.
    """

    characters: str = ""

    def with_parts(self, train: Rows, test: Rows) -> "Text":
        """The same with other windows; symbols stay what they are."""
        return replace(self, train=train, test=test)


@functools.lru_cache(maxsize=2)
def load_text(folder: Path | None, positions: int = POSITIONS) -> Text:
    """A text as windows of `positions` characters.

    Windows lie end to end, in the order of the text; of its last tenth are those for testing. Held-out windows, the
    last of the others, are a passage of their own too.

    Args:
        folder: with the text as `input.txt`.

    Raises:
        InputError: the folder or the file is missing, is no text, or is too short.
    """
    if folder is None:
        raise InputError(f"a text is read from a folder that has {FILE}; name it with --data")
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--data {folder} holds no text: {FILE} cannot be read ({error})") from error
    characters = "".join(sorted(set(text)))
    number = {character: index for index, character in enumerate(characters)}
    numbers = torch.tensor([number[character] for character in text], dtype=torch.int64)
    tested = int(len(numbers) * TEST_SHARE)
    if tested <= positions:
        raise InputError(
            f"--data {folder}: {FILE} is too short; a tenth of it must be more than {positions} characters"
        )
    train, test = numbers[:-tested], numbers[-tested:]
    return Text(_windows(train, positions), _windows(test, positions), characters=characters)


def _windows(numbers: Tensor, positions: int) -> Rows:
    """Windows end to end; what does not fill one is left out."""
    count = (len(numbers) - 1) // positions
    inputs, targets = (numbers[first : first + count * positions].view(count, positions) for first in (0, 1))
    return Rows(inputs, targets)
