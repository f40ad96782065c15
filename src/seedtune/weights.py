"""The centre: the unperturbed trainable weights, exact in float32, moved only by updates of seeds.

Low-rank update of a tensor W (m, n):  W ← W + Σₚ wₚ/√r · Aₚ Bₚᵀ, summed in float32 in the order of the
update's terms, element by element, and rounded once.  Same base and same updates give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from seedtune import fingerprint as fp
from seedtune import noise
from seedtune.errors import StorageError
from seedtune.types import Term, Update

Weights = NDArray[np.float32]


def tensor_fingerprint(name: str, array: NDArray[Any]) -> fp.Fingerprint:
    """``fingerprint.tensor_fingerprint`` by the compiled kernel; bfloat16 as its uint16 view."""
    from seedtune.kernels import cpu

    bits = np.ascontiguousarray(fp.bits_of(array)).reshape(-1)
    return cpu.fingerprint(bits, fp.tensor_key(name, array.dtype.itemsize))


class Factors:
    """The low-rank factors of one tensor's noise: Aₚ (m, r) and Bₚ (n, r), i.i.d. N(0, 1), by address."""

    def __init__(self, run_seed: int, name: str, shape: tuple[int, int], rank: int) -> None:
        self.key, self.shape, self.rank = noise.key(run_seed, name), shape, rank

    def fill(self, pairs: list[tuple[int, int]]) -> tuple[Weights, Weights]:
        """A (P, m, r) and B (P, n, r) for every (generation, pair)."""
        return (
            self._fill(noise.Stream.FACTOR_A, self.shape[0], pairs),
            self._fill(noise.Stream.FACTOR_B, self.shape[1], pairs),
        )

    def _fill(self, stream: noise.Stream, rows: int, pairs: list[tuple[int, int]]) -> Weights:
        from seedtune.kernels import cpu

        out = np.empty((len(pairs), rows * self.rank), np.float32)
        generations, indices = (np.array(column, np.uint32) for column in zip(*pairs, strict=True))
        cpu.fill_factors(out, self.key, stream, generations, indices)
        return out.reshape(len(pairs), rows, self.rank)


class Centre:
    """Trainable tensors under their Hugging Face names, float32, C order, two-dimensional.

    The arrays are used in place, so an engine may let its live weights be views of them.
    """

    def __init__(self, tensors: Mapping[str, Weights], *, run_seed: int, rank: int) -> None:
        self.tensors = dict(tensors)
        self.factors = {
            name: Factors(run_seed, name, (array.shape[0], array.shape[1]), rank) for name, array in tensors.items()
        }
        self.rank = rank

    def apply(self, update: Update) -> None:
        """θ ← θ + Σ weight·ε, exactly; an update without terms changes nothing."""
        if not update.terms:
            return
        for name in self.tensors:
            self._apply(name, update.terms)

    def _apply(self, name: str, terms: tuple[Term, ...]) -> None:
        from seedtune.kernels import cpu

        a, b = self.factors[name].fill([(term.generation, term.pair) for term in terms])
        weights = np.array([term.weight / math.sqrt(self.rank) for term in terms], np.float32)
        cpu.add_lowrank(self.tensors[name], a, b, weights)

    def fingerprint(self) -> str:
        """128 bits over every element's value, place and tensor name; independent of order and sharding."""
        return fp.to_hex(fp.combine(tensor_fingerprint(name, array) for name, array in self.tensors.items()))

    def save(self, folder: Path) -> None:
        """Write ``centre.safetensors`` into ``folder``."""
        save_file(self.tensors, folder / "centre.safetensors")

    def restore(self, folder: Path) -> None:
        """Read the tensors back in place; StorageError if the file is broken or of another model."""
        path = folder / "centre.safetensors"
        try:
            stored = load_file(path)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"cannot read {path}: {error}. Delete the snapshot and resume again.") from error
        if {n: a.shape for n, a in stored.items()} != {n: a.shape for n, a in self.tensors.items()}:
            raise StorageError(f"{path} does not hold this model's tensors. Delete the snapshot and resume again.")
        for name, array in stored.items():
            self.tensors[name][...] = array
