"""`regrow bench`: a suite's missing runs are done, and stores are brought together."""

from collections.abc import Sequence
from pathlib import Path

from .cells import cells_of
from .errors import InputError
from .results import Store, merge
from .runner import run_cells
from .suites import CONFIRMATION, entered, get_suite


def bench(
    name: str,
    store: Path,
    data: Path | None,
    jobs: int | None,
    seeds: Sequence[int],
    arms: Sequence[str],
    confirm: bool,
    methods: Sequence[str] = (),
    ray: str | None = None,
) -> str:
    """Do what is missing; what it came to, in words.

    Raises:
        InputError: there is no such suite or arm, or the store can't be used.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs is {jobs}, but must be at least 1")
    suite = get_suite(name)
    for method in methods:
        suite = entered(suite, method)
    known = [arm.name for arm in suite.arms]
    for arm in arms:
        if arm not in known:
            raise InputError(f"suite {name} has no arm {arm!r}; it has {', '.join(known)}")
    chosen = seeds or (CONFIRMATION if confirm else suite.seeds)
    cells = list(cells_of(suite, chosen, arms, held_out=not confirm))
    outcome = run_cells(cells, Store(store), data, jobs, ray)
    there = sum(cell.key in Store(store).results() for cell in cells)
    lines = [f"{there} of {len(cells)} runs are in {store}; {len(outcome.done)} were done now"]
    lines += [f"failed: {key}: {reason}" for key, reason in outcome.failed.items()]
    lines += [f"left out: {task}: {reason}" for task, reason in outcome.skipped.items()]
    return "\n".join(lines)


def merged(stores: Sequence[Path], into: Path) -> str:
    """Bring stores together; what it came to, in words.

    Raises:
        InputError: none is given, or one is no store of this version of the protocol.
    """
    if not stores:
        raise InputError("merge brings stores together: regrow bench merge STORE STORE --store INTO")
    for store in stores:
        if not store.is_dir():
            raise InputError(f"{store} is not a folder; name the folders of stores")
    return f"{merge(stores, into)} runs are in {into}"
