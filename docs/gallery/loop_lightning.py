"""
Lightning's Trainer
===================

Growth and pruning on scanned digits, in a run that may be stopped and goes on.

::

    python docs/gallery/loop_lightning.py run/ [--stop 6]     # again, to go on from there
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import regrow as rg
from regrow.loops.lightning import RegrowCallback

EPOCHS = 12

PLAN = rg.chain(
    rg.every(15, rg.Grow(rg.GradMax(beyond_rank="random"), 8, where="0"), stop=60),
    rg.every(15, rg.Prune(rg.L1(strength=1e-4), 0.15, where="0"), start=90, stop=135),
)


class Digits(pl.LightningModule):
    """A module as any other: it knows nothing of the plan."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


def data() -> tuple[Tensor, Tensor]:
    """Pixels between −1 and 1, and labels."""
    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target)


def train(folder: Path, stop: int = EPOCHS, say: bool = True) -> tuple[nn.Module, float]:
    """Train until an epoch, from where the folder has got to; the model, and its accuracy on all digits."""
    pl.seed_everything(0, verbose=False)
    x, y = data()
    module = Digits()
    callback = RegrowCallback(PLAN, example=x[:8], module="model", after_edit=print if say else None)
    trainer = pl.Trainer(
        max_epochs=stop,
        accumulate_grad_batches=2,
        accelerator="cpu",
        callbacks=[callback, pl.callbacks.ModelCheckpoint(folder, save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = folder / "last.ckpt"
    loader = DataLoader(TensorDataset(x, y), 64, shuffle=True, drop_last=True)
    trainer.fit(module, loader, ckpt_path=str(last) if last.exists() else None)
    with torch.no_grad():
        return module.model, float((module.model(x).argmax(1) == y).float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stop", type=int, default=EPOCHS)
    given = parser.parse_args()
    model, accuracy = train(given.folder, given.stop)
    print(f"{model}\naccuracy on all digits: {accuracy:.3f}")
