"""The centre: the unperturbed trainable weights, exact, moved only by updates of seeds.

``gaussian``:  θ ← θ + Σₚ wₚ εₚ for every element;  ``lowrank``:  W ← W + Σₚ wₚ/√r · Aₚ Bₚᵀ.  The sum is float32 in the
order of the update's terms, element by element.  A float32 centre is rounded once per update, a centre in the
model's own 16 bits by stochastic rounding from noise stream 3.  Same base and same updates give the same bits.
An update with moments steps by them instead of the sum; they are rebuilt from seeds, band by band, and not kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedtune.numerics import fingerprint as fp
from seedtune.numerics import tensor_file
from seedtune.numerics.kernels.base import Kernels
from seedtune.numerics.noise import Address, Noise, Stream, key
from seedtune.numerics.rounding import widen
from seedtune.types import Member, Moments, Shift, Term, Update

Weights = NDArray[Any]
"""float32, float16, or uint16 that holds the bits of bfloat16; on a GPU a torch tensor takes its place."""

BAND = 1 << 20
"""Elements of a tensor whose moments are rebuilt at a time: three float32 buffers of 4 MB, or of one row."""

Anchor = Callable[[str], Weights]
"""Gives a tensor's base weights, for updates with decay."""

TENSORS, SAMPLE = 48, 1 << 12
"""A cosine looks at the beginnings of at most so many tensors, of so many elements: it has an error of 0.003."""

PIECE, DEVICE_PIECE = 1 << 16, 1 << 24
"""Elements that are added up in float64 at a time, in numpy and on a GPU."""


def cpu_kernels() -> Kernels:
    """The compiled kernels for numpy arrays (imported on first use: numba takes a moment)."""
    from seedtune.numerics.kernels import cpu

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
        """Every update in order, in one pass over each tensor; one without terms and decay changes nothing.

        An update with moments takes a pass of its own, in which the sum of every generation of its window is drawn.
        """
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
        for by_moments, group in groupby(updates, lambda update: update.moments is not None):
            if not by_moments:
                self._add(name, self.tensors[name], list(group), anchor=anchor)
                continue
            for update in group:
                self._step(name, update, anchor)

    def _add(self, name: str, part: Any, updates: Sequence[Update], *, first: int = 0, anchor: Any = None) -> None:
        """Plain updates of a tensor, or of its rows ``first ..`` (elements, if it has other than two dimensions)."""
        where = self.keys[name]
        how: dict[str, Any] = {"subspaces": self.noise.subspaces}
        if self.noise.perturbation == "lowrank":
            place: dict[str, Any] = {"shape": self.tensors[name].shape, "row_start": first, "anchor": anchor}
            self._kernels.update_lowrank(part, where, updates, rank=self.noise.rank, **place, **how)
            return
        flat = None if anchor is None else anchor.reshape(-1)
        self._kernels.update_full(part.reshape(-1), where, updates, start=first, anchor=flat, **how)

    def _step(self, name: str, update: Update, anchor: Any) -> None:
        """One update with moments, band by band."""
        whole = self.tensors[name]
        flat = whole.reshape(-1)
        base = None if anchor is None else anchor.reshape(-1)
        for low, high in _bands(whole.shape, self.noise.perturbation):
            step = self._moments(name, update, (low, high))
            here = None if base is None else base[low:high]
            self._kernels.settle(flat[low:high], step, self.keys[name], update, start=low, anchor=here)

    def _moments(self, name: str, update: Update, band: tuple[int, int]) -> Any:
        """α·m̂/(√v̂ + epsilon) of elements ``band``, in float32; m̂ is m times a factor that is rounded once, so is v̂."""
        moments, kernels, size = update.moments, self._kernels, band[1] - band[0]
        assert moments is not None
        m, v, g = (self.empty((size,), name) for _ in range(3))
        m[...], v[...] = 0, 0
        for terms in (*moments.past, update.terms):
            self._sum(name, terms, band[0], g)
            kernels.moments(m, v, g, moments.beta1, moments.beta2)
        kernels.scaled(m, v, moment_factors(moments))
        return m

    def _sum(self, name: str, terms: tuple[Term, ...], low: int, out: Any) -> None:
        """Σ weight·ε of elements ``low ..`` into ``out``, flat float32."""
        out[...] = 0
        if self.noise.perturbation == "lowrank":
            columns = self.tensors[name].shape[1]
            self._add(name, out.reshape(-1, columns), [Update(0, terms)], first=low // columns)
        else:
            self._add(name, out, [Update(0, terms)], first=low)

    def part(self, tensors: Mapping[str, Any]) -> Centre:
        """Other arrays under these names (copies, zeros, first rows), moved by the same noise and the same kernels."""
        return Centre(tensors, self.noise, kernels=self._kernels, anchor=self._anchor)

    def step(self, shift: Shift | None) -> Update | None:
        """The update that would take the centre to where the members of a ``shift`` stand; None for no shift.

        Of a centre in 16 bits it is rounded as an update of the generation of the shift's newest term.
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
        """‖Σ weight·ε‖₂ over all elements, in float64 of the float32 sums that an update adds; one tensor at a time."""
        sums = (self._total(name, tuple(self.tensors[name].shape), terms) for name in self.tensors)
        return math.sqrt(math.fsum(_dot(total, total) for total in sums))

    def drift(self) -> float:
        """‖θ − θ₀‖₂ over all elements, in float64, one tensor at a time."""
        if self._anchor is None:
            raise ValueError("the drift needs the base weights")
        squares = (squared_distance(array, self._anchor(name)) for name, array in self.tensors.items())
        return math.sqrt(math.fsum(squares))

    def cosine(self, one: Sequence[Term], other: Sequence[Term]) -> float:
        """The cosine between two updates, seen in the beginnings of some tensors; 0 if one of them goes nowhere.

        That is enough: the noise of every tensor is drawn alike, and added with the same weights.
        """
        dots, names = [0.0, 0.0, 0.0], list(self.tensors)
        for name in names[:: -(-len(names) // TENSORS)]:
            x, y = (self._total(name, self._sampled(name), terms) for terms in (one, other))
            dots = [dot + more for dot, more in zip(dots, (_dot(x, y), _dot(x, x), _dot(y, y)), strict=True)]
        return dots[0] / math.sqrt(dots[1] * dots[2]) if dots[1] and dots[2] else 0.0

    def _sampled(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor's first SAMPLE elements, or for ``lowrank`` as many whole rows, at least one."""
        shape = self.tensors[name].shape
        if self.noise.perturbation == "lowrank":
            return min(shape[0], max(1, SAMPLE // shape[1])), shape[1]
        return (min(math.prod(shape), SAMPLE),)

    def _total(self, name: str, shape: tuple[int, ...], terms: Sequence[Term]) -> Any:
        """Σ weight·ε of the beginning of a tensor, float32."""
        zeros = self.empty(shape, name)
        zeros[...] = 0
        self.part({name: zeros}).apply(Update(0, tuple(terms)))
        return zeros

    def perturb(self, name: str, member: Member, sigma: float, out: Any) -> None:
        """Write a member's weights, round(θ + sign·σ·ε), into ``out`` (flat, the model's type); ``gaussian`` only."""
        address = Address(self.keys[name], Stream.FULL, member.generation, member.pair)
        centre, subspaces = self.tensors[name].reshape(-1), self.noise.subspaces
        self._kernels.perturb(out, centre, member.sign * sigma, address, subspaces=subspaces)

    def fill_factors(self, name: str, stream: Stream, pairs: Sequence[tuple[int, int]], out: Any) -> None:
        """Write a low-rank factor of every (generation, pair) into ``out``, float32 (pairs, rows · rank)."""
        generations, indices = (np.array(column, np.uint32) for column in zip(*pairs, strict=True))
        how = {"rank": self.noise.rank, "subspaces": self.noise.subspaces}
        self._kernels.fill_factors(out, self.keys[name], stream, generations, indices, **how)

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
        tensor_file.write(folder / "centre.safetensors", {name: self._host(a) for name, a in self.tensors.items()})

    def restore(self, folder: Path) -> None:
        """Read the tensors back in place; StorageError if the file is broken or of another model."""
        arrays = {name: self._host(a) for name, a in self.tensors.items()}
        tensor_file.read_into(folder / "centre.safetensors", arrays)
        for name, array in arrays.items():
            if array is not self.tensors[name]:
                self._kernels.copy(self.tensors[name], array)

    def _host(self, array: Any) -> Weights:
        """The array itself, or a copy of what lies on a GPU."""
        return array if isinstance(array, np.ndarray) else self._kernels.host(array)


def _pieces(array: Any) -> Iterator[Any]:
    """The elements in order, in float64."""
    flat = array.reshape(-1)
    size = PIECE if isinstance(flat, np.ndarray) else DEVICE_PIECE
    for first in range(0, math.prod(flat.shape), size):
        piece = flat[first : first + size]
        yield widen(piece).astype(np.float64) if isinstance(piece, np.ndarray) else piece.double()


def _dot(one: Any, other: Any) -> float:
    return math.fsum(float((x * y).sum()) for x, y in zip(_pieces(one), _pieces(other), strict=True))


def squared_distance(one: Any, other: Any) -> float:
    """‖one − other‖² in float64."""
    return math.fsum(float(((x - y) ** 2).sum()) for x, y in zip(_pieces(one), _pieces(other), strict=True))


def factors(centre: Centre, name: str, pairs: Sequence[tuple[int, int]]) -> tuple[Any, Any]:
    """A (P, m, r) and B (P, n, r), i.i.d. N(0, 1), of a tensor (m, n) and every (generation, pair).

    With subspaces, rows of A outside of the pair's are 0.
    """
    rank, drawn = centre.noise.rank, []
    for stream, rows in zip((Stream.FACTOR_A, Stream.FACTOR_B), centre.tensors[name].shape, strict=True):
        out = centre.empty((len(pairs), rows * rank), name)
        centre.fill_factors(name, stream, pairs, out)
        drawn.append(out.reshape(len(pairs), rows, rank))
    return drawn[0], drawn[1]


def moves(update: Update) -> bool:
    """Whether an update does anything: it decays, or it, or the window of its moments, has terms."""
    window = () if update.moments is None else update.moments.past
    return update.decay is not None or any((update.terms, *window))


def _bands(shape: Sequence[int], perturbation: str) -> Iterator[tuple[int, int]]:
    """A tensor's elements in runs of about `BAND`: whole rows if the noise is low-rank."""
    size, unit = math.prod(shape), shape[1] if perturbation == "lowrank" else 1
    width = max(1, BAND // max(1, unit)) * unit
    for low in range(0, size, max(1, width)):
        yield low, min(size, low + width)


def moment_factors(moments: Moments) -> tuple[float, float, float]:
    """(α/(1 − β₁ⁿ), 1/(1 − β₂ⁿ), epsilon) for a window of n generations; ValueError for what cannot be divided by."""
    count = len(moments.past) + 1
    if not (0 <= moments.beta1 < 1 and 0 <= moments.beta2 < 1 and moments.epsilon > 0):
        found = (moments.beta1, moments.beta2, moments.epsilon)
        raise ValueError(f"moments need betas in [0, 1) and epsilon above 0, not {found}")
    return moments.alpha / (1 - moments.beta1**count), 1 / (1 - moments.beta2**count), moments.epsilon
