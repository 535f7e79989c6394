"""Vectors: made from a fixed seed, or shipped with scikit-learn. Nothing is read from a folder."""

import functools
import math

import torch
from torch import Tensor

from .arrays import Arrays, Rows, standardised
from .data import load_digits
from .errors import require
from .images import generator
from .measures import Regression

TEACHER_WIDTH = 16


@functools.cache
def load_digit_vectors() -> Arrays:
    """The 8x8 digits of `load_digits` as vectors of 64 pixels, split as there.

    All pixels are standardised by one mean and deviation, for some are blank in every training image.
    """
    digits = load_digits(side=8)
    train, test = (Rows(digits.normalise(i.pixels).flatten(1), i.labels) for i in (digits.train, digits.test))
    return Arrays(train, test)


def teacher(inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights into, biases of and weights out of the hidden tanh units of a fixed network, in float64.

    Weights into each unit have a length of 2, at which tanh bends, and those out of it of 1, so that all matter.
    """
    draw = generator(0, "teacher")
    shapes = (TEACHER_WIDTH, inputs), (TEACHER_WIDTH,), (outputs, TEACHER_WIDTH)
    incoming, bias, outgoing = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return 2 * incoming / incoming.norm(dim=1, keepdim=True), bias, outgoing / outgoing.norm(dim=0)


@functools.cache
def load_teacher(train: int = 4000, test: int = 1000, inputs: int = 12, outputs: int = 4) -> Arrays:
    """What a fixed network of `TEACHER_WIDTH` hidden units says about normal inputs: a regression without noise.

    A network of its kind that is as wide can say the same, and none that is narrower.
    """
    incoming, bias, outgoing = teacher(inputs, outputs)
    x = torch.randn(train + test, inputs, generator=generator(0, "teacher's inputs"), dtype=torch.float64)
    y = torch.tanh(x @ incoming.T + bias) @ outgoing.T
    targets, test_targets = standardised(y[:train], y[train:])
    x = x.float()
    return Arrays(Rows(x[:train], targets), Rows(x[train:], test_targets), Regression())


@functools.cache
def load_spirals(train: int = 2000, test: int = 1000, turns: float = 1.75, noise: float = 0.02) -> Arrays:
    """Points of two spirals that wind around each other, of one and the other in turn, with some noise."""
    draw, count = generator(0, "spirals"), train + test
    labels = torch.arange(count) % 2
    part = torch.rand(count, generator=draw, dtype=torch.float64).sqrt()
    angle = 2 * math.pi * turns * part + math.pi * labels
    points = part[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    points += noise * torch.randn(count, 2, generator=draw, dtype=torch.float64)
    return _classes(points[:train], labels[:train], points[train:], labels[train:])


@functools.cache
def load_clusters(train: int = 16_000, test: int = 4000) -> Arrays:
    """scikit-learn's `make_classification`: 5 classes, each of four clusters, in a table of 20,000 rows.

    Of 40 columns, 12 tell the class, 12 are mixtures of those, and 16 are noise; 1 % of the classes are random.
    """
    datasets = require("sklearn.datasets", "bench")
    table, classes = datasets.make_classification(
        train + test,
        n_features=40,
        n_informative=12,
        n_redundant=12,
        n_classes=5,
        n_clusters_per_class=4,
        class_sep=1.0,
        flip_y=0.01,
        random_state=0,
    )
    rows, labels = torch.from_numpy(table), torch.from_numpy(classes).long()
    return _classes(rows[:train], labels[:train], rows[train:], labels[train:])


def _classes(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Arrays:
    """A classification with standardised inputs."""
    inputs, test_inputs = standardised(train, test)
    return Arrays(Rows(inputs, train_labels), Rows(test_inputs, test_labels))
