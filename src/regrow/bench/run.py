"""One run: train a network while a plan changes its shape, recording all of it in a folder.

A run may be ended at any moment, by Ctrl-C or `kill -9`. The same call then continues it and ends with the very
numbers of an uninterrupted run, seconds apart.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .arrays import Data
from .errors import InputError
from .history import CONFIG_FILE
from .options import Options, Settled
from .store import RunFolder
from .tasks import get_task
from .training import Training

logger = logging.getLogger(__name__)


def run(options: Options) -> Path:
    """Do a run, or what is left of it.

    Returns:
        The run's folder.

    Raises:
        InputError: an option, the data or the folder cannot be used; one sentence says why.
        NotPermissible: an edit of the plan cannot be.
    """
    settled = options.settled()
    if (settled.out / CONFIG_FILE).exists():
        # Before the data is read, for that may take long. A new folder is made after it, for that may fail.
        with RunFolder(settled.out, settled.config()) as folder:
            if folder.finished:
                logger.info("%s is finished; nothing to do", folder.path)
                return settled.out
    dataset = _load(settled)
    with reproducible(settled):
        training = Training(settled, dataset.to(torch.device(settled.device)))
        with RunFolder(settled.out, settled.config()) as folder:
            training.finish(folder)
    return settled.out


def _load(options: Settled) -> Data:
    """The data set, with its training set cut to `--limit`."""
    held_out = options.validation
    dataset = get_task(options.task).load(options.data, None if options.limit is None else options.limit + held_out)
    number = len(dataset.train) - held_out if options.limit is None else options.limit
    if number < 1 or number + held_out > len(dataset.train):
        raise InputError(f"--validation {held_out} images are not there behind the training images; hold out fewer")
    if held_out:
        both = dataset.train.first(number + held_out)
        dataset = dataset.with_parts(both.first(number), both.last(held_out))
    elif options.limit is not None:
        dataset = dataset.with_parts(dataset.train.first(options.limit), dataset.test)
    if len(dataset.train) < options.batch_size:
        raise InputError(
            f"--batch-size {options.batch_size} is more than the {len(dataset.train)} training images; make it smaller"
        )
    return dataset


@contextmanager
def reproducible(options: Settled) -> Iterator[None]:
    """Seed and settings under which the same options give the same numbers; the caller's are restored."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # cuBLAS reads this when it is first used, and is deterministic only with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(options.seed)
        torch.use_deterministic_algorithms(True)
        if options.threads:
            torch.set_num_threads(options.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
