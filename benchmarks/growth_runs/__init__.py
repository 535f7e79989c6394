"""Training runs in which a network grows, and what is looked at at each growth."""

from .one import Config, run
from .setup import Setup

__all__ = ["Config", "Setup", "run"]
