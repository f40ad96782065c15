"""The current weights: the unperturbed trainable weights, exact, changed only by updates of seeds.

``gaussian``:  θ ← θ + Σₚ wₚ εₚ for every element;  ``lowrank``:  W ← W + Σₚ wₚ/√r · Aₚ Bₚᵀ;  ``flipout``:
W ← W + Σₖ Uₖ ⊙ Σₚ wₚ rₚ sₚᵀ.  The sum is float32 in the order of the update's terms, element by element (of flipout
those with one U together, see `kernels.base`).  Float32 weights are rounded once per update, weights in the model's
own 16 bits by stochastic rounding from noise stream 3.  Same base and same updates give the same bits.

Every kernel works on whole rows, or on contiguous elements.  A slice that is narrower than its tensor is copied into
whole rows of scratch memory, band by band, processed there and copied back: so it needs no kernel of its own, and its
bits equal those of the undivided tensor.  Weights in host memory are brought to a GPU in such bands, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedtune.numerics import fingerprint as fp
from seedtune.numerics import tensor_file
from seedtune.numerics.kernels.base import Kernels
from seedtune.numerics.noise import Address, Noise, Stream, key, shared_address
from seedtune.numerics.rounding import dtype_of, widen
from seedtune.numerics.slices import Slice
from seedtune.numerics.tensor_file import Stored
from seedtune.types import Member, Shift, Term, Update

WeightArray = NDArray[Any]
"""float32, float16, or uint16 that holds the bits of bfloat16; on a GPU a torch tensor instead."""

Anchor = Callable[[str], WeightArray]
"""Returns a tensor's base weights by name, for updates with decay."""

FILE = "weights.safetensors"
"""Name of the file with the current weights in a snapshot."""

TENSORS, SAMPLE = 48, 1 << 12
"""Maximum tensors, and elements of each from its start, that a cosine samples: its error is 0.003."""

PIECE, DEVICE_PIECE = 1 << 16, 1 << 24
"""Elements that are added up in float64 at a time, in numpy and on a GPU."""


def cpu_kernels() -> Any:
    """Return the compiled kernels for numpy arrays (imported on first use: numba takes a moment)."""
    from seedtune.numerics.kernels import cpu

    return cpu


def tensor_fingerprint(name: str, array: WeightArray, own: Slice | None = None) -> fp.Fingerprint:
    """Return the fingerprint of a tensor, or the share of a slice of it, by the compiled kernel; bfloat16 as uint16."""
    bits = np.ascontiguousarray(fp.bits_of(array))
    where = fp.tensor_key(name, array.dtype.itemsize)
    if own is None or own.whole_rows:
        return cpu_kernels().fingerprint(bits.reshape(-1), where, 0 if own is None else own.start())
    whole = own.rows.whole, own.columns.whole
    corner = {"row_start": own.rows.first, "col_start": own.columns.first}
    return cpu_kernels().fingerprint_slice(bits.reshape(own.shape), where, whole, **corner)


class Weights:
    """Trainable tensors under their Hugging Face names, C order: two-dimensional, or any shape for ``gaussian``.

    The arrays are used in place, so an engine's live weights may be views of them.  ``anchor`` returns base
    weights by name, which only updates with decay need.  With ``slices`` every array is a rank's slice of its tensor.
    With ``upload``, which copies an array to a device, arrays are kept in host memory, and the kernels compute there.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        noise: Noise,
        *,
        kernels: Kernels | None = None,
        anchor: Anchor | None = None,
        slices: Mapping[str, Slice] | None = None,
        upload: Callable[[Any], Any] | None = None,
    ) -> None:
        self.tensors, self.noise = dict(tensors), noise
        self.keys = {name: key(noise.run_seed, name) for name in tensors}
        self.slices = slices or {name: Slice.all_of(tuple(array.shape)) for name, array in tensors.items()}
        self._kernels: Kernels = cpu_kernels() if kernels is None else kernels
        self._anchor, self._upload = anchor, upload

    def apply(self, *updates: Update) -> None:
        """Apply every update in order, in one pass over each tensor; without terms and decay it changes nothing."""
        moving = [update for update in updates if update.decay is not None or update.terms]
        for name in self.tensors if moving else ():
            self._apply(name, moving)

    def _apply(self, name: str, updates: Sequence[Update]) -> None:
        own, tensor = self.slices[name], self._grid(name, self.tensors[name])
        base = self._grid(name, self._base(name)) if any(update.decay for update in updates) else None
        for band in own.bands(small=self._upload is not None):
            part = tensor[band]
            rows = own.widen(self._uploaded(part))
            self._move(name, rows, updates, row=band.start, base=None if base is None else self._uploaded(base[band]))
            self._take_back(name, rows, part)

    def _move(self, name: str, rows: Any, updates: Sequence[Update], *, row: int, base: Any) -> None:
        """Apply updates to whole rows, from a row of the slice on."""
        own, where, subspaces = self.slices[name], self.keys[name], self.noise.subspaces
        anchor = None if base is None else own.widen(base)
        place: dict[str, Any] = {"shape": (own.rows.whole, own.columns.whole), "row_start": own.rows.first + row}
        if self.noise.perturbation == "lowrank":
            options = {"rank": self.noise.rank, "subspaces": subspaces, **place}
            self._kernels.update_lowrank(rows, where, updates, anchor=anchor, **options)
            return
        if self.noise.perturbation == "flipout":
            options = {"shared_noise": self.noise.shared_noise, **place}
            self._kernels.update_flipout(rows, where, updates, anchor=anchor, **options)
            return
        flat, start = None if anchor is None else anchor.reshape(-1), own.start(row)
        self._kernels.update_gaussian(rows.reshape(-1), where, updates, start=start, anchor=flat, subspaces=subspaces)

    def _take_back(self, name: str, rows: Any, part: Any) -> None:
        """Copy changed whole rows back to the part that they were made from, unless they are that part."""
        if rows is not part:
            part[...] = self.slices[name].narrow(rows if self._upload is None else self._kernels.host(rows))

    def _grid(self, name: str, array: Any) -> Any:
        """View an array of the slice as (rows, columns)."""
        return array.reshape(self.slices[name].shape)

    def _base(self, name: str) -> WeightArray:
        if self._anchor is None:
            raise ValueError("a drift or an update with decay needs the base weights")
        return self._anchor(name)

    def _uploaded(self, part: Any) -> Any:
        """Return a part on the device where the kernels compute."""
        return part if self._upload is None else self._upload(part)

    def part(self, tensors: Mapping[str, Any]) -> Weights:
        """Return other arrays under these names (copies, base weights), with the same noise, slices and kernels."""
        other = copy(self)
        other.tensors = dict(tensors)
        return other

    def moved(self, update: Update) -> Weights:
        """Return a copy moved by an update."""
        other = self.part({n: a.copy() if isinstance(a, np.ndarray) else a.clone() for n, a in self.tensors.items()})
        other.apply(update)
        return other

    def step(self, shift: Shift | Update | None) -> Update | None:
        """Return the update that takes the current weights to where a ``shift`` puts the members; None for no shift.

        A shift that is an update already is returned as it is.

        Weights in 16 bits are rounded as in an update of the generation of the shift's newest term.
        """
        if isinstance(shift, Update):
            return shift
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
        wholes = ((name, self.slices[name]) for name in self.tensors)
        sums = (self._total(name, own.rows.whole, own.columns.whole, terms) for name, own in wholes)
        return math.sqrt(math.fsum(_dot(total, total) for total in sums))

    def drift(self) -> float:
        """Return ‖θ − θ₀‖₂ over all elements, in float64, one tensor at a time."""
        return math.sqrt(math.fsum(self.squares()))

    def squares(self) -> list[float]:
        """Return ‖θ − θ₀‖² of every tensor, of the slices that this rank owns."""
        return [squared_distance(self.tensors[name], self._base(name)) for name in self._owned()]

    def _owned(self) -> list[str]:
        return [name for name in self.tensors if self.slices[name].owned]

    def cosine(self, one: Sequence[Term], other: Sequence[Term]) -> float:
        """Return the cosine between two updates, from the first elements of some tensors; 0 if an update is zero.

        That is enough: the noise of every tensor is drawn alike, and added with the same weights.
        """
        dots, names = [0.0, 0.0, 0.0], list(self.tensors)
        for name in names[:: -(-len(names) // TENSORS)]:
            x, y = (self._total(name, *self._sampled(name), terms) for terms in (one, other))
            dots = [dot + more for dot, more in zip(dots, (_dot(x, y), _dot(x, x), _dot(y, y)), strict=True)]
        return dots[0] / math.sqrt(dots[1] * dots[2]) if dots[1] and dots[2] else 0.0

    def _sampled(self, name: str) -> tuple[int, int]:
        """Return the shape of a tensor's first SAMPLE elements; unless ``gaussian``, of whole rows, at least one."""
        rows, columns = self.slices[name].rows.whole, self.slices[name].columns.whole
        if self.noise.perturbation != "gaussian":
            return min(rows, max(1, SAMPLE // columns)), columns
        return 1, min(rows * columns, SAMPLE)

    def _total(self, name: str, rows: int, columns: int, terms: Sequence[Term]) -> Any:
        """Return Σ weight·ε of the beginning of a whole tensor, float32."""
        zeros = self.empty((rows, columns), name)
        zeros[...] = 0
        Weights({name: zeros}, self.noise, kernels=self._kernels).apply(Update(0, tuple(terms)))
        return zeros

    def perturb(self, name: str, member: Member, sigma: float, out: Any) -> None:
        """Write a member's weights, round(θ + sign·σ·ε), into ``out``, in the model's dtype."""
        scale, own = member.sign * sigma, self.slices[name]
        weights, out = self._grid(name, self.tensors[name]), self._grid(name, out)
        if not scale:
            own = Slice.all_of(own.shape)  # rounding alone is independent of the position
        for band in own.bands(small=self._upload is not None):
            rows, part = own.widen(self._uploaded(weights[band])), out[band]
            live = own.widen(part)
            if scale and self.noise.perturbation != "gaussian":
                self._perturb_rows(name, rows, live, Term(member.generation, member.pair, scale), row=band.start)
            else:
                address = Address(self.keys[name], Stream.GAUSSIAN, member.generation, member.pair)
                options: dict[str, Any] = {"start": own.start(band.start), "subspaces": self.noise.subspaces}
                self._kernels.perturb(live.reshape(-1), rows.reshape(-1), scale, address, **options)
            if live is not part:
                part[...] = own.narrow(live)

    def _perturb_rows(self, name: str, rows: Any, live: Any, term: Term, *, row: int) -> None:
        """Write whole rows moved by one term, as an update in float32 moves them, rounded to nearest, into ``live``."""
        moved = widen(rows).copy() if isinstance(rows, np.ndarray) else rows.float().clone()
        self._move(name, moved, (Update(0, (term,)),), row=row, base=None)
        self._kernels.perturb(live.reshape(-1), moved.reshape(-1), 0.0, Address(self.keys[name]))

    def fill_factors(self, name: str, stream: Stream, pairs: Sequence[tuple[int, int]], out: Any) -> None:
        """Write a low-rank factor of every (generation, pair) into ``out``, float32 (pairs, rows · rank)."""
        generations, indices = (np.array(column, np.uint32) for column in zip(*pairs, strict=True))
        options = {"rank": self.noise.rank, "subspaces": self.noise.subspaces}
        self._kernels.fill_factors(out, self.keys[name], stream, generations, indices, **options)

    def fill_signs(self, name: str, stream: Stream, pairs: Sequence[tuple[int, int]], out: Any) -> None:
        """Write a sign factor of every (generation, pair) into ``out``, float32 (pairs, rows)."""
        generations, indices = (np.array(column, np.uint32) for column in zip(*pairs, strict=True))
        self._kernels.fill_signs(out, self.keys[name], stream, generations, indices)

    def shared(self, name: str, generation: int, pair: int) -> Any:
        """Return the normals U (rows, columns) that a pair shares of a whole tensor, float32; ``flipout`` only."""
        own = self.slices[name]
        out = self.empty((own.rows.whole, own.columns.whole), name)
        address = shared_address(Address(self.keys[name], Stream.SHARED, generation, pair), self.noise.shared_noise)
        self._kernels.fill_normals(out.reshape(-1), address)
        return out

    def empty(self, shape: tuple[int, ...], name: str) -> Any:
        """Return a new float32 array on the device where the kernels compute."""
        return self._kernels.empty(shape, self._uploaded(self.tensors[name].reshape(-1)[:0]))

    def fingerprint(self) -> str:
        """Return 128 bits over every element's value, position and tensor name; independent of order and sharding."""
        return fp.to_hex(self.share())

    def share(self) -> fp.Fingerprint:
        """Return the share of this rank's own elements in the fingerprint of the current weights."""
        return fp.combine(self._fingerprint(name) for name in self._owned())

    def _fingerprint(self, name: str) -> fp.Fingerprint:
        array, own = self.tensors[name], self.slices[name]
        if isinstance(array, np.ndarray) or not own.whole_rows:
            return tensor_fingerprint(name, self._host(array), own)
        where = fp.tensor_key(name, array.dtype.itemsize)
        return self._kernels.fingerprint(array.reshape(-1), where, own.start())

    def save(self, folder: Path) -> None:
        """Write ``weights.safetensors`` into ``folder``."""
        tensor_file.write(folder / FILE, {name: self._host(array) for name, array in self.tensors.items()})

    def write(self, places: Mapping[str, Stored]) -> None:
        """Write this rank's own elements into files that have room for whole tensors."""
        for name in self._owned():
            own = self.slices[name]
            own.of(tensor_file.window(places[name], "r+"))[...] = self._host(self._grid(name, self.tensors[name]))

    def restore(self, folder: Path) -> None:
        """Read the tensors back in place; StorageError if the file is broken or of another model."""
        heads = {name: self._host(array.reshape(-1)[:0]) for name, array in self.tensors.items()}
        kinds = {
            name: tensor_file.Kind(dtype_of(head), tuple(self.tensors[name].shape)) for name, head in heads.items()
        }
        self.read(tensor_file.expect(folder / FILE, kinds))

    def read(self, places: Mapping[str, Stored]) -> None:
        """Read this rank's elements of whole tensors from files, in place."""
        for name, array in self.tensors.items():
            source = self.slices[name].of(tensor_file.window(places[name])).reshape(array.shape)
            if isinstance(array, np.ndarray):
                array[...] = source
            else:
                self._kernels.copy(array, np.array(source))

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
    """Return A (P, m, r) and B (P, n, r), i.i.d. N(0, 1), of a whole tensor (m, n) and every (generation, pair).

    With subspaces, rows of A outside of the pair's subspace are 0.
    """
    rank, drawn = weights.noise.rank, []
    for stream, rows in _sides(weights.slices[name]):
        out = weights.empty((len(pairs), rows * rank), name)
        weights.fill_factors(name, stream, pairs, out)
        drawn.append(out.reshape(len(pairs), rows, rank))
    return drawn[0], drawn[1]


def signs(weights: Weights, name: str, pairs: Sequence[tuple[int, int]]) -> tuple[Any, Any]:
    """Return r (P, m) and s (P, n), -1 or 1, of a whole tensor (m, n) and every (generation, pair)."""
    drawn = []
    for stream, count in _sides(weights.slices[name]):
        out = weights.empty((len(pairs), count), name)
        weights.fill_signs(name, stream, pairs, out)
        drawn.append(out)
    return drawn[0], drawn[1]


def _sides(own: Slice) -> tuple[tuple[Stream, int], tuple[Stream, int]]:
    """Return the streams and lengths of the factors of a whole tensor's rows and columns."""
    return (Stream.FACTOR_A, own.rows.whole), (Stream.FACTOR_B, own.columns.whole)
