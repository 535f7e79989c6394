"""Where a model comes from: timm, torchvision, a Hugging Face config, or anybody's function."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..bench.errors import InputError, require
from . import hugging_face
from .subject import BATCH, Request, Subject, numbers

IMAGE_SIZE = 224
FORMS = "timm/NAME, torchvision/NAME, hf-config FILE or package.module:factory"

# Of torchvision, what isn't run on images of 3×224×224: by the beginning of the name.
TORCHVISION_INPUTS = {
    "inception_v3": (3, 299, 299),
    "r3d": (3, 16, 112, 112),
    "mc3": (3, 16, 112, 112),
    "r2plus1d": (3, 16, 112, 112),
    "s3d": (3, 16, 224, 224),
    "mvit": (3, 16, 224, 224),
    "swin3d": (3, 16, 224, 224),
}
RAFT_INPUT = (3, 128, 128)


def builder(source: str, file: Path | None, request: Request) -> Callable[[], Subject]:
    """What builds the subject that a command line names; it may be called again for another copy.

    Raises:
        InputError: nothing is called like that.
    """
    if source == "hf-config":
        if file is None:
            raise InputError("hf-config takes a file: regrow inspect hf-config path/to/config.json")
        return hugging_face.builder(file, request)
    if file is not None:
        raise InputError(f"{source} takes no file, but {file} was given")
    library, slash, name = source.partition("/")
    if slash and library in _LIBRARIES:
        return _LIBRARIES[library](name, request)
    if ":" in source:
        return _factory(source, request)
    if source.endswith(".json"):
        raise InputError(f"{source} looks like a config; write: regrow inspect hf-config {source}")
    raise InputError(f"{source} is not a model; name one as {FORMS}")


def _timm(name: str, request: Request) -> Callable[[], Subject]:
    timm = require("timm", "timm")
    if not timm.is_model(name):
        raise InputError(_unknown("timm", name, timm.list_models()))

    def build() -> Subject:
        model = _sized(lambda **size: timm.create_model(name, **size), "img_size", request.image_size)
        pretrained: Any = getattr(model, "pretrained_cfg", None) or {}
        size = pretrained.get("input_size") or (3, IMAGE_SIZE, IMAGE_SIZE)
        return Subject(f"timm/{name}", model, (_images(size, request),))

    return build


def _torchvision(name: str, request: Request) -> Callable[[], Subject]:
    models = require("torchvision", "torchvision").models
    if name not in models.list_models():
        raise InputError(_unknown("torchvision", name, models.list_models()))
    if name in models.list_models(module=models.detection):
        raise InputError(f"torchvision/{name} is a detection model: it needs targets, which inspect can't make")

    def build() -> Subject:
        options: dict[str, Any] = {"weights": None}
        takes = inspect.signature(models.get_model_builder(name)).parameters
        if "weights_backbone" in takes:
            options["weights_backbone"] = None  # it would be downloaded
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # takes long, and warns
        model = _sized(lambda **size: models.get_model(name, **options, **size), "image_size", request.image_size)
        if name.startswith("raft"):
            images = _images(RAFT_INPUT, request)
            return Subject(f"torchvision/{name}", model, (images, images.flip(-1)))
        known = (size for start, size in TORCHVISION_INPUTS.items() if name.startswith(start))
        return Subject(f"torchvision/{name}", model, (_images(next(known, (3, IMAGE_SIZE, IMAGE_SIZE)), request),))

    return build


def _factory(source: str, request: Request) -> Callable[[], Subject]:
    """Anybody's function without arguments that returns a model, or a model and its example."""
    module_name, _, path = source.partition(":")
    found = _imported(module_name, source)
    try:
        for part in path.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise InputError(f"module {module_name} has no {path}") from None
    if not callable(found):
        raise InputError(f"{source} is no function but of type {type(found).__name__}")

    def build() -> Subject:
        made = found()
        model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(model, nn.Module):
            raise InputError(f"{source} returned no torch.nn.Module but {type(model).__name__}")
        if request.shape is not None:
            return Subject(source, model, (numbers(*request.shape),))
        if example is None:
            raise InputError(f"{source} returned no example; give its shape, such as --input 2,3,224,224")
        if isinstance(example, dict):
            return Subject(source, model, kwargs=example, samples=None)
        return Subject(source, model, example if isinstance(example, tuple) else (example,), samples=None)

    return build


_LIBRARIES: dict[str, Callable[[str, Request], Callable[[], Subject]]] = {"timm": _timm, "torchvision": _torchvision}


def _imported(name: str, source: str) -> Any:
    """A module, also from the present folder, as `python -m` finds it."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(f"there is no module {name} for {source}") from error
        raise InputError(f"{name} needs {error.name}, which is not installed") from error
    except Exception as error:
        raise InputError(f"importing {name} failed: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An error as a clause: its message's first line, or its type where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()


def _unknown(library: str, name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{library} has no model {name or '(none was named)'}{hint}"


def _sized(build: Callable[..., nn.Module], option: str, size: int | None) -> nn.Module:
    """A model for images of that size, where the model has to know it."""
    if size is not None:
        try:
            return build(**{option: size})
        except TypeError:
            pass  # it takes images of any size
    return build()


def _images(size: tuple[int, ...], request: Request) -> Tensor:
    """A batch of images, or of videos: channels, perhaps frames, height and width."""
    if request.image_size is not None:
        size = (*size[:-2], request.image_size, request.image_size)
    return numbers(*(request.shape or (BATCH, *size)))
