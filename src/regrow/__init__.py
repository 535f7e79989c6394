"""Networks whose architecture changes while they train.

An optimizer changes the values of a model's parameters; a :class:`Shaper` changes their shapes, to any
``torch.nn.Module``, unmodified, in both directions, while it trains.
"""

from . import measure, testing
from .cutoffs import Budget, Threshold, Valley
from .edit import Edit
from .errors import NotPermissible
from .growing.firefly import Firefly
from .growing.gradmax import GradMax
from .growing.gradmax_optim import GradMaxOptim
from .growing.random import Random
from .method import create_method, list_methods, method_config, register
from .operations import grow_, prune_
from .plan import Grow, Prune, at, chain, every
from .pruning.gating import add_gates_, fold_gates_
from .pruning.l1 import L1
from .pruning.polarization import Polarization
from .saving import load, reshape_, save
from .shaper import Shaper
from .structure import Axis, Structure, analyze
from .structure.rules import rule

__version__ = "0.1.0"

__all__ = [
    "L1",
    "Axis",
    "Budget",
    "Edit",
    "Firefly",
    "GradMax",
    "GradMaxOptim",
    "Grow",
    "NotPermissible",
    "Polarization",
    "Prune",
    "Random",
    "Shaper",
    "Structure",
    "Threshold",
    "Valley",
    "add_gates_",
    "analyze",
    "at",
    "chain",
    "create_method",
    "every",
    "fold_gates_",
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
