"""Models of transformers, from the JSON of their config alone."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..bench.errors import InputError, require
from .subject import BATCH, Request, Subject, numbers, tokens

NUM_TOKENS = 16
IMAGE_SIZE = 224
SAMPLES = 16_000  # of sound: one second


def builder(file: Path, request: Request) -> Callable[[], Subject]:
    """What builds the model of a config file, and its example.

    Raises:
        InputError: transformers isn't installed, or doesn't know what the file describes.
    """
    described = _read(file / "config.json" if file.is_dir() else file)
    transformers = require("transformers", "transformers")
    transformers.logging.set_verbosity_error()

    def build() -> Subject:
        config = _config(transformers, file, described)
        if request.image_size is not None:
            _vision(config).image_size = request.image_size
        if hasattr(config, "use_cache"):
            config.use_cache = False  # else keys and values would be outputs
        model = _model(transformers, config)
        return Subject(str(file), model, kwargs=_example(model, config, request))

    return build


def _read(file: Path) -> dict[str, Any]:
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError):
        raise InputError(f"{file} is not JSON") from None
    if not isinstance(described, dict) or "model_type" not in described:
        raise InputError(f"{file} has no model_type: it is not the config of a Hugging Face model")
    return described


def _config(transformers: ModuleType, file: Path, described: dict[str, Any]) -> Any:
    known = transformers.CONFIG_MAPPING
    if described["model_type"] not in known:
        raise InputError(f"transformers has no model_type {described['model_type']}, which {file} asks for")
    try:
        return known[described["model_type"]].from_dict(described)
    except Exception as error:
        raise InputError(f"transformers doesn't accept {file}: {error}") from error


def _model(transformers: ModuleType, config: Any) -> nn.Module:
    """The class that the config was saved with, if it says; else the model without a head."""
    for name in getattr(config, "architectures", None) or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)._from_config(config)
    return transformers.AutoModel.from_config(config)


def _example(model: Any, config: Any, request: Request) -> dict[str, Tensor]:
    """Inputs by name: the model's main one, and what it can't do without."""
    main = model.main_input_name
    taken = inspect.signature(model.forward).parameters
    names = [main]
    if "pixel_values" in taken and "input_ids" in taken and hasattr(config, "text_config"):
        names = ["input_ids", "pixel_values"]
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in taken:
        names.append("decoder_input_ids")
    return {name: _input(name, config, request.shape if name == main else None) for name in names}


def _input(name: str, config: Any, shape: tuple[int, ...] | None) -> Tensor:
    if name in ("input_ids", "decoder_input_ids"):
        return tokens(config.get_text_config().vocab_size, *(shape or (BATCH, NUM_TOKENS)))
    if shape is not None:
        return numbers(*shape)
    if name == "pixel_values":
        return numbers(BATCH, *_image_size(_vision(config)))
    if name == "input_features" and hasattr(config, "max_source_positions"):
        return numbers(BATCH, config.num_mel_bins, 2 * config.max_source_positions)
    if name == "input_values" and hasattr(config, "max_length") and hasattr(config, "num_mel_bins"):
        return numbers(BATCH, config.max_length, config.num_mel_bins)
    if name == "input_values":
        return numbers(BATCH, SAMPLES)
    raise InputError(f"a {config.model_type} model takes {name}; give its shape by --input")


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", config)


def _image_size(config: Any) -> tuple[int, ...]:
    """Channels, height and width; of videos frames first."""
    size = getattr(config, "image_size", None) or IMAGE_SIZE
    if isinstance(size, dict):
        size = (size["height"], size["width"])
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    frames = (config.num_frames,) if hasattr(config, "num_frames") else ()
    return *frames, getattr(config, "num_channels", 3), height, width
