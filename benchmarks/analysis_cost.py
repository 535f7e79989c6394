"""What does it cost to find a model's axes, in forward passes of the same model on the same example?"""

from __future__ import annotations

import torch
import torchvision
from common import interleaved, repeats, seconds, summary, write

import regrow as rg

FORWARDS, CONSTANT = 5, 0.1  # the goal: so many forward passes, and so many seconds
HELD_TO_THE_GOAL = "resnet18"
MODELS = ("resnet18", "vgg11_bn", "mobilenet_v3_small", "resnext50_32x4d", "densenet121")


def main() -> None:
    number = repeats("rg.analyze against forward passes, batch 8, 224x224.", 7)
    x = torch.randn(8, 3, 224, 224)
    rows = []
    for name in MODELS:
        model = torchvision.models.get_model(name, weights=None, num_classes=10).eval()

        @torch.no_grad()
        def forward(model: torch.nn.Module = model) -> None:
            model(x)

        def analyze(model: torch.nn.Module = model) -> None:
            rg.analyze(model, x)

        times = interleaved({"forward": lambda f=forward: seconds(f), "analyze": lambda a=analyze: seconds(a)}, number)
        found = {key: summary(values) for key, values in times.items()}
        forwards, analysis = found["forward"]["median_ms"] / 1e3, found["analyze"]["median_ms"] / 1e3
        met = analysis <= FORWARDS * forwards + CONSTANT
        rows.append(
            {
                "model": name,
                "ratio": analysis / forwards,
                "ratio_beyond_constant": max(0.0, analysis - CONSTANT) / forwards,
                "met": met or name != HELD_TO_THE_GOAL,
                "within_the_goal_of_resnet18": met,
                "repeats": number,
                **found,
            }
        )
    write(
        "analysis_cost",
        "rg.analyze / one forward pass (eval, no gradients), batch 8, 224x224",
        f"{HELD_TO_THE_GOAL}: at most {FORWARDS} forward passes + {CONSTANT} s",
        rows,
    )


if __name__ == "__main__":
    main()
