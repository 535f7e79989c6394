"""From how many zeros on is a linear layer with compressed sparse rows faster than a dense one on this CPU?"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from common import interleaved, paired_ratio, repeats, seconds, write

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


@torch.no_grad()
def main() -> None:
    number = repeats("Linear layers with compressed sparse rows against dense ones.", 30)
    warnings.simplefilter("ignore")  # that compressed rows are in beta
    rows: list[dict[str, Any]] = []
    for size in (512, 2048):
        for batch in (1, 32, 256):
            weight, x = torch.randn(size, size), torch.randn(batch, size)
            ratios = {}
            for sparsity in SPARSITIES:
                zeros = weight * (torch.rand_like(weight) > sparsity)
                sparse = zeros.to_sparse_csr()
                contestants = {
                    "dense": lambda zeros=zeros, x=x: seconds(lambda: F.linear(x, zeros)),
                    "csr": lambda sparse=sparse, x=x: seconds(lambda: F.linear(x, sparse)),
                }
                times = interleaved(contestants, number)
                ratios[str(sparsity)] = paired_ratio(times["csr"], times["dense"])
            least = next((s for s in SPARSITIES if ratios[str(s)] < 1), None)
            shown = f"faster from {least:.0%} on" if least is not None else "never faster"
            rows.append(
                {"model": f"{size} x {size}, batch {batch}", "ratios": ratios, "break_even": least, "met": True}
            )
            print(rows[-1]["model"], shown, {key: round(value, 2) for key, value in ratios.items()})
    write("sparse_linear", "linear layer with compressed rows / dense", "break-even", rows)


if __name__ == "__main__":
    main()
