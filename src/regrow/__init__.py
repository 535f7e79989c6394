"""Networks whose architecture changes while they train.

An optimizer changes the values of a model's parameters; a :class:`Shaper` changes their shapes, to any
``torch.nn.Module``, unmodified, in both directions, while it trains.
"""

from . import measure, testing
from .edit import Edit
from .errors import NotPermissible
from .growing.firefly import Firefly
from .growing.gradmax import GradMax
from .growing.gradmax_optim import GradMaxOptim
from .growing.random import Random
from .method import create_method, list_methods, method_config, register
from .operations import grow_, prune_
from .plan import Grow, Prune, at, chain, every
from .pruning.l1 import L1
from .saving import load, reshape_, save
from .shaper import Shaper
from .structure import Axis, Structure, analyze
from .structure.rules import rule

__version__ = "0.1.0"

__all__ = [
    "L1",
    "Axis",
    "Edit",
    "Firefly",
    "GradMax",
    "GradMaxOptim",
    "Grow",
    "NotPermissible",
    "Prune",
    "Random",
    "Shaper",
    "Structure",
    "analyze",
    "at",
    "chain",
    "create_method",
    "every",
    "grow_",
    "list_methods",
    "load",
    "measure",
    "method_config",
    "prune_",
    "register",
    "reshape_",
    "rule",
    "save",
    "testing",
]
