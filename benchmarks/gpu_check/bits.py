"""Kernels against the numpy references, bit for bit; a difference points at the compiler, not at the scheme."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import references
from benchmarks.gpu_check.check import Check
from seedtune.numerics import fingerprint as fp
from seedtune.numerics import noise
from seedtune.numerics.kernels import gpu
from seedtune.numerics.noise import Address, Stream
from seedtune.types import Decay, Term, Update

KEY = noise.key(42, "model.layers.0.mlp.up_proj.weight")
ADDRESS = Address(KEY, Stream.GAUSSIAN, 7, 3)
UPDATES = (
    Update(7, tuple(Term(7, pair, 1e-3 * (pair + 1)) for pair in range(3))),
    Update(8, (Term(8, 1, 0.01),), Decay(l2=0.1)),
)
START = 3
"""The first element: in the middle of a block of noise."""


def run(check: Check) -> None:
    """Compare every kernel in every type, and beyond 2³¹ elements."""
    for dtype in references.DTYPES:
        for subspaces in (1, 3):
            _compare(check, dtype, subspaces)
    _compare_factors(check)
    if not check.dry:
        _compare_large(check)


def _compare(check: Check, dtype: str, subspaces: int) -> None:
    n, name = check.pick((1 << 19) + 5, 2053), f"{dtype}{', subspaces' * (subspaces > 1)}"
    theta, base = references.weights(dtype, n), references.weights(dtype, n, seed=1)
    height, more = check.pick(97, 9), {"subspaces": subspaces}
    rows = theta[: n // 97 * height].reshape(height, -1)
    with check.attempt(f"update_gaussian {name}"):
        live = _up(check, theta)
        gpu.update_gaussian(live, KEY, UPDATES, start=START, anchor=_up(check, base), **more)
        expected = references.updated(theta, KEY, UPDATES, start=START, anchor=base, **more)
        _same(check, f"update_gaussian {name}", live, expected)
    with check.attempt(f"update_lowrank {name}"):
        live = _up(check, rows)
        gpu.update_lowrank(live, KEY, UPDATES[:1], rank=2, **more)
        _same(check, f"update_lowrank {name}", live, references.updated(rows, KEY, UPDATES[:1], rank=2, **more))
    with check.attempt(f"perturb {name}"):
        live = torch.empty(n, device=check.device, dtype=getattr(torch, dtype))
        gpu.perturb(live, _up(check, theta), 0.0123, ADDRESS, START, **more)
        expected = references.perturbed(theta, 0.0123, ADDRESS, start=START, dtype=dtype, **more)
        _same(check, f"perturb {name}", live, expected)
    if subspaces == 1:
        with check.attempt(f"update_flipout {name}"):
            live = _up(check, rows)
            gpu.update_flipout(live, KEY, UPDATES[:1], shared_noise=2)
            expected = references.updated(rows, KEY, UPDATES[:1], shared_noise=2)
            _same(check, f"update_flipout {name}", live, expected)
        with check.attempt(f"fingerprint {name}"):
            own = fp.tensor_key("name", theta.itemsize)
            found = gpu.fingerprint(_up(check, theta), own, START)
            _verdict(check, f"fingerprint {name}", found == references.mix_sum(fp.bits_of(theta), own, START))


def _compare_factors(check: Check) -> None:
    rows, rank, subspaces = check.pick(8960, 67), 2, 3
    generations, pairs = np.array([7, 9], np.uint32), np.array([3, 4], np.uint32)
    with check.attempt("factors"):
        found = torch.empty(2, rows * rank, device=check.device)
        options: dict[str, Any] = {"rank": rank, "subspaces": subspaces}
        gpu.fill_factors(found, KEY, Stream.FACTOR_A, generations, pairs, **options)
        where = [Address(KEY, 0, int(g), int(p)) for g, p in zip(generations, pairs, strict=True)]
        drawn = [noise.factors(address, (rows, 1), **options)[0].reshape(-1) for address in where]
        _same(check, "factors", found, np.stack(drawn))


def _compare_large(check: Check) -> None:
    """More elements than 32 bits count."""
    big, tail = (1 << 31) + 4099, 5000
    theta = torch.zeros(big, dtype=torch.bfloat16, device=check.device)
    gpu.perturb(theta, theta, 0.5, ADDRESS)
    expected = references.perturbed(np.zeros(tail, np.uint16), 0.5, ADDRESS, start=big - tail, dtype="bfloat16")
    _same(check, "perturb beyond 2^31 elements", theta[-tail:], expected)
    gpu.update_gaussian(theta, KEY, UPDATES[:1])
    expected = references.updated(expected, KEY, UPDATES[:1], start=big - tail)
    _same(check, "update_gaussian beyond 2^31 elements", theta[-tail:], expected)
    whole = gpu.fingerprint(theta, KEY)
    parts = fp.combine((gpu.fingerprint(theta[:-tail], KEY), gpu.fingerprint(theta[-tail:], KEY, big - tail)))
    _verdict(check, "fingerprint beyond 2^31 elements", whole == parts)


def _up(check: Check, array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array.copy())
    return (tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor).to(check.device)


def _same(check: Check, name: str, found: torch.Tensor, expected: np.ndarray) -> None:
    different = gpu.host(found).reshape(-1).view(np.uint8) != expected.reshape(-1).view(np.uint8)
    _verdict(check, name, not different.any(), f"{different.sum()} bytes")


def _verdict(check: Check, name: str, equal: bool, how: str = "") -> None:
    check.say(name, "equal" if equal else "different", "" if equal else how, wrong=not equal)
