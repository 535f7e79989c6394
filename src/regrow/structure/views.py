"""Labels through a change of shape: dimensions are split, merged, or both, in row-major order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from .labels import Field
from .relations import Relations

Dims = tuple[int, ...]


def reshaped(
    relations: Relations, fields: Iterable[Field], before: Sequence[int], after: Sequence[int]
) -> Sequence[Field]:
    """The fields of a tensor of shape ``before`` when it is viewed as ``after``.

    Split labels are a rectangle. Where two fields are merged into one dimension, each place there has a label of its
    own, which stands for the combination of theirs.
    """
    groups = _factored(tuple(before), tuple(after))
    group_of = {dim: number for number, (inside, _) in enumerate(groups) for dim in inside}
    plain = [len(inside) == len(outside) == 1 for inside, outside in groups]
    result: list[Field] = []
    clusters: list[tuple[set[int], list[Field]]] = []
    for fld in fields:
        touched = {group_of[d] for d in fld.dims}
        if all(plain[g] for g in touched):
            result.append(Field(tuple(groups[group_of[d]][1][0] for d in fld.dims), fld.labels))
            continue
        parts = relations.parts_of(fld)
        if parts and all(_alike(parts, groups[g][0]) for g in touched if not plain[g]):
            moved = [f for part in parts for f in reshaped(relations, [part], before, after)]
            result.append(relations.combined(moved))
            continue
        apart = [c for c in clusters if c[0].isdisjoint(touched)]
        met = [c for c in clusters if not c[0].isdisjoint(touched)]
        members = [f for _, fs in met for f in fs]
        clusters = [*apart, (touched.union(*(g for g, _ in met)), [*members, fld])]
    for touched, members in clusters:
        inside = tuple(d for g in sorted(touched) for d in groups[g][0])
        outside = tuple(d for g in sorted(touched) for d in groups[g][1])
        moved = _through(relations, members, inside, outside, before, after)
        if moved is not None:
            result.append(moved)
    return result


def _alike(parts: Sequence[Field], dims: Sequence[int]) -> bool:
    """Whether all that have any of these dimensions have the same of them: then each may be moved by itself."""
    own = [tuple(d for d in part.dims if d in dims) for part in parts]
    return len({dims for dims in own if dims}) <= 1


def _through(
    relations: Relations, members: list[Field], inside: Dims, outside: Dims, before: Sequence[int], after: Sequence[int]
) -> Field | None:
    key = tuple((f.dims, id(f.labels)) for f in members), inside, outside, tuple(before), tuple(after)
    if key not in relations.moved:
        dims, labels = relations.combined(members)
        order = sorted(range(len(dims)), key=dims.__getitem__)
        labels = labels.transpose(order).reshape([before[d] if d in dims else 1 for d in inside])
        labels = np.broadcast_to(labels, [before[d] for d in inside]).reshape([after[d] for d in outside])
        fld = varying(labels, outside)
        if fld is not None and any(np.array_equal(fld.labels, f.labels) for f in members):
            fld = Field(fld.dims, next(f.labels for f in members if np.array_equal(fld.labels, f.labels)))
        if fld is not None:
            relations.rectangle(fld.labels)
        relations.moved[key] = (members, fld)
    return relations.moved[key][1]


def varying(labels: np.ndarray, dims: Sequence[int] | None = None) -> Field | None:
    """Only the dimensions on which labels differ are kept; None where all are the same, or where there are none."""
    if not labels.size:
        return None
    dims = range(labels.ndim) if dims is None else dims
    kept = []
    for axis, dim in enumerate(dims):
        if labels.shape[axis] > 1 and _varies(labels, axis):
            kept.append((axis, dim))
        else:
            labels = labels[(slice(None),) * axis + (slice(0, 1),)]
    if not kept:
        return None
    return Field(tuple(d for _, d in kept), np.ascontiguousarray(labels.reshape([labels.shape[a] for a, _ in kept])))


def _varies(labels: np.ndarray, axis: int) -> bool:
    """Whether labels differ along a dimension; mostly the first and the last one tell."""
    corner = [0] * labels.ndim
    corner[axis] = -1
    if labels[tuple(corner)] != labels[(0,) * labels.ndim]:
        return True
    return bool((labels != labels[(slice(None),) * axis + (slice(0, 1),)]).any())


@lru_cache(maxsize=4096)
def _factored(before: Dims, after: Dims) -> list[tuple[Dims, Dims]]:
    """Pairs of runs of dimensions with equal products, each as short as possible; sizes of 1 belong to none."""
    if 0 in before:
        return []
    one = [(d, n) for d, n in enumerate(before) if n > 1]
    other = [(d, n) for d, n in enumerate(after) if n > 1]
    groups: list[tuple[Dims, Dims]] = []
    while one:
        inside, outside = [one.pop(0)], [other.pop(0)]
        while (left := math.prod(n for _, n in inside)) != (right := math.prod(n for _, n in outside)):
            if left < right:
                inside.append(one.pop(0))
            else:
                outside.append(other.pop(0))
        groups.append((tuple(d for d, _ in inside), tuple(d for d, _ in outside)))
    return groups
