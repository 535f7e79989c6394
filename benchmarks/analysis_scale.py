"""What does it cost to find the structure of an 8-billion-parameter language model whose weights don't exist?

Each size runs in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from common import write
from torch import Tensor

LAYERS = (4, 8, 16, 32)
SECONDS, MEMORY_MIB = 20.0, 2048.0
HEADS, KEY_VALUE_HEADS = 32, 8
TOKENS = 16
REPEATS = 2  # the smaller counts: whatever else the machine does only adds to it
#: How much longer a call may take than in the size where it is fastest, for the cost to count as linear.
LINEAR = 1.5


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    imports = in_own_process(0)["peak_mib"]
    sizes = {layers: in_own_process(layers) for layers in LAYERS}
    fastest = min((found["ms_per_call"] for found in sizes.values() if "error" not in found), default=0.0)
    write(
        "analysis_scale",
        "rg.analyze of a Llama-shaped model (4096 wide, 32 heads, 8 key-value heads) on meta, in its own process",
        f"llama, {LAYERS[-1]} layers: at most {SECONDS:.0f} s and {MEMORY_MIB:.0f} MiB",
        [_row(layers, found, fastest, imports) for layers, found in sizes.items()],
    )


def _row(layers: int, found: dict[str, Any], fastest: float, imports: float) -> dict[str, Any]:
    row = {"model": f"llama, {layers} layers", "peak_mib_of_imports": imports, **found}
    if "error" in found:
        return {**row, "ratio": float("inf"), "met": False, "shown": found["error"]}
    ratio = max(found["seconds"] / SECONDS, found["peak_mib"] / MEMORY_MIB)
    heads = found["head_axes"] >= layers and found["head_axis_sizes"] == [KEY_VALUE_HEADS]
    slower = found["ms_per_call"] / fastest
    return {
        **row,
        "ratio": ratio,
        "met": ratio <= 1 and heads and slower <= LINEAR,
        "grouped_heads_are_units": heads,
        "time_per_call_relative": slower,
        "shown": f"{found['seconds']:.1f} s, {found['peak_mib']:.0f} MiB",
    }


def in_own_process(layers: int) -> dict[str, Any]:
    """:func:`measure` in another process; nothing is analysed for no layers."""
    done = subprocess.run([sys.executable, __file__, str(layers)], capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {"error": done.stderr.strip().rpartition("\n")[2] or f"the process ended with {done.returncode}"}


def measure(layers: int) -> dict[str, Any]:
    """Seconds, memory, and what was found."""
    from transformers import LlamaConfig, LlamaForCausalLM

    import regrow as rg

    torch.set_num_threads(1)
    if not layers:
        return {"peak_mib": _peak_mib()}
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        use_cache=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    # transformers looks at values to make its mask, and on meta there are none; so the mask is given.
    mask = torch.ones(2, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    inputs = {"input_ids": torch.zeros(2, TOKENS, dtype=torch.long), "attention_mask": mask}
    _warm_up(rg)
    started = time.perf_counter()
    structure = rg.analyze(model, kwargs=inputs)
    times = [time.perf_counter() - started]
    while len(times) < REPEATS:
        started = time.perf_counter()
        rg.analyze(model, kwargs=inputs)
        times.append(time.perf_counter() - started)
    seconds = min(times)
    heads = [axis for axis in structure if axis.kind == "head"]
    calls = _calls(model, inputs)
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "peak_mib": _peak_mib(),
        "calls": calls,
        "ms_per_call": 1e3 * seconds / calls,
        "axes": len(structure),
        "head_axes": len(heads),
        "head_axis_sizes": sorted({axis.size for axis in heads}),
        "frozen": len(structure.frozen),
        "unknown": dict(structure.unknown),
    }


def _warm_up(rg: Any) -> None:
    """torch imports its kernels for meta tensors when they are first used."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    rg.analyze(net, torch.zeros(2, 3))


@torch.no_grad()
def _calls(model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """ATen calls of one forward pass."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.number += 1
            return func(*args, **(kwargs or {}))

    with Counter() as counter:
        model(**{name: tensor.to("meta") for name, tensor in inputs.items()})
    return counter.number


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


if __name__ == "__main__":
    main()
