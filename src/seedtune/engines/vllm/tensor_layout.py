"""The layout of Hugging Face tensors in a rank's vLLM parameters: fused, sliced, padded and tied.

A vLLM parameter holds rows of one tensor (``down_proj``), of several tensors in order (``qkv_proj``), or a vocabulary
padded at its end; with tensor parallelism a rank has a run of every tensor's rows, or of its columns, or a full
replica.  This module does not import vLLM: see `compat.split_of`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from seedtune.errors import ModelError

WRAPPER = ".base_layer"
"""The name of the wrapped layer inside an adapter layer."""


@dataclass(frozen=True, slots=True)
class Run:
    """Elements ``first .. stop - 1`` of the ``whole`` dimension; of replicated elements one rank is the ``owner``."""

    first: int
    stop: int
    whole: int
    owner: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.first


@dataclass(frozen=True, slots=True)
class Split:
    """The part of a layer on this rank: its outputs (a run for each fused tensor) and its inputs; None: all."""

    outputs: tuple[Run, ...]
    inputs: Run | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of the Hugging Face tensor ``name``, and the row of ``parameter`` (vLLM's name) where it begins.

    Tensors of other than two dimensions are one row, and ``at`` counts elements.
    """

    name: str
    rows: Run
    columns: Run
    parameter: str
    at: int = 0
    flat: bool = False

    @property
    def owned(self) -> bool:
        """Whether this rank counts the piece, if several ranks hold replicas."""
        return self.rows.owner and self.columns.owner

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.rows.size * self.columns.size

    @property
    def whole_rows(self) -> bool:
        """Whether the rectangle is as wide as the tensor, so that its elements are contiguous."""
        return self.columns.size == self.columns.whole


Shapes = Mapping[str, tuple[int, ...]]


def pieces_of(
    parameters: Shapes, splits: Mapping[str, Split], fused: Mapping[str, Sequence[str]], *, shapes: Shapes, first: bool
) -> dict[str, Piece]:
    """Return this rank's pieces by Hugging Face name, for the tensors in ``shapes`` (Hugging Face names, whole).

    ``parameters`` are vLLM's, ``splits`` those of the modules that divide their parameters, ``fused`` maps a module's
    last name to its parts; a tensor without a known split is whole on every rank, and the ``first`` rank owns it.
    Raises ModelError, with the tensor's name, if no parameter holds it or the parameter is too small.
    """
    found: dict[str, Piece] = {}
    for parameter, shape in parameters.items():
        for piece in _pieces(parameter, splits, fused, shapes=shapes, first=first):
            _check_room(piece, shape)
            found[piece.name] = piece
    missing = [name for name in shapes if name not in found]
    if missing:
        raise ModelError(
            f"vLLM keeps {missing[0]!r} (and {len(missing) - 1} more tensors) under no name that can be mapped to it, "
            "or leaves it out. Use engine=transformers."
        )
    return {name: found[name] for name in shapes}


def _pieces(
    parameter: str, splits: Mapping[str, Split], fused: Mapping[str, Sequence[str]], *, shapes: Shapes, first: bool
) -> Iterable[Piece]:
    """Return the pieces of the tensors in ``shapes`` that a parameter holds."""
    module, _, leaf = parameter.replace(WRAPPER, "").rpartition(".")
    parent, _, last = module.rpartition(".")
    parts = fused.get(last, (last,))
    names = [".".join(filter(None, (parent, part, leaf))) for part in parts]
    split = splits.get(module)
    if split is not None and len(split.outputs) != len(parts):
        split_names = f"{len(split.outputs)} parts, but {len(parts)} tensors"
        raise ModelError(f"vLLM's {module} has {split_names}. Use engine=transformers.")
    at = 0
    for index, name in enumerate(names):
        if name in shapes:
            yield _piece(name, shapes[name], None if split is None else _of(split, index), first, (parameter, at))
        at += split.outputs[index].size if split is not None else 0


def _of(split: Split, index: int) -> tuple[Run, Run | None]:
    return split.outputs[index], split.inputs


def _piece(
    name: str, shape: tuple[int, ...], split: tuple[Run, Run | None] | None, first: bool, where: tuple[str, int]
) -> Piece:
    flat, total = len(shape) != 2, math.prod(shape)
    if split is None:
        rows, columns = (1, total) if flat else shape
        return Piece(name, Run(0, rows, rows, first), Run(0, columns, columns), *where, flat=flat)
    outputs, inputs = split
    if flat:
        return Piece(name, Run(0, 1, 1), outputs, *where, flat=True)
    if inputs is None:
        return Piece(name, outputs, Run(0, shape[1], shape[1]), *where)
    # If the inputs are divided, every rank has its own columns.
    return Piece(name, Run(outputs.first, outputs.stop, outputs.whole), inputs, *where)


def _check_room(piece: Piece, shape: tuple[int, ...]) -> None:
    """Raise ModelError unless the parameter has the shape that the piece requires (padding after it is allowed)."""
    needed = (piece.at + piece.columns.size,) if piece.flat else (piece.at + piece.rows.size, piece.columns.size)
    have = (math.prod(shape),) if piece.flat else shape
    if len(have) != len(needed) or have[0] < needed[0] or have[1:] != needed[1:]:
        raise ModelError(
            f"vLLM's {piece.parameter} has the shape {tuple(shape)}, which cannot hold {piece.name} {needed}: its "
            "weights were packed away or are stored in another way. Use engine=transformers."
        )


def check_complete(held: Mapping[str, int], shapes: Shapes) -> None:
    """Raise ModelError unless the ranks together own every element of every tensor once; ``held`` counts them."""
    for name, shape in shapes.items():
        if held.get(name, 0) != math.prod(shape):
            raise ModelError(
                f"vLLM's ranks together hold {held.get(name, 0)} of the {math.prod(shape)} elements of {name}. Use "
                "another tensor_parallel_size, or engine=transformers."
            )
