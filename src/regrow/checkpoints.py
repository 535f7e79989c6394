"""Checkpoints of a run: its model, optimizer, Shaper and whatever else has state, whole whenever the process dies.

Each checkpoint is a folder of its own: what :func:`regrow.save` writes of the model, and ``training.pt`` with the rest.
It is written under another name, synchronised with the disk, and renamed, so that one that is there is whole.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from .pace import WAITING, attach
from .saving import load, save
from .shaper import Shaper

FORMAT = 1
STATE_FILE = "training.pt"
_NAME, _PARTIAL = re.compile(r"checkpoint-(\d{8})"), ".partial"
_KEYS = {"format", "optimizer", "names", "waiting", "shaper", "others", "extra", "random"}
M = TypeVar("M", bound=nn.Module)


class Checkpoint:
    """The newest checkpoints of one run, in a folder; the same lines begin a run and continue it.

    ::

        checkpoint = rg.Checkpoint("run/")
        model = checkpoint.load(Net())  # as it is, where nothing has been saved yet
        optimizer = torch.optim.Adam(model.parameters())
        shaper = rg.Shaper(model, optimizer, plan, example=x)
        checkpoint.restore(optimizer, shaper)
        while shaper.steps < 10_000:
            ...
            if shaper.steps % 500 == 0:
                checkpoint.save(model, optimizer, shaper)

    A process that is killed at any moment, also while it saves, leaves the last checkpoint whole. Of several processes
    that train together one saves, and all load.

    Args:
        folder: Made if need be; other files in it are left alone.
        keep: How many checkpoints stay; older ones are removed once a new one is there.
        random: Whether torch's random state is saved and restored too, on all devices.

    Raises:
        ValueError: None is to be kept.
    """

    def __init__(self, folder: str | Path, keep: int = 2, random: bool = False) -> None:
        if type(keep) is not int or keep < 1:
            raise ValueError(f"keep is a positive number of checkpoints, not {keep!r}.")
        self.folder, self.keep, self.random = Path(folder), keep, random
        self._state: dict[str, Any] | None = None  # what was loaded and is still to be restored
        self._own = False  # whether what is in the folder belongs to this run

    @property
    def paths(self) -> list[Path]:
        """The folders of the checkpoints that are there, oldest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in found if _NAME.fullmatch(path.name) and path.is_dir())

    def load(self, fresh_model: M) -> M:
        """Give a freshly built model the shapes and values of the newest checkpoint.

        Args:
            fresh_model: As it was constructed first; it is changed in place and returned, or left as it is where there
                is no checkpoint. The optimizer and the Shaper are built for it then, and given to :meth:`restore`.

        Raises:
            ValueError: The newest checkpoint is damaged, or belongs to another model. The model is unchanged then; to
                go on from the checkpoint before it, remove the newest.
        """
        state = None
        if self.paths:
            newest = self.paths[-1]
            state = _read(newest / STATE_FILE)
            load(newest, _inner(fresh_model))
        self._state, self._own = state, True
        return fresh_model

    def restore(self, optimizer: Optimizer, shaper: Shaper, **others: Any) -> dict[str, Any]:
        """Let what was built for the loaded model go on from the checkpoint; does nothing where there was none.

        Args:
            optimizer: With the same groups; the order of parameters within one doesn't matter.
            shaper: With the same plan.
            others: Under the names under which they were saved.

        Returns:
            What was given to :meth:`save` as ``extra``, empty where there is no checkpoint.

        Raises:
            RuntimeError: Nothing has been loaded, or it has been restored before.
            TypeError: One of these has no state that can be loaded.
            ValueError: They aren't what was saved.
        """
        _check(optimizer, shaper, others)
        if not self._own:
            raise RuntimeError("give the freshly built model to load() before restore().")
        state, self._state = self._state, None
        if state is None:
            return {}
        if state["others"].keys() != others.keys():
            was, now = (", ".join(sorted(names)) or "nothing" for names in (state["others"], others))
            raise ValueError(f"besides the optimizer and the Shaper the checkpoint has {was}, and restore got {now}.")
        if self.random and state["random"] is None:
            raise ValueError("the checkpoint has no random state: it was saved without random=True.")
        _restore_optimizer(optimizer, shaper.model, state)
        shaper.load_state_dict(state["shaper"])
        for name, other in others.items():
            other.load_state_dict(state["others"][name])
        if self.random:
            _set_random_state(state["random"])
        return state["extra"]

    def save(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        shaper: Shaper,
        extra: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> Path:
        """Write a new checkpoint, and remove the oldest; call it between steps.

        Args:
            model: Or one in :class:`torch.nn.parallel.DistributedDataParallel`.
            optimizer: That trains it.
            shaper: That changes it.
            extra: Plain values and tensors, which :meth:`restore` returns.
            others: Whatever has ``state_dict`` and ``load_state_dict``, as schedulers of learning rates and scalers of
                gradients.

        Returns:
            The checkpoint's folder.

        Raises:
            RuntimeError: The folder has checkpoints that this run hasn't loaded, or loaded without restoring.
            TypeError: One of these has no state, or a state with more than plain values and tensors.
            ValueError: The Shaper is another model's or optimizer's.
            OSError: It can't be written. The last checkpoint is whole then.
        """
        _check(optimizer, shaper, others)
        if shaper.model is not _inner(model) or shaper.optimizer is not optimizer:
            raise ValueError("the Shaper is another model's or another optimizer's.")
        self._check_begun()
        state = {
            "format": FORMAT,
            "optimizer": optimizer.state_dict(),
            "names": _names(optimizer, shaper.model),
            "waiting": _waiting(optimizer, shaper.model),
            "shaper": shaper.state_dict(),
            "others": {name: other.state_dict() for name, other in others.items()},
            "extra": dict(extra or {}),
            "random": _random_state() if self.random else None,
        }
        number = int(self.paths[-1].name.rpartition("-")[2]) + 1 if self.paths else 1
        path = self.folder / f"checkpoint-{number:08d}"
        part = path.with_name(path.name + _PARTIAL)
        self._sweep()
        try:
            save(shaper.model, part)
            _write_state(part / STATE_FILE, state)
            for inner in (*part.iterdir(), part):
                _synchronise(inner)
            part.rename(path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        _synchronise(self.folder)
        self._own = True
        for old in self.paths[: -self.keep]:
            old.rename(gone := old.with_name(old.name + _PARTIAL))  # half removed, it would look like a damaged one
            shutil.rmtree(gone)
        return path

    def _check_begun(self) -> None:
        if self._state is not None:
            raise RuntimeError("what was loaded has to be restored before a new checkpoint is saved.")
        if not self._own and self.paths:
            raise RuntimeError(f"{self.folder} has checkpoints of a run; load() them to go on, or take another folder.")

    def _sweep(self) -> None:
        """Remove what a process has left that was killed while it wrote or removed a checkpoint."""
        for left in self.folder.glob(f"checkpoint-*{_PARTIAL}"):
            shutil.rmtree(left)


def _inner(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _check(optimizer: Any, shaper: Any, others: Mapping[str, Any]) -> None:
    if not isinstance(optimizer, Optimizer) or not isinstance(shaper, Shaper):
        raise TypeError(f"a checkpoint is of an optimizer and a Shaper, not {optimizer!r} and {shaper!r}.")
    for name, other in others.items():
        if not callable(getattr(other, "state_dict", None)) or not callable(getattr(other, "load_state_dict", None)):
            raise TypeError(f"{name} has no state_dict() and load_state_dict(); plain values belong into extra.")


def _names(optimizer: Optimizer, model: nn.Module) -> list[list[str]]:
    """What the parameters of each group are called in the model; else, by their place."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names.get(p, f"[{i}]") for i, p in enumerate(group["params"])] for group in optimizer.param_groups]


def _waiting(optimizer: Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    waiting = vars(optimizer).get(WAITING, {})
    return {name: dict(waiting[p]) for name, p in model.named_parameters() if waiting.get(p)}


def _restore_optimizer(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state, which is by numbers, by the parameters' names: edits may have moved them."""
    then, now = state["names"], _names(optimizer, model)
    if [sorted(names) for names in then] != [sorted(names) for names in now]:
        odd = sorted({name for names in then for name in names} ^ {name for names in now for name in names})
        said = f"{', '.join(odd[:4])} is in one of them only" if odd else "they are in other groups"
        raise ValueError(f"the optimizer's parameters aren't those of the checkpoint: {said}.")
    groups = []
    for group, before, after in zip(state["optimizer"]["param_groups"], then, now, strict=True):
        known = {name: place for place, name in enumerate(before)}
        places = [known[name] for name in after]
        moved = {key: [group[key][i] for i in places] for key in ("params", "param_names") if key in group}
        groups.append({**group, **moved})
    optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
    parameters = dict(model.named_parameters())
    for name, paces in state["waiting"].items():
        vars(optimizer).setdefault(WAITING, {})[parameters[name]] = {
            key: pace.to(parameters[name].device) for key, pace in paces.items()
        }
        attach(optimizer)


def _random_state() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _write_state(path: Path, state: dict[str, Any]) -> None:
    """Write what can be read again without running code.

    Raises:
        TypeError: It holds more than plain values and tensors.
    """
    try:
        torch.save(state, path)
    except (pickle.PicklingError, AttributeError) as error:
        raise TypeError(f"a state holds more than plain values and tensors: {error}") from error
    if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(path):
        raise TypeError(f"a state holds more than plain values and tensors: {', '.join(unsafe)}.")


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as file:  # torch compresses nothing; what is compressed may be far larger than it is
            plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in file.infolist())
        state = torch.load(path, map_location="cpu", weights_only=True) if plain else None
    except Exception as error:  # of a file that may hold anything
        raise ValueError(f"{path} can't be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or set(state) != _KEYS:
        raise ValueError(f"{path} isn't of a checkpoint of format {FORMAT}; another version or program wrote it.")
    return state


def _synchronise(path: Path) -> None:
    """Have a file or folder on the disk, also if the machine stops; some systems can't open folders."""
    if path.is_dir() and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
