"""Other people's training loops in several processes, for a test: run by torchrun, each leaves its weights behind."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import regrow as rg

PLAN = rg.chain(
    rg.at(2, rg.Grow(rg.GradMax(beyond_rank="random"), 3, where="*0")),
    rg.at(4, rg.Prune(rg.L1(strength=1e-2), 2)),
    rg.at(6, rg.Grow(rg.Random(), 2)),
)
STEPS = 8


class Net(nn.Module):
    """With a loss, as the Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        out = self.model(x)
        return {"logits": out} if labels is None else {"loss": F.cross_entropy(out, labels), "logits": out}


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(320, 6, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(1)


def transformers(folder: Path) -> nn.Module:
    """The Trainer's model isn't what it trains: that is in a wrapper."""
    from transformers import Trainer, TrainingArguments

    from regrow.loops.transformers import RegrowCallback

    net, (x, y) = Net(), data()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=16, learning_rate=1e-2, use_cpu=True,
        dataloader_pin_memory=False, report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    examples = [{"x": one, "labels": label} for one, label in zip(x, y, strict=True)]
    Trainer(net, arguments, train_dataset=examples, callbacks=[RegrowCallback(PLAN, example=x[:8])]).train()
    return net.model


def lightning(folder: Path) -> nn.Module:
    """What is edited is a part of the module that is wrapped."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    from regrow.loops.lightning import RegrowCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Net().model

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-2)

    module, (x, y) = Module(), data()
    trainer = pl.Trainer(
        max_steps=STEPS, accelerator="cpu", strategy="ddp", devices=dist.get_world_size(), logger=False,
        callbacks=[RegrowCallback(PLAN, example=x[:8], module="model")], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(x, y), 16))
    return module.model


def accelerate(folder: Path) -> nn.Module:
    """Stopped, saved, loaded into what is wrapped already, and gone on with."""
    from accelerate import Accelerator

    from regrow.loops.accelerate import AccelerateShaper

    x, y = data()

    def train(stop: int, go_on: bool) -> nn.Module:
        accelerator, net = Accelerator(cpu=True), Net().model
        model, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), 1e-2))
        generator = torch.Generator().manual_seed(0)
        shaper = AccelerateShaper(accelerator, model, optimizer, PLAN, example=x[:8], generator=generator)
        if go_on:
            accelerator.load_state(str(folder / "state"))
        for step in range(shaper.steps, stop):
            mine = torch.arange(320)[step * 32 : step * 32 + 32][dist.get_rank() :: dist.get_world_size()]

            def loss(mine: Tensor = mine) -> Tensor:
                return F.cross_entropy(model(x[mine]), y[mine])

            accelerator.backward(loss() + shaper.penalty())
            optimizer.step()
            optimizer.zero_grad()
            shaper.step(loss)
        accelerator.save_state(str(folder / "state"))
        return net

    train(3, go_on=False)
    return train(STEPS, go_on=True)


LOOPS: tuple[Callable[[Path], nn.Module], ...] = (accelerate, transformers, lightning)

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    dist.init_process_group("gloo")
    for loop in LOOPS:
        place = Path(sys.argv[1]) / loop.__name__
        trained = loop(place)
        place.mkdir(exist_ok=True)
        torch.save(trained.state_dict(), place / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()
