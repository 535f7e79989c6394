"""How each family of calls relates the labels of its tensors: one rule per family.

A call without a rule freezes what it touches and is named in the analysis; nothing is guessed.
"""

from . import contraction, lookup, movement, normalisation, pointwise, reduction
from .registry import Rule, rule, rule_of

__all__ = ["Rule", "contraction", "lookup", "movement", "normalisation", "pointwise", "reduction", "rule", "rule_of"]
