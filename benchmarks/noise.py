"""How fast noise, perturbations, updates and fingerprints are, as ratios measured side by side in one run.

    python benchmarks/noise.py [--elements 16777216] [--repeats 9] [--output benchmarks/results/noise.md]

Everything is compiled and touched before it is timed; contestants take turns, so a slow moment of the
machine hits all of them; figures are medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch

from seedtune.numerics import noise, rounding
from seedtune.numerics.fingerprint import tensor_key
from seedtune.numerics.kernels import cpu
from seedtune.numerics.noise import Address, Stream
from seedtune.types import Term, Update

KEY = noise.key(1, "model.layers.0.mlp.up_proj.weight")
HERE = Address(KEY, Stream.GAUSSIAN, generation=3, pair=5)

# Element types of current weights and of the weights of a member made from them.
PAIRS = [
    ("float32", "float32"),
    ("float32", "bfloat16"),
    ("float32", "float16"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
]

# The linear weights of SmolLM2-135M: 30 layers and the embedding.
SMOLLM2 = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]


LINES: list[str] = []


def say(line: str) -> None:
    """Print a result and keep it."""
    print(line, flush=True)
    LINES.append(line)


def medians(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds per call, contestants in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for call in contestants.values():
        call()
    for _ in range(repeats):
        for name, call in contestants.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def as_torch(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def noise_and_fingerprint(n: int, repeats: int) -> None:
    out = np.zeros(n, np.float32)
    target, bits, key = torch.from_numpy(out), out.view(np.uint32), tensor_key("w", 4)
    found = medians(
        {
            "torch normal_": target.normal_,
            "fill_normals": lambda: cpu.fill_normals(out, HERE),
            "fingerprint": lambda: cpu.fingerprint(bits, key),
            "torch sum": target.sum,
        },
        repeats,
    )
    for name, seconds in found.items():
        say(f"{name:14} {n / seconds / 1e9:6.2f} 10^9 elements/s")
    say(f"fill_normals is {found['torch normal_'] / found['fill_normals']:.1f} times torch normal_")
    say(f"fingerprint runs at {found['torch sum'] / found['fingerprint']:.2f} of a plain sum")


def perturbation(n: int, repeats: int, source: str, goal: str) -> None:
    """Perturb against add noise, subtract it again (what the published code does per member), and plain copies."""
    weights, out = (np.full(n, 1, rounding.ARRAYS[dtype]) for dtype in (source, goal))
    tensor, live = as_torch(weights), as_torch(out)
    spare = {"of the current weights": torch.zeros_like(tensor), "of the member's weights": torch.zeros_like(live)}

    def add_and_subtract() -> None:
        live.add_(torch.randn(n, dtype=live.dtype), alpha=0.01)
        live.sub_(torch.randn(n, dtype=live.dtype), alpha=0.01)

    found = medians(
        {
            "ours": lambda: cpu.perturb(out, weights, 0.01, HERE),
            "of the current weights": lambda: spare["of the current weights"].copy_(tensor),
            "of the member's weights": lambda: spare["of the member's weights"].copy_(live),
            "pair": add_and_subtract,
        },
        repeats,
    )
    copies = ", ".join(f"{found['ours'] / found[name]:.2f} times a plain copy {name}" for name in spare)
    say(
        f"perturb {source} -> {goal}: {n / found['ours'] / 1e9:.2f} 10^9 elements/s, {copies}, "
        f"{found['pair'] / found['ours']:.1f} times as fast as adding and subtracting torch.randn"
    )


def small_factors(repeats: int) -> None:
    pairs = np.arange(16, dtype=np.uint32)
    out = np.empty((16, 576), np.float32)
    torch_out = torch.from_numpy(out)
    found = medians(
        {
            "fill": lambda: cpu.fill_factors(out, KEY, Stream.FACTOR_A, pairs, pairs),
            "torch": torch_out.normal_,
        },
        repeats * 50,
    )
    ratio = found["torch"] / found["fill"]
    say(f"fill_factors 16 pairs x 576: {found['fill'] * 1e6:.1f} us, {ratio:.1f} times torch normal_")


def update_of(pairs: int) -> Update:
    return Update(3, tuple(Term(3, pair, 0.001 * (pair + 1)) for pair in range(pairs)))


def lowrank_update(repeats: int, dtype: str, pairs: int = 16) -> None:
    """One update of a SmolLM2-sized model (106 million elements in its layers), rank 1, factors included."""
    shapes = SMOLLM2 * 30
    thetas = [np.zeros(shape, rounding.ARRAYS[dtype]) for shape in shapes]
    targets, update = [as_torch(theta) for theta in thetas], update_of(pairs)
    kind = targets[0].dtype
    lefts = [torch.randn(m, pairs).to(kind) for m, _ in shapes]
    rights = [torch.randn(pairs, n).to(kind) for _, n in shapes]

    def ours() -> None:
        for theta in thetas:
            cpu.update_lowrank(theta, KEY, [update], rank=1)

    def blas() -> None:
        for target, a, b in zip(targets, lefts, rights, strict=True):
            target.addmm_(a, b)

    found = medians({"ours": ours, "addmm": blas}, repeats)
    size = sum(theta.size for theta in thetas) / 1e6
    say(
        f"update_lowrank {dtype}, {size:.0f} million x {pairs} pairs: {found['ours']:.3f} s, "
        f"{found['addmm'] / found['ours']:.2f} times torch addmm_ (whose order of additions is not fixed)"
    )


def full_update(n: int, repeats: int, dtype: str, members: int = 32) -> None:
    """An update of 32 members without pairs, against the published loop over the members' seeds."""
    theta = np.zeros(n, rounding.ARRAYS[dtype])
    parameter, update = as_torch(theta), update_of(members)

    def published() -> None:
        for seed in range(members):
            generator = torch.Generator().manual_seed(seed)
            parameter.add_(torch.randn(n, dtype=parameter.dtype, generator=generator), alpha=0.001)

    found = medians({"ours": lambda: cpu.update_gaussian(theta, KEY, [update]), "loop": published}, repeats)
    rate, ratio = n * members / found["ours"] / 1e9, found["loop"] / found["ours"]
    say(
        f"update_gaussian {dtype}, {members} members: {rate:.2f} 10^9 normals drawn and added a second, "
        f"{ratio:.1f} times as fast as the published loop"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the lines as Markdown")
    options = parser.parse_args()
    say(
        f"numba {numba.__version__} ({numba.get_num_threads()} threads), torch {torch.__version__} "
        f"({torch.get_num_threads()} threads), numpy {np.__version__}"
    )
    noise_and_fingerprint(options.elements, options.repeats)
    small_factors(options.repeats)
    for source, goal in PAIRS:
        perturbation(options.elements, options.repeats, source, goal)
    for dtype in rounding.ARRAYS:
        full_update(options.elements // 8, options.repeats, dtype)
    for dtype in rounding.ARRAYS:
        lowrank_update(options.repeats, dtype)
    if options.output:
        when = f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores"
        command = f"`python benchmarks/noise.py --repeats {options.repeats}`, {when}."
        shown = "\n".join(f"* {line}" for line in LINES)
        options.output.write_text(f"# Noise, perturbation and update\n\n{command}\n\n{shown}\n")


if __name__ == "__main__":
    main()
