"""The layout of Hugging Face tensors in a rank's vLLM parameters: fused, sliced, padded and tied.

A vLLM parameter holds rows of one tensor (``down_proj``), of several tensors in order (``qkv_proj``), or a vocabulary
padded at its end; with tensor parallelism a rank has a run of every tensor's rows, or of its columns, or a full
replica.  This module does not import vLLM: see `compat.split_of`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seedtune.errors import ModelError
from seedtune.numerics.slices import Run, Slice

WRAPPER = ".base_layer"
"""The name of the wrapped layer inside an adapter layer."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Split:
    """The part of a layer on this rank: its outputs (a run for each fused tensor) and its inputs; None: all."""

    outputs: tuple[Run, ...]
    inputs: Run | None = None

    def slice_of(self, index: int, shape: tuple[int, ...]) -> Slice:
        """Return the slice of the fused tensor with that index and shape."""
        outputs = self.outputs[index]
        if len(shape) != 2:
            return Slice(Run(0, 1, 1), outputs)
        if self.inputs is None:
            return Slice(outputs, Run(0, shape[1], shape[1]))
        # If the inputs are divided, every rank has its own columns.
        return Slice(Run(outputs.first, outputs.stop, outputs.whole), self.inputs)


@dataclass(frozen=True, slots=True)
class Piece(Slice):
    """A slice of a Hugging Face tensor, and the element of ``parameter`` (vLLM's name) where it begins."""

    parameter: str
    at: int = 0


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
        module, _, leaf = parameter.replace(WRAPPER, "").rpartition(".")
        parent, _, last = module.rpartition(".")
        names = [".".join(filter(None, (parent, part, leaf))) for part in fused.get(last, (last,))]
        split, at = splits.get(module), 0
        if split is not None and len(split.outputs) != len(names):
            parts = f"{len(split.outputs)} parts, but {len(names)} tensors"
            raise ModelError(f"vLLM's {module} has {parts}. Use engine=transformers.")
        for index, name in enumerate(names):
            if name in shapes:
                whole = shapes[name]
                own = Slice.all_of(whole, owner=first) if split is None else split.slice_of(index, whole)
                found[name] = Piece(own.rows, own.columns, parameter, at)
                _check_room(name, found[name], shape, two_dimensional=len(whole) == 2)
            at += split.outputs[index].size * math.prod(shape[1:]) if split is not None else 0
    missing = [name for name in shapes if name not in found]
    if missing:
        raise ModelError(
            f"vLLM keeps {missing[0]!r} (and {len(missing) - 1} more tensors) under no name that can be mapped to it, "
            "or leaves it out. Use engine=transformers."
        )
    return {name: found[name] for name in shapes}


def _check_room(name: str, piece: Piece, shape: tuple[int, ...], *, two_dimensional: bool) -> None:
    """Raise ModelError unless the parameter has the shape that the piece requires (padding after it is allowed)."""
    as_wide = not two_dimensional or shape[1:] == (piece.columns.size,)
    if not as_wide or math.prod(shape) < piece.at + piece.size:
        raise ModelError(
            f"vLLM's {piece.parameter} has the shape {tuple(shape)}, which cannot hold {name} {piece.shape}: its "
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
