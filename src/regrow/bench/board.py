"""One self-contained HTML page about a store: a leaderboard for each task and setting, and every run a click away.

All statistics are made here, by :mod:`.comparison`; the browser shows, hides and draws them.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .board_content import SPLITS, Board, Content, content_of
from .board_data import drawn
from .board_text import CHANCE, cells, heading, paragraph, picture, verdict
from .comparison import FULL, ranks
from .errors import InputError
from .report import asset, packed_plotly
from .results import STORE_FILE, Store
from .store import write_atomically

SCRIPTS = ("page", "table", "curves", "network", "board-charts", "board-run", "board")


def write_board(store: Path, output: Path) -> Path:
    """Write a page about a store: one HTML file that needs nothing else, not even a network.

    Args:
        store: the store of a grid; it may be empty, or growing.
        output: the file to write; its folder is created if need be.

    Returns:
        `output`.

    Raises:
        InputError: `store` is no store of this version of the protocol, or `output` is a folder.
        OSError: `output` can't be written; a page that was there before is kept.
    """
    store, output = Path(store), Path(output)
    if output.is_dir():
        raise InputError(f"{output} is a folder; name the file to write, such as {output / 'board.html'}")
    if not (store / STORE_FILE).is_file():
        raise InputError(f"{store} is no store, for it has no {STORE_FILE}; give what --store was given")
    page = _render(content_of(Store(store)))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page.encode())
    return output


def _render(content: Content) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    script = "\n".join(asset(f"{name}.js") for name in SCRIPTS)
    boards = content.boards
    return environment.get_template("board.html.j2").render(
        # Files of this package are the only text that is not escaped, and the only scripts that a browser runs.
        asset=lambda name: Markup(asset(name)),
        script=Markup(script),
        hashes=[_hash(script), _hash(get_plotlyjs())],
        heading=heading(content),
        paragraph=paragraph(content),
        content=content,
        full=FULL,
        cells=cells,
        chance=CHANCE,
        verdict=verdict,
        picture=picture,
        splits=SPLITS,
        facets={
            "split": ("Measured on", list(dict.fromkeys(SPLITS[board.held_out] for board in boards))),
            "task": ("Task", list(dict.fromkeys(board.task for board in boards))),
            "setting": ("Setting", list(dict.fromkeys(board.setting for board in boards))),
        },
        seeds=sorted({seed for board in boards for line in board.lines for seed, _ in line.runs}),
        ranks=_ranks(boards),
        data=drawn(content),
        plotly=packed_plotly(),
    )


def _ranks(boards: Sequence[Board]) -> dict[str, list[tuple[str, float]]]:
    """Split -> arms with their mean ranks over all tasks, the best first, where there are several tasks."""
    found = {}
    for held_out, name in SPLITS.items():
        rows = [row for board in boards if board.held_out == held_out for row in board.rows]
        if len({row.task for row in rows}) > 1:
            found[name] = sorted(ranks(rows).items(), key=lambda item: item[1])
    return {name: placed for name, placed in found.items() if placed}


def _hash(script: str) -> str:
    """What a content security policy calls a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
