"""Networks whose architecture changes while they train.

An optimizer changes the values of a model's parameters; a :class:`Shaper` changes their shapes, to any
``torch.nn.Module``, unmodified, in both directions, while it trains.
"""

from . import measure, testing
from .actions import Adapt, Grow, Prune, Rewire
from .checkpoints import Checkpoint
from .conditions import Above, Below, Plateau
from .cutoffs import Budget, Threshold, Valley
from .edit import Edit
from .errors import NotPermissible
from .growing.autogrow import AutoGrow
from .growing.deepen import Deepen
from .growing.firefly import Firefly
from .growing.gradmax import GradMax
from .growing.gradmax_optim import GradMaxOptim
from .growing.net2wider import Net2Wider
from .growing.north import North
from .growing.random import Random
from .growing.rigl import RigL
from .growing.senn import SENN
from .growing.set import SET
from .growing.splitting import Splitting
from .growing.tiny import TINY
from .joint.homeostasis import Homeostasis
from .masks import hold_masks
from .method import create_method, list_methods, method_config, register
from .operations import adapt_, grow_, prune_
from .plan import Plan, at, chain, every, until, when
from .plan_json import plan_from_json, plan_to_json
from .pretrained import check_pretrained, save_pretrained
from .pruning.ablation import Ablation
from .pruning.apoz import APoZ
from .pruning.fisher import Fisher
from .pruning.gating import add_gates_, fold_gates_
from .pruning.geometric_median import GeometricMedian
from .pruning.group_norm import GroupNorm
from .pruning.l1 import L1
from .pruning.magnitude import Magnitude
from .pruning.obs import OBS
from .pruning.polarization import Polarization
from .pruning.snip import SNIP
from .pruning.taylor import Taylor
from .saving import load, reshape_, save
from .schedules import constant, cosine, cubic, linear
from .shaper import Shaper
from .sparse import to_sparse
from .sparsity import Pattern, Sparsity
from .structure import Axis, Cell, Layer, Structure, Weights, analyze
from .structure.rules import rule
from .weight_operations import rewire_

__version__ = "0.1.0"

__all__ = [
    "L1",
    "OBS",
    "SENN",
    "SET",
    "SNIP",
    "TINY",
    "APoZ",
    "Ablation",
    "Above",
    "Adapt",
    "AutoGrow",
    "Axis",
    "Below",
    "Budget",
    "Cell",
    "Checkpoint",
    "Deepen",
    "Edit",
    "Firefly",
    "Fisher",
    "GeometricMedian",
    "GradMax",
    "GradMaxOptim",
    "GroupNorm",
    "Grow",
    "Homeostasis",
    "Layer",
    "Magnitude",
    "Net2Wider",
    "North",
    "NotPermissible",
    "Pattern",
    "Plan",
    "Plateau",
    "Polarization",
    "Prune",
    "Random",
    "Rewire",
    "RigL",
    "Shaper",
    "Sparsity",
    "Splitting",
    "Structure",
    "Taylor",
    "Threshold",
    "Valley",
    "Weights",
    "adapt_",
    "add_gates_",
    "analyze",
    "at",
    "chain",
    "check_pretrained",
    "constant",
    "cosine",
    "create_method",
    "cubic",
    "every",
    "fold_gates_",
    "grow_",
    "hold_masks",
    "linear",
    "list_methods",
    "load",
    "measure",
    "method_config",
    "plan_from_json",
    "plan_to_json",
    "prune_",
    "register",
    "reshape_",
    "rewire_",
    "rule",
    "save",
    "save_pretrained",
    "testing",
    "to_sparse",
    "until",
    "when",
]
