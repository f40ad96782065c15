"""How fast noise, perturbations, updates and fingerprints are, as ratios measured side by side in one run.

    python benchmarks/noise.py [--elements 16777216] [--repeats 9]

Everything is compiled and touched before it is timed; contestants take turns, so a slow moment of the
machine hits all of them; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numba
import numpy as np
import torch

from seedtune import noise
from seedtune.fingerprint import tensor_key
from seedtune.kernels import cpu
from seedtune.noise import Address, Stream

KEY = noise.key(1, "model.layers.0.mlp.up_proj.weight")
HERE = Address(KEY, Stream.FULL, generation=3, pair=5)

# The linear weights of SmolLM2-135M: 30 layers and the embedding.
SMOLLM2 = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]


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


def noise_and_perturbation(n: int, repeats: int) -> None:
    out, centre = np.empty(n, np.float32), np.ones(n, np.float32)
    torch_out, torch_centre = torch.from_numpy(out), torch.from_numpy(centre)
    bits, key = centre.view(np.uint32), tensor_key("w", 4)
    found = medians(
        {
            "torch normal_": torch_out.normal_,
            "fill_normals": lambda: cpu.fill_normals(out, HERE),
            "torch copy_": lambda: torch_out.copy_(torch_centre),
            "perturb": lambda: cpu.perturb(out, centre, 0.01, HERE),
            "fingerprint": lambda: cpu.fingerprint(bits, key),
            "torch sum": torch_centre.sum,
        },
        repeats,
    )
    for name, seconds in found.items():
        print(f"{name:14} {n / seconds / 1e9:6.2f} 10^9 elements/s")
    print(f"fill_normals is {found['torch normal_'] / found['fill_normals']:.1f} times torch normal_")
    print(f"perturb runs at {found['torch copy_'] / found['perturb']:.2f} of a plain copy")
    plain = found["torch normal_"] + found["torch copy_"]
    print(f"perturb is {plain / found['perturb']:.1f} times normal_ then copy")
    print(f"fingerprint runs at {found['torch sum'] / found['fingerprint']:.2f} of a plain sum")


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
    print(f"fill_factors 16 pairs x 576: {found['fill'] * 1e6:.1f} us, {ratio:.1f} times torch normal_")


def lowrank_update(repeats: int, pairs: int = 16) -> None:
    """One update of a SmolLM2-sized model (106 million elements in its layers), rank 1."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(pairs, dtype=np.float32)
    shapes = SMOLLM2 * 30
    thetas = [np.zeros(shape, np.float32) for shape in shapes]
    lefts = [rng.standard_normal((pairs, m, 1), dtype=np.float32) for m, _ in shapes]
    rights = [rng.standard_normal((pairs, n, 1), dtype=np.float32) for _, n in shapes]
    a_t, b_t = [torch.from_numpy(x[:, :, 0]).T for x in lefts], [torch.from_numpy(x[:, :, 0]) for x in rights]
    scale, targets = torch.from_numpy(weights), [torch.from_numpy(theta) for theta in thetas]

    def ours() -> None:
        for theta, a, b in zip(thetas, lefts, rights, strict=True):
            cpu.add_lowrank(theta, a, b, weights)

    def blas() -> None:
        for target, a, b in zip(targets, a_t, b_t, strict=True):
            target.addmm_(a * scale, b)

    found = medians({"ours": ours, "addmm": blas}, repeats)
    size = sum(theta.size for theta in thetas) / 1e6
    print(
        f"add_lowrank {size:.0f} million x {pairs} pairs: {found['ours']:.3f} s, "
        f"{found['addmm'] / found['ours']:.2f} times torch addmm_ (whose order of additions is not fixed)"
    )


def full_update(n: int, repeats: int, pairs: int = 16) -> None:
    theta = np.zeros(n, np.float32)
    index, weights = np.arange(pairs, dtype=np.uint32), np.ones(pairs, np.float32)
    found = medians({"full": lambda: cpu.add_full(theta, KEY, index, index, weights)}, repeats)
    print(f"add_full: {n * pairs / found['full'] / 1e9:.2f} 10^9 normals drawn and added a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    print(
        f"numba {numba.__version__} ({numba.get_num_threads()} threads), torch {torch.__version__} "
        f"({torch.get_num_threads()} threads), numpy {np.__version__}"
    )
    noise_and_perturbation(options.elements, options.repeats)
    small_factors(options.repeats)
    lowrank_update(options.repeats)
    full_update(options.elements // 8, options.repeats)


if __name__ == "__main__":
    main()
