"""The gated activation of a feed-forward layer, silu(gate)·up, in one pass, on the CPU."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from seedtune.engines.transformers.cpu_kernels.bfloat16 import load, store
from seedtune.engines.transformers.cpu_kernels.exponential import exp
from seedtune.numerics.machine.caching import inner, njit

Array = NDArray[Any]

PARALLEL_FROM = 1 << 14
"""Minimum elements for which a parallel launch pays."""


@inner(error_model="numpy")
def gate_row(out: Any, x: Any) -> None:  # pragma: no cover
    """Run `silu_gate` on one row, for compiled code."""
    width = out.size
    for j in range(width):
        gate = load(x[j])
        small = exp(-abs(gate))
        top = np.float32(1.0) if gate >= 0.0 else small
        out[j] = store(out, load(store(out, gate * top / (np.float32(1.0) + small))) * load(x[width + j]))


@njit(cache=True, nogil=True)
def _gate(out: Any, x: Any) -> None:  # pragma: no cover
    for i in range(out.shape[0]):
        gate_row(out[i], x[i])


@njit(parallel=True, cache=True, nogil=True)
def _gate_parallel(out: Any, x: Any) -> None:  # pragma: no cover
    for i in nb.prange(out.shape[0]):
        gate_row(out[i], x[i])


def silu_gate(out: Array, x: Array) -> None:
    """Write out = silu(x[:, :n])·x[:, n:], silu(g) = g/(1 + e^−g).

    out (rows, n), x (rows, 2n); float32, or uint16 views of bfloat16, where the activation and the product
    are rounded, as transformers' models do.
    """
    kernel = _gate if out.size < PARALLEL_FROM else _gate_parallel
    kernel(out, x)
