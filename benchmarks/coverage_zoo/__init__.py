"""The models that structure is measured on, and what is measured."""

from __future__ import annotations

from .case import Build, Case, built

__all__ = ["Build", "Case", "built", "zoo"]


def zoo() -> dict[str, Build]:
    """Every model by name, in the order of the result."""
    from .hugging_face import hugging_face_zoo  # here, since a model's own process needs one library at most
    from .vision import timm_zoo, torchvision_zoo

    return {**torchvision_zoo(), **timm_zoo(), **hugging_face_zoo()}
