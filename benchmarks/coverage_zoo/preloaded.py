"""Imported by the process that the others are forked from."""

import torch

from .times import import_all

torch.set_num_threads(1)
import_all()
