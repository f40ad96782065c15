"""The centre: the unperturbed trainable weights, exact, moved only by updates of seeds.

``gaussian``:  θ ← θ + Σₚ wₚ εₚ for every element;  ``lowrank``:  W ← W + Σₚ wₚ/√r · Aₚ Bₚᵀ.  The sum is float32 in the
order of the update's terms, element by element.  A float32 centre is rounded once per update, a centre in the
model's own 16 bits by stochastic rounding from noise stream 3.  Same base and same updates give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedtune import fingerprint as fp
from seedtune import tensorfile
from seedtune.engines.base import Noise
from seedtune.kernels.base import Kernels
from seedtune.noise import Address, Stream, key
from seedtune.types import Member, Update

Weights = NDArray[Any]
"""float32, float16, or uint16 that holds the bits of bfloat16; on a GPU a torch tensor takes its place."""

Anchor = Callable[[str], Weights]
"""Gives a tensor's base weights, for updates with decay."""


def cpu_kernels() -> Kernels:
    """The compiled kernels for numpy arrays (imported on first use: numba takes a moment)."""
    from seedtune.kernels import cpu

    return cpu


def tensor_fingerprint(name: str, array: Weights) -> fp.Fingerprint:
    """``fingerprint.tensor_fingerprint`` by the compiled kernel; bfloat16 as its uint16 view."""
    bits = np.ascontiguousarray(fp.bits_of(array)).reshape(-1)
    return cpu_kernels().fingerprint(bits, fp.tensor_key(name, array.dtype.itemsize))


class Centre:
    """Trainable tensors under their Hugging Face names, C order: any shape, or two-dimensional for ``lowrank``.

    The arrays are used in place, so an engine may let its live weights be views of them.  ``anchor`` gives base
    weights by name, which only updates with decay need.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        noise: Noise,
        *,
        kernels: Kernels | None = None,
        anchor: Anchor | None = None,
    ) -> None:
        self.tensors, self.noise = dict(tensors), noise
        self.keys = {name: key(noise.run_seed, name) for name in tensors}
        self._kernels = cpu_kernels() if kernels is None else kernels
        self._anchor = anchor

    def apply(self, *updates: Update) -> None:
        """Every update in order, in one pass over each tensor; one without terms and decay changes nothing."""
        moving = [update for update in updates if update.terms or update.decay]
        if not moving:
            return
        for name in self.tensors:
            self._apply(name, moving)

    def _apply(self, name: str, updates: Sequence[Update]) -> None:
        array, where = self.tensors[name], self.keys[name]
        anchor = None
        if any(update.decay for update in updates):
            if self._anchor is None:
                raise ValueError("an update with decay needs the base weights")
            anchor = self._anchor(name)
        if self.noise.perturbation == "lowrank":
            self._kernels.update_lowrank(array, where, updates, rank=self.noise.rank, anchor=anchor)
            return
        flat = None if anchor is None else anchor.reshape(-1)
        self._kernels.update_full(array.reshape(-1), where, updates, anchor=flat)

    def perturb(self, name: str, member: Member, sigma: float, out: Any) -> None:
        """Write a member's weights, round(θ + sign·σ·ε), into ``out`` (flat, the model's type); ``gaussian`` only."""
        address = Address(self.keys[name], Stream.FULL, member.generation, member.pair)
        self._kernels.perturb(out, self.tensors[name].reshape(-1), member.sign * sigma, address)

    def fill_factors(self, name: str, stream: Stream, pairs: Sequence[tuple[int, int]], out: Any) -> None:
        """Write a low-rank factor of every (generation, pair) into ``out``, float32 (pairs, rows · rank)."""
        generations, indices = (np.array(column, np.uint32) for column in zip(*pairs, strict=True))
        self._kernels.fill_factors(out, self.keys[name], stream, generations, indices)

    def empty(self, shape: tuple[int, ...], name: str) -> Any:
        """A new float32 array where the tensor ``name`` lies."""
        return self._kernels.empty(shape, self.tensors[name])

    def fingerprint(self) -> str:
        """128 bits over every element's value, place and tensor name; independent of order and sharding."""
        return fp.to_hex(fp.combine(self._fingerprint(name) for name in self.tensors))

    def _fingerprint(self, name: str) -> fp.Fingerprint:
        array = self.tensors[name]
        if isinstance(array, np.ndarray):
            return tensor_fingerprint(name, array)
        return self._kernels.fingerprint(array.reshape(-1), fp.tensor_key(name, array.dtype.itemsize))

    def save(self, folder: Path) -> None:
        """Write ``centre.safetensors`` into ``folder``."""
        tensorfile.write(folder / "centre.safetensors", {name: self._host(a) for name, a in self.tensors.items()})

    def restore(self, folder: Path) -> None:
        """Read the tensors back in place; StorageError if the file is broken or of another model."""
        arrays = {name: self._host(a) for name, a in self.tensors.items()}
        tensorfile.read_into(folder / "centre.safetensors", arrays)
        for name, array in arrays.items():
            if array is not self.tensors[name]:
                self._kernels.copy(self.tensors[name], array)

    def _host(self, array: Any) -> Weights:
        """The array itself, or a copy of what lies on a GPU."""
        return array if isinstance(array, np.ndarray) else self._kernels.host(array)


def factors(centre: Centre, name: str, pairs: Sequence[tuple[int, int]]) -> tuple[Any, Any]:
    """A (P, m, r) and B (P, n, r), i.i.d. N(0, 1), of a tensor (m, n) and every (generation, pair)."""
    rank, drawn = centre.noise.rank, []
    for stream, rows in zip((Stream.FACTOR_A, Stream.FACTOR_B), centre.tensors[name].shape, strict=True):
        out = centre.empty((len(pairs), rows * rank), name)
        centre.fill_factors(name, stream, pairs, out)
        drawn.append(out.reshape(len(pairs), rows, rank))
    return drawn[0], drawn[1]
