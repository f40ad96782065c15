"""What choosing a decode step's tokens takes: greedy, and by draws with compiled kernels, with torch and with a sort.

    python benchmarks/token_choice.py [--output benchmarks/results/token_choice.md]

Logits are random, with SmolLM2's vocabulary.  The sort is how tokens were drawn before: all tokens in order of falling
probability, in float64.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from seedtune.engines.transformers import device
from seedtune.engines.transformers.decoding import sampling
from seedtune.numerics.machine import processor
from seedtune.types import Sampling

VOCABULARY = 49_152


def by_sort(logits: torch.Tensor, points: torch.Tensor, top_p: float) -> torch.Tensor:
    """Draw by inverse CDF over sorted tokens, 16 rows at a time."""
    found = []
    for rows, at in zip(logits.split(16), points.double().split(16), strict=True):
        masses, order = rows.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
        cumulative = masses.cumsum(-1)
        kept = (cumulative - masses < top_p).sum(-1, keepdim=True).clamp(min=1)
        places = torch.searchsorted(cumulative, at[:, None] * cumulative.gather(-1, kept - 1), right=True)
        found.append(order.gather(-1, places.minimum(kept - 1))[:, 0])
    return torch.cat(found)


def by_torch(logits: torch.Tensor, points: torch.Tensor, rule: Sampling) -> torch.Tensor:
    """Choose as on a device without compiled kernels."""
    held, device.KERNELS = device.KERNELS, False
    try:
        return sampling.choose(logits, rule, points)
    finally:
        device.KERNELS = held


def milliseconds(call: Callable[[], object], repeats: int = 7) -> float:
    """The smallest of some times, after one call that may compile."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times) * 1e3


def table(rows: int, dtype: torch.dtype) -> list[str]:
    """The lines of one number of rows."""
    logits = (torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    points, name = torch.rand(rows, generator=torch.Generator().manual_seed(2)), str(dtype).removeprefix("torch.")
    greedy = milliseconds(lambda: sampling.choose(logits, Sampling(1), None))
    lines = [f"| {rows} | {name} | greedy | {greedy:.2f} | | |"]
    for top_p in (1.0, 0.9):
        rule = Sampling(1, temperature=1.0, top_p=top_p)
        ways = (
            lambda rule=rule: sampling.choose(logits, rule, points),
            lambda rule=rule: by_torch(logits, points, rule),
            lambda top_p=top_p: by_sort(logits, points, top_p),
        )
        took = " | ".join(f"{milliseconds(way):.2f}" for way in ways)
        lines.append(f"| {rows} | {name} | temperature 1, top_p {top_p:g} | {took} |")
    return lines


def main() -> None:
    """Print the page, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    lines = [
        "# Choosing tokens",
        "",
        f"`python benchmarks/token_choice.py`, torch {torch.__version__}, {torch.get_num_threads()} threads, vectors: "
        f"{processor.vector_name()}. Milliseconds of a step's choice among {VOCABULARY:,} tokens, smallest of 7.",
        "",
        "| rows | logits | choice | compiled kernels | torch, no sort | torch, by a sort (before) |",
        "| ---: | --- | --- | ---: | ---: | ---: |",
        *(line for rows in (32, 128) for dtype in (torch.float32, torch.bfloat16) for line in table(rows, dtype)),
        "",
    ]
    print("\n".join(lines))
    if options.output is not None:
        options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
