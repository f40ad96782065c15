"""A rank's part of the current weights: rectangles of Hugging Face tensors, updated and perturbed like whole tensors.

Every kernel works on whole rows, or on contiguous elements.  A rectangle that is narrower than its tensor is copied
into whole rows of scratch memory, band by band, processed there and copied back: so it needs no kernel of its own,
and its bits equal those of the undivided tensor.  Weights in host memory are brought to the GPU in such bands, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seedtune.engines.vllm.tensor_layout import Piece
from seedtune.numerics import fingerprint as fp
from seedtune.numerics.kernels import cpu
from seedtune.numerics.kernels.base import Kernels
from seedtune.numerics.noise import Address, Noise, Stream, key
from seedtune.numerics.weights import moves, squared_distance
from seedtune.types import Member, Update

PieceAnchor = Callable[[Piece], Any]
"""Returns the base weights of a piece, (rows, columns) of any dtype, on the device of the current weights."""

BAND = 1 << 20
"""Elements of whole rows that are copied to scratch memory, or to the device, at a time."""

Upload = Callable[[Any], Any]
"""Returns a copy of a host array on the device."""


@dataclass(slots=True)
class Shard:
    """A piece and its elements of the weights, (rows, columns), contiguous: numpy on the host, torch on a GPU."""

    piece: Piece
    theta: Any

    @property
    def start(self) -> int:
        """The linear index in the whole tensor of the first element of the first row."""
        return self.piece.rows.first * self.piece.columns.whole

    def bands(self, *, small: bool = False) -> Iterator[tuple[int, int]]:
        """Yield runs of rows to process at a time: all rows if none are copied to scratch and ``small`` is not set."""
        rows = self.piece.rows.size
        whole = self.piece.whole_rows and not small
        step = max(1, rows if whole else BAND // max(1, self.piece.columns.whole))
        for low in range(0, rows, step):
            yield low, min(rows, low + step)


class ShardedWeights:
    """The shards of a rank by Hugging Face name; the noise, the kernels and the arithmetic are those of `Weights`.

    With ``upload`` shards are kept in host memory, and the kernels compute on a device.
    """

    def __init__(
        self,
        shards: Mapping[str, Shard],
        noise: Noise,
        *,
        kernels: Kernels,
        anchor: PieceAnchor,
        upload: Upload | None = None,
    ) -> None:
        self.shards, self.noise = dict(shards), noise
        self.keys = {name: key(noise.run_seed, name) for name in shards}
        self._kernels, self._anchor, self._upload = kernels, anchor, upload

    def apply(self, *updates: Update) -> None:
        """Apply every update in order, in one pass over each shard; see `weights.Weights.apply`."""
        moving = [update for update in updates if moves(update)]
        for shard in self.shards.values() if moving else ():
            self._apply(shard, moving)

    def moved(self, update: Update) -> ShardedWeights:
        """Return a copy moved by an update."""
        shards = {name: Shard(one.piece, _copy(one.theta)) for name, one in self.shards.items()}
        how: dict[str, Any] = {"kernels": self._kernels, "anchor": self._anchor, "upload": self._upload}
        other = ShardedWeights(shards, self.noise, **how)
        other.apply(update)
        return other

    def _apply(self, shard: Shard, updates: Sequence[Update]) -> None:
        decays = any(update.decay for update in updates)
        anchor = self._anchor(shard.piece) if decays else None
        for low, high in shard.bands(small=self._upload is not None):
            rows = _laid_out(self._up(shard.theta[low:high]), shard.piece)
            base = None if anchor is None else _laid_out(self._up(anchor[low:high]), shard.piece)
            self._add(shard.piece, rows, updates, first=shard.piece.rows.first + low, base=base)
            self._take_back(rows, shard.theta[low:high], shard.piece)

    def _up(self, part: Any) -> Any:
        """Return a part on the device where the kernels compute."""
        return part if self._upload is None else self._upload(part)

    def _take_back(self, rows: Any, part: Any, piece: Piece) -> None:
        """Copy the updated whole rows back to ``part``."""
        if self._upload is None:
            _take_out(rows, part, piece)
        else:
            part[...] = self.host(rows)[:, piece.columns.first : piece.columns.stop]

    def _add(self, piece: Piece, rows: Any, updates: Sequence[Update], *, first: int, base: Any) -> None:
        """Apply updates to whole rows (n, columns) that begin at row ``first``."""
        where, subspaces = self.keys[piece.name], self.noise.subspaces
        if self.noise.perturbation == "lowrank":
            shape = (piece.rows.whole, piece.columns.whole)
            place: dict[str, Any] = {"shape": shape, "row_start": first, "anchor": base, "subspaces": subspaces}
            self._kernels.update_lowrank(rows, where, updates, rank=self.noise.rank, **place)
            return
        flat = None if base is None else base.reshape(-1)
        start = first * piece.columns.whole
        self._kernels.update_gaussian(rows.reshape(-1), where, updates, start=start, anchor=flat, subspaces=subspaces)

    def write(self, name: str, member: Member, sigma: float, out: Any) -> None:
        """Write a member's weights, round(θ + sign·σ·ε), into ``out``: (rows, columns) of the model's dtype."""
        shard = self.shards[name]
        address = Address(self.keys[name], Stream.GAUSSIAN, member.generation, member.pair)
        scale, how = member.sign * sigma, {"subspaces": self.noise.subspaces}
        narrow = scale != 0 and not shard.piece.whole_rows  # rounding alone is independent of the position
        for low, high in shard.bands(small=self._upload is not None):
            rows = wide = self._up(shard.theta[low:high])
            live = written = out[low:high]
            if narrow:
                wide, written = _laid_out(rows, shard.piece), _laid_out(live, shard.piece)
            start = shard.start + low * shard.piece.columns.whole
            self._kernels.perturb(written.reshape(-1), wide.reshape(-1), scale, address, start, **how)
            if narrow:
                _take_out(written, live, shard.piece)

    def fingerprint(self) -> fp.Fingerprint:
        """Return the share of this rank's own elements in the fingerprint of the current weights."""
        return fp.combine(self._fingerprint(one) for one in self.shards.values() if one.piece.owned)

    def _fingerprint(self, shard: Shard) -> fp.Fingerprint:
        piece, theta = shard.piece, shard.theta
        own = fp.tensor_key(piece.name, theta.dtype.itemsize)
        if isinstance(theta, torch.Tensor) and piece.whole_rows:
            return self._kernels.fingerprint(theta.reshape(-1), own, shard.start)
        bits = np.ascontiguousarray(fp.bits_of(self.host(theta)))
        shape = (piece.rows.whole, piece.columns.whole)
        return cpu.fingerprint_slice(bits, own, shape, row_start=piece.rows.first, col_start=piece.columns.first)

    def host(self, theta: Any) -> Any:
        """Return an array of these weights in numpy."""
        return theta if isinstance(theta, np.ndarray) else self._kernels.host(theta)

    def fill(self, name: str, source: np.ndarray) -> None:
        """Write ``source``, (rows, columns) of the weights' dtype, over a shard."""
        theta = self.shards[name].theta
        if isinstance(theta, np.ndarray):
            theta[...] = source
        else:
            self._kernels.copy(theta, source)

    def squares(self) -> list[float]:
        """Return ‖θ − θ₀‖² of every shard that this rank owns, in float64."""
        own = (one for one in self.shards.values() if one.piece.owned)
        return [squared_distance(one.theta, self._anchor(one.piece)) for one in own]


def _laid_out(part: Any, piece: Piece) -> Any:
    """Return rows as wide as the tensor with ``part`` in its columns; ``part`` itself if it is that wide."""
    if piece.whole_rows:
        return part
    shape = (part.shape[0], piece.columns.whole)
    rows = np.zeros(shape, part.dtype) if isinstance(part, np.ndarray) else part.new_zeros(shape)
    rows[:, piece.columns.first : piece.columns.stop] = part
    return rows


def _take_out(rows: Any, part: Any, piece: Piece) -> None:
    """Copy the columns of ``part`` back from whole rows."""
    if not piece.whole_rows:
        part[...] = rows[:, piece.columns.first : piece.columns.stop]


def _copy(theta: Any) -> Any:
    return theta.copy() if isinstance(theta, np.ndarray) else theta.clone()


def window_of(whole: Any, piece: Piece) -> Any:
    """Return the piece's elements, (rows, columns), of a whole tensor in Hugging Face's shape."""
    grid = whole.reshape(piece.rows.whole, piece.columns.whole)
    return grid[piece.rows.first : piece.rows.stop, piece.columns.first : piece.columns.stop]
