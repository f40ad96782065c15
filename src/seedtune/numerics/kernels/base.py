"""The kernel protocol of weights: ``kernels.cpu`` on numpy arrays, ``kernels.gpu`` on CUDA tensors.

Every implementation gives the same bits.  Arrays are contiguous; 16-bit weights are float16, or bfloat16 (as
uint16 in numpy).  A key is `seedtune.numerics.noise.key` of the tensor, ``start`` the flat index of the first element.
With more than one of ``subspaces`` a pair's noise is restricted to its subspace, see `seedtune.numerics.noise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from seedtune.numerics.fingerprint import Fingerprint
from seedtune.numerics.noise import Address
from seedtune.types import Update

Key = tuple[int, int]


class Kernels(Protocol):
    """The functions of a kernel module."""

    def perturb(
        self, out: Any, weights: Any, sigma: float, address: Address, start: int = 0, *, subspaces: int = 1
    ) -> None:
        """Write out = round(weights + σ·ε), flat arrays."""
        ...

    def update_gaussian(
        self,
        theta: Any,
        key: Key,
        updates: Sequence[Update],
        *,
        start: int = 0,
        anchor: Any = None,
        subspaces: int = 1,
    ) -> None:
        """Apply all updates of Gaussian noise to flat ``theta``, in order."""
        ...

    def update_lowrank(
        self,
        theta: Any,
        key: Key,
        updates: Sequence[Update],
        *,
        rank: int,
        shape: tuple[int, int] | None = None,
        row_start: int = 0,
        col_start: int = 0,
        anchor: Any = None,
        subspaces: int = 1,
    ) -> None:
        """Apply all updates of low-rank noise to two-dimensional ``theta``, in order."""
        ...

    def update_flipout(
        self,
        theta: Any,
        key: Key,
        updates: Sequence[Update],
        *,
        shape: tuple[int, int] | None = None,
        row_start: int = 0,
        col_start: int = 0,
        anchor: Any = None,
        shared_noise: int = 1,
    ) -> None:
        """Apply all updates of flipout noise to two-dimensional ``theta``, in order.

        The terms of an update that share their normals U (one generation, and one pair mod ``shared_noise``) are one
        run; runs come in the order of their first terms.  Of every run, q = Σ (w·r[i])·s[j] over its terms in order,
        and the update's sum is Σ q·U[i, j] over its runs in order; both from 0, each product and sum rounded to float32
        on its own.
        """
        ...

    def fill_factors(
        self,
        out: Any,
        key: Key,
        stream: int,
        generations: Any,
        pairs: Any,
        *,
        start: int = 0,
        rank: int = 1,
        subspaces: int = 1,
    ) -> None:
        """Write one low-rank factor of many pairs, float32 (pairs, rows · rank)."""
        ...

    def fill_signs(self, out: Any, key: Key, stream: int, generations: Any, pairs: Any, *, start: int = 0) -> None:
        """Write one sign factor of many pairs, float32 (pairs, elements) of -1 and 1."""
        ...

    def fill_normals(self, out: Any, address: Address, start: int = 0) -> None:
        """Write the normals of elements ``start ..``, flat float32."""
        ...

    def fingerprint(self, bits: Any, key: Key, start: int = 0) -> Fingerprint:
        """Return two lanes over the elements' bits, positions and tensor name."""
        ...

    def empty(self, shape: tuple[int, ...], like: Any) -> Any:
        """Return a new float32 array on the device of ``like``."""
        ...

    def host(self, array: Any) -> NDArray[Any]:
        """Return the array as numpy: itself, or a copy from the GPU."""
        ...

    def copy(self, target: Any, source: NDArray[Any]) -> None:
        """Write numpy ``source`` over ``target``."""
        ...
