"""What all tests share: one thread per worker, and no leaked randomness."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Workers run side by side; more threads than cores would only slow them down."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same random state and leaves none behind."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        yield
