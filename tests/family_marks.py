"""What the families show to be unfinished: by test, the networks and the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

_QUERIES = "one query head of each key head isn't offered"
_WRITTEN = "what is written into a part of another tensor is frozen"
_SHUFFLED = "axes of one tensor are named by an arbitrary number"
_BAG = "an EmbeddingBag isn't known as an embedding"
_PARAMETRISED = "axes of parametrised layers are called by the parametrisation"
_LEARN = "new units get no gradient"


_GROWTH = "a reason against growth is taken for one against pruning"
_NORM = "zeros add nothing to a norm, but it is called inexact, or divided by"
_FORCE = "a warning in the comparison is taken for an error"

#: Axes that aren't found, or called otherwise.
AXES: dict[str, str] = {
    **dict.fromkeys(("kernel_grouped", "keys_interleaved", "keys_expanded", "keys_repeated"), _QUERIES),
    "one_circular": _WRITTEN,
    "channel_shuffle": "the operator isn't a rectangle",
    "lstm_projected": "the hidden size of a projected LSTM doesn't follow",
    "lstm_packed": _WRITTEN,
    **dict.fromkeys(("weight_norm", "weight_norm_all"), _PARAMETRISED),
    "diagonal": "a diagonal freezes",
    "experts_routed": "rows that are routed otherwise in a trial freeze the stream",
    "stacked_bmm": "whole experts aren't offered",
    "shuffled_groups": _GROWTH,
    **dict.fromkeys(("weight_norm_old", "rows_divided", "columns_divided"), _NORM),
    **dict.fromkeys(("called", "low_rank_merged"), "a product of weights is named by the wrong one"),
    "cosine_head": _NORM,
    "convolutional_lstm": "zeros beside other tensors freeze",
}

#: Networks of which something untrue is said.
NUMBERS: dict[str, str] = {
    "weight_norm_columns": "a silent column has no length",
    **dict.fromkeys(("weight_norm", "weight_norm_all", "weight_norm_old", "rows_divided", "columns_divided"), _NORM),
    "force_field": _FORCE,
    "cosine_head": _NORM,
}

#: Networks that aren't as they should be after an edit.
EDITS: dict[str, str] = {
    **dict.fromkeys(
        ("transposed_grouped", "orthogonal", "similarity", "modulated"),
        _LEARN,
    ),
    "weight_norm_columns": "a silent column has no length",
    "weight_norm_old": "sizes are told from a weight that is computed anew at each call",
    "spectral_norm_old": "sizes are told from a weight that is computed anew at each call",
    **dict.fromkeys(("weight_norm", "weight_norm_all", "rows_divided", "columns_divided"), _NORM),
    **dict.fromkeys(("quantised", "cosine_head"), _LEARN),
    "force_field": _FORCE,
}

_DATA = "products of data with data are counted with no axis"

#: Networks whose units aren't counted right.
UNITS: dict[str, str] = {
    **dict.fromkeys(("by_hand", "packed_reshape", "kernel_grouped", "keys_interleaved", "encoder", "windows"), _DATA),
    **dict.fromkeys(("hyper", "torch"), _DATA),
}


def marked(wrong: Mapping[str, str], names: Iterable[str]) -> list[Any]:
    """The names as parameters; those in ``wrong`` are expected to fail."""
    chosen = list(names)
    assert set(wrong) <= set(chosen)
    return [pytest.param(n, marks=[pytest.mark.xfail(reason=wrong[n])] if n in wrong else []) for n in chosen]
