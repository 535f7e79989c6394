"""All of torchvision, and timm by families."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor
from torchvision import models

from regrow.inspect.subject import BATCH, numbers

from . import families
from .case import Build, Case

IMAGE = (3, 224, 224)

#: Of torchvision, what isn't run on images of 3×224×224: by the beginning of the name.
SIZES = {
    "inception_v3": (3, 299, 299),
    "r3d": (3, 16, 112, 112),
    "mc3": (3, 16, 112, 112),
    "r2plus1d": (3, 16, 112, 112),
    "s3d": (3, 16, 224, 224),
    "mvit": (3, 16, 224, 224),
    "swin3d": (3, 16, 224, 224),
    "raft": (3, 128, 128),
}

#: Detection models scale their images by themselves, to 800 pixels by default: too much for many passes on one thread.
DETECTED = 320
#: A model without training is sure of nothing: the most likely objects are kept, however unlikely.
DETECTIONS = 20

#: timm's feature extractors get the classifier that they can have; the largest are run smaller than they are meant.
OPTIONS: dict[str, dict[str, Any]] = {
    "deepseek_vit_412m": {"num_classes": 1000, "img_size": 224, "depth": 4},
    "gemma4_vit_167m": {"num_classes": 1000, "img_size": 192, "depth": 4},
    "eva02_tiny_patch14_224": {"num_classes": 1000},
    "vit_tiny_patch16_dinov3_qkvb": {"num_classes": 1000},
    "qwen3_vit_88m": {"num_classes": 1000, "img_size": 224, "depth": 4},
}


def torchvision_zoo() -> dict[str, Build]:
    """Classification, segmentation, video and optical flow, then detection."""
    plain = (models, models.segmentation, models.video, models.optical_flow)
    found = {name: _torchvision for module in plain for name in models.list_models(module=module)}
    found |= dict.fromkeys(models.list_models(module=models.detection), _detection)
    return {f"torchvision/{name}": partial(build, name) for name, build in found.items()}


def timm_zoo() -> dict[str, Build]:
    """At least one model of each of timm's modules."""
    return {f"timm/{name}": partial(_timm, name) for name in families.names()}


def is_classification(name: str) -> bool:
    """Whether it is one of torchvision's classifiers of images."""
    library, _, model = name.partition("/")
    return library == "torchvision" and model in models.list_models(module=models)


def _timm(name: str) -> Case:
    options = OPTIONS.get(name, {})
    model = timm.create_model(name, pretrained=False, **options)
    size = timm.data.resolve_model_data_config(model)["input_size"]
    if "img_size" in options:
        size = (3, options["img_size"], options["img_size"])
    return Case(model, (numbers(BATCH, *size),))


def _torchvision(name: str) -> Case:
    images = numbers(BATCH, *next((size for start, size in SIZES.items() if name.startswith(start)), IMAGE))
    model = models.get_model(name, **_options(name))
    return Case(model, (images, images.flip(-1)) if name.startswith("raft") else (images,))


def _options(name: str) -> dict[str, Any]:
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # it would be downloaded
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": True}  # initialising takes long, and warns
    return options


def _detection(name: str) -> Case:
    options = _options(name)
    if "rcnn" in name:
        options |= {"box_score_thresh": 0.0, "box_detections_per_img": DETECTIONS}
    else:
        options |= {"score_thresh": 0.0, "detections_per_img": DETECTIONS}
    if not name.startswith("ssd"):
        options |= {"min_size": DETECTED, "max_size": DETECTED}
    images = list(numbers(BATCH, 3, DETECTED, DETECTED).sigmoid())
    targets = [_target(number) for number in range(BATCH)]
    return Case(models.get_model(name, **options), (images, targets), ragged=True)


def _target(number: int) -> dict[str, Tensor]:
    """Two objects of the only class that all detectors know; eval mode doesn't look at them."""
    boxes = torch.tensor([[20.0, 30.0, 120.0, 150.0], [160.0, 140.0, 300.0, 290.0]]) + number
    masks = torch.zeros(len(boxes), DETECTED, DETECTED, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    keypoints = torch.cat([middle, torch.ones(len(boxes), 1)], dim=1)[:, None].expand(-1, 17, -1).contiguous()
    return {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.long), "masks": masks, "keypoints": keypoints}
