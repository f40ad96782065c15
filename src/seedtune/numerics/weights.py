"""The current weights: the unperturbed trainable weights, exact, changed only by updates of seeds.

``gaussian``:  θ ← θ + Σₚ wₚ εₚ for every element;  ``lowrank``:  W ← W + Σₚ wₚ/√r · Aₚ Bₚᵀ.  The sum is float32 in the
order of the update's terms, element by element.  Float32 weights are rounded once per update, weights in the model's
own 16 bits by stochastic rounding from noise stream 3.  Same base and same updates give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedtune.numerics import fingerprint as fp
from seedtune.numerics import tensor_file
from seedtune.numerics.kernels.base import Kernels
from seedtune.numerics.noise import Address, Noise, Stream, key
from seedtune.numerics.rounding import widen
from seedtune.types import Member, Shift, Term, Update

WeightArray = NDArray[Any]
"""float32, float16, or uint16 that holds the bits of bfloat16; on a GPU a torch tensor instead."""

Anchor = Callable[[str], WeightArray]
"""Returns a tensor's base weights by name, for updates with decay."""

TENSORS, SAMPLE = 48, 1 << 12
"""Maximum tensors, and elements of each from its start, that a cosine samples: its error is 0.003."""

PIECE, DEVICE_PIECE = 1 << 16, 1 << 24
"""Elements that are added up in float64 at a time, in numpy and on a GPU."""


def cpu_kernels() -> Kernels:
    """Return the compiled kernels for numpy arrays (imported on first use: numba takes a moment)."""
    from seedtune.numerics.kernels import cpu

    return cpu


def tensor_fingerprint(name: str, array: WeightArray) -> fp.Fingerprint:
    """Return ``fingerprint.tensor_fingerprint`` by the compiled kernel; bfloat16 as its uint16 view."""
    bits = np.ascontiguousarray(fp.bits_of(array)).reshape(-1)
    return cpu_kernels().fingerprint(bits, fp.tensor_key(name, array.dtype.itemsize))


class Weights:
    """Trainable tensors under their Hugging Face names, C order: any shape, or two-dimensional for ``lowrank``.

    The arrays are used in place, so an engine's live weights may be views of them.  ``anchor`` returns base
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
        """Apply every update in order, in one pass over each tensor; without terms and decay it changes nothing."""
        moving = [update for update in updates if moves(update)]
        if not moving:
            return
        for name in self.tensors:
            self._apply(name, moving)

    def _apply(self, name: str, updates: Sequence[Update]) -> None:
        anchor = None
        if any(update.decay for update in updates):
            if self._anchor is None:
                raise ValueError("an update with decay needs the base weights")
            anchor = self._anchor(name)
        where, part = self.keys[name], self.tensors[name]
        how: dict[str, Any] = {"subspaces": self.noise.subspaces}
        if self.noise.perturbation == "lowrank":
            self._kernels.update_lowrank(part, where, updates, rank=self.noise.rank, anchor=anchor, **how)
            return
        flat = None if anchor is None else anchor.reshape(-1)
        self._kernels.update_gaussian(part.reshape(-1), where, updates, anchor=flat, **how)

    def part(self, tensors: Mapping[str, Any]) -> Weights:
        """Return other arrays under these names (copies, zeros, first rows), with the same noise and kernels."""
        return Weights(tensors, self.noise, kernels=self._kernels, anchor=self._anchor)

    def step(self, shift: Shift | None) -> Update | None:
        """Return the update that takes the current weights to where a ``shift`` puts the members; None for no shift.

        Weights in 16 bits are rounded as in an update of the generation of the shift's newest term.
        """
        if shift is None or not shift.terms:
            return None
        terms = shift.terms
        if shift.length is not None:
            norm = self.norm(terms)
            factor = shift.length / norm if norm else 0.0
            terms = tuple(term._replace(weight=term.weight * factor) for term in terms)
        return Update(max(term.generation for term in terms), terms)

    def norm(self, terms: Sequence[Term]) -> float:
        """Return ‖Σ weight·ε‖₂ over all elements, in float64 of the float32 sums of an update; one tensor at a time."""
        sums = (self._total(name, tuple(self.tensors[name].shape), terms) for name in self.tensors)
        return math.sqrt(math.fsum(_dot(total, total) for total in sums))

    def drift(self) -> float:
        """Return ‖θ − θ₀‖₂ over all elements, in float64, one tensor at a time."""
        if self._anchor is None:
            raise ValueError("the drift needs the base weights")
        squares = (squared_distance(array, self._anchor(name)) for name, array in self.tensors.items())
        return math.sqrt(math.fsum(squares))

    def cosine(self, one: Sequence[Term], other: Sequence[Term]) -> float:
        """Return the cosine between two updates, from the first elements of some tensors; 0 if an update is zero.

        That is enough: the noise of every tensor is drawn alike, and added with the same weights.
        """
        dots, names = [0.0, 0.0, 0.0], list(self.tensors)
        for name in names[:: -(-len(names) // TENSORS)]:
            x, y = (self._total(name, self._sampled(name), terms) for terms in (one, other))
            dots = [dot + more for dot, more in zip(dots, (_dot(x, y), _dot(x, x), _dot(y, y)), strict=True)]
        return dots[0] / math.sqrt(dots[1] * dots[2]) if dots[1] and dots[2] else 0.0

    def _sampled(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor's first SAMPLE elements, or for ``lowrank`` as many whole rows, at least one."""
        shape = self.tensors[name].shape
        if self.noise.perturbation == "lowrank":
            return min(shape[0], max(1, SAMPLE // shape[1])), shape[1]
        return (min(math.prod(shape), SAMPLE),)

    def _total(self, name: str, shape: tuple[int, ...], terms: Sequence[Term]) -> Any:
        """Return Σ weight·ε of the beginning of a tensor, float32."""
        zeros = self.empty(shape, name)
        zeros[...] = 0
        self.part({name: zeros}).apply(Update(0, tuple(terms)))
        return zeros

    def perturb(self, name: str, member: Member, sigma: float, out: Any) -> None:
        """Write a member's weights, round(θ + sign·σ·ε), into ``out`` (flat, the model's dtype); ``gaussian`` only."""
        address = Address(self.keys[name], Stream.GAUSSIAN, member.generation, member.pair)
        weights, subspaces = self.tensors[name].reshape(-1), self.noise.subspaces
        self._kernels.perturb(out, weights, member.sign * sigma, address, subspaces=subspaces)

    def fill_factors(self, name: str, stream: Stream, pairs: Sequence[tuple[int, int]], out: Any) -> None:
        """Write a low-rank factor of every (generation, pair) into ``out``, float32 (pairs, rows · rank)."""
        generations, indices = (np.array(column, np.uint32) for column in zip(*pairs, strict=True))
        how = {"rank": self.noise.rank, "subspaces": self.noise.subspaces}
        self._kernels.fill_factors(out, self.keys[name], stream, generations, indices, **how)

    def empty(self, shape: tuple[int, ...], name: str) -> Any:
        """Return a new float32 array on the device of the tensor ``name``."""
        return self._kernels.empty(shape, self.tensors[name])

    def fingerprint(self) -> str:
        """Return 128 bits over every element's value, position and tensor name; independent of order and sharding."""
        return fp.to_hex(fp.combine(self._fingerprint(name) for name in self.tensors))

    def _fingerprint(self, name: str) -> fp.Fingerprint:
        array = self.tensors[name]
        if isinstance(array, np.ndarray):
            return tensor_fingerprint(name, array)
        return self._kernels.fingerprint(array.reshape(-1), fp.tensor_key(name, array.dtype.itemsize))

    def save(self, folder: Path) -> None:
        """Write ``weights.safetensors`` into ``folder``."""
        tensor_file.write(folder / "weights.safetensors", {name: self._host(a) for name, a in self.tensors.items()})

    def restore(self, folder: Path) -> None:
        """Read the tensors back in place; StorageError if the file is broken or of another model."""
        arrays = {name: self._host(a) for name, a in self.tensors.items()}
        tensor_file.read_into(folder / "weights.safetensors", arrays)
        for name, array in arrays.items():
            if array is not self.tensors[name]:
                self._kernels.copy(self.tensors[name], array)

    def _host(self, array: Any) -> WeightArray:
        """Return the array itself, or a copy from the GPU."""
        return array if isinstance(array, np.ndarray) else self._kernels.host(array)


def _pieces(array: Any) -> Iterator[Any]:
    """Yield the elements in order, in float64."""
    flat = array.reshape(-1)
    size = PIECE if isinstance(flat, np.ndarray) else DEVICE_PIECE
    for first in range(0, math.prod(flat.shape), size):
        piece = flat[first : first + size]
        yield widen(piece).astype(np.float64) if isinstance(piece, np.ndarray) else piece.double()


def _dot(one: Any, other: Any) -> float:
    return math.fsum(float((x * y).sum()) for x, y in zip(_pieces(one), _pieces(other), strict=True))


def squared_distance(one: Any, other: Any) -> float:
    """Return ‖one − other‖² in float64."""
    return math.fsum(float(((x - y) ** 2).sum()) for x, y in zip(_pieces(one), _pieces(other), strict=True))


def factors(weights: Weights, name: str, pairs: Sequence[tuple[int, int]]) -> tuple[Any, Any]:
    """Return A (P, m, r) and B (P, n, r), i.i.d. N(0, 1), of a tensor (m, n) and every (generation, pair).

    With subspaces, rows of A outside of the pair's subspace are 0.
    """
    rank, drawn = weights.noise.rank, []
    for stream, rows in zip((Stream.FACTOR_A, Stream.FACTOR_B), weights.tensors[name].shape, strict=True):
        out = weights.empty((len(pairs), rows * rank), name)
        weights.fill_factors(name, stream, pairs, out)
        drawn.append(out.reshape(len(pairs), rows, rank))
    return drawn[0], drawn[1]


def moves(update: Update) -> bool:
    """Return whether an update changes anything."""
    return update.decay is not None or bool(update.terms)
