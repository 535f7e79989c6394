"""
Hugging Face's Trainer
======================

A small residual network on scanned digits, in a run that may be stopped and goes on.

Channels within its blocks grow where they help most, then all channels are pruned, also those of the stream.

::

    python docs/gallery/loop_transformers.py run/ [--stop 60]     # again, to go on from there
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import regrow as rg
from regrow.loops.transformers import RegrowCallback

STEPS = 120

PLAN = rg.chain(
    rg.every(15, rg.Grow(rg.GradMax(beyond_rank="random"), 8, where="*.layer.0.convolution"), stop=45),
    rg.every(15, rg.Prune(rg.L1(), 0.1), start=60, stop=90),
)


def data() -> tuple[Tensor, Tensor]:
    """Pixels between −1 and 1, and labels."""
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(digits.target)


def build() -> ResNetForImageClassification:
    """Two blocks, of which the second halves the image."""
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10
    )
    return ResNetForImageClassification(config)


def train(folder: Path, stop: int = STEPS, say: bool = True) -> tuple[ResNetForImageClassification, float]:
    """Train until a step, from where the folder has got to; the model, and its accuracy on all digits."""
    torch.manual_seed(0)
    x, y = data()
    model = build()
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=stop,
        per_device_train_batch_size=64,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        save_steps=stop,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=0,
    )
    digits = [{"pixel_values": image, "labels": label} for image, label in zip(x, y, strict=True)]
    callback = RegrowCallback(PLAN, example=x[:8], after_edit=print if say else None)
    trainer = Trainer(model, args, train_dataset=digits, callbacks=[callback])  # type: ignore[arg-type]
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    with torch.no_grad():
        return model, float((model.eval()(x).logits.argmax(1) == y).float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stop", type=int, default=STEPS)
    given = parser.parse_args()
    model, accuracy = train(given.folder, given.stop)
    print(f"{model}\naccuracy on all digits: {accuracy:.3f}")
