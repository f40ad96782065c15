"""Compile kernels into the disk cache while another process still loads torch and its model.

    python -m seedtune.engines.transformers.cpu_kernels.warm bfloat16

Compiling holds a lock of the process, so a thread could not do it beside other work.  Every kernel is called once on
a few zeros of the types and layouts that the transformers engine passes to it for plain decoder layers of ``lowrank``
runs.  The kernels that a run needs last come first, so that the two processes meet in the middle; there one waits for
the function that the other compiles.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedtune.engines.transformers.cpu_kernels import (
    attention,
    layer_steps,
    products,
    reductions,
    rms_norm,
    rotary,
    silu_gate,
)
from seedtune.numerics.kernels import cpu
from seedtune.numerics.machine import processor
from seedtune.numerics.noise import Stream
from seedtune.types import Term, Update

Array = NDArray[Any]
CompileStep = Callable[[], None]

ROWS, HEADS, DIM = 2, 2, 16
"""Minimum rows and heads: a single one would make a slice contiguous, which is a different layout."""


@dataclass(frozen=True, slots=True)
class Warmer:
    """Calls kernels as an engine does: ``element`` is the dtype of live, ``weights`` of current weights."""

    element: type[np.generic]
    weights: type[np.generic]
    products: str = "auto"

    def zeros(self, *shape: int) -> Array:
        """Return activations or live weights of that shape."""
        return np.zeros(shape, self.element)

    def steps(self) -> Iterator[CompileStep]:
        """Yield the calls, in the order in which a run needs them."""
        yield from (self.load, self.product, self.norms, self.gate, self.rotate)
        yield from (self.prefill, self.decode)
        yield from (self.layer_turn, self.layer_close_and_norm, self.layer_gate, self.layer_close)
        yield from (self.decode_layer, self.largest)
        yield from (self.factors, self.update_lowrank, self.fingerprint)

    def load(self) -> None:
        """Compile the fingerprint of a base model in the live weights' precision."""
        self._mix(self.element)

    def product(self) -> None:
        """Compile the product that `seedtune.engines.transformers.product_choice` selects, if it is our own."""
        kind = product_kind(self.products, bfloat16=self.element == np.uint16)
        if kind is None:
            return
        weight, copied = self.zeros(DIM, DIM), self.weights == np.float32
        start = products.starts(None, DIM, kind)
        live = products.pack(weight, kind) if copied else weight
        products.multiply(self.zeros(ROWS, DIM), self.zeros(ROWS, DIM), live, start, kind=kind)

    def norms(self) -> None:
        """Compile for few rows, and for many."""
        for rows in (1, rms_norm.PARALLEL_FROM):
            rms_norm.rms_norm(self.zeros(rows, 1), self.zeros(rows, 1), self.zeros(1), 1e-6)

    def gate(self) -> None:
        """Compile for few rows, as in the probe of a layer; later all passes of a layer are fused into one."""
        silu_gate.silu_gate(self.zeros(1, 1), self.zeros(1, 2))

    def rotate(self) -> None:
        """Compile for few rows, as in the probe."""
        rotary.rotate(self.zeros(1, 1, 2), self.zeros(1, 2), self.zeros(1, 2), 1)

    def prefill(self) -> None:
        """Compile for one prompt of one token."""
        q, k, v = (self.zeros(1, HEADS, DIM) for _ in range(3))
        prompts = attention.Prompts(0, np.zeros(1, np.int64), np.ones(1, np.int64), np.zeros(1, np.int64))
        attention.prefill(self.zeros(*q.shape), q, new=(k, v), cache=self._cache(), prompts=prompts, options=OPTIONS)

    def decode(self) -> None:
        """Compile for queries, keys and values that are concatenated in a product's rows."""
        self._decode(ROWS)

    def _decode(self, rows: int) -> None:
        split = self.zeros(rows, 3 * HEADS, DIM)
        q, k, v = (split[:, first : first + HEADS] for first in range(0, 3 * HEADS, HEADS))
        lengths, out = np.zeros(rows, np.int32), self.zeros(rows, HEADS, DIM)
        attention.decode(out, q, new=(k, v), cache=self._cache(), lengths=lengths, options=OPTIONS)

    def _cache(self) -> tuple[Array, Array]:
        return self.zeros(ROWS, HEADS, DIM, 16), self.zeros(ROWS, HEADS, 16, DIM)

    def _terms(self) -> layer_steps.Terms:
        ends, pairs, scales = np.full(1, DIM, np.int32), np.zeros(ROWS, np.int32), np.zeros(ROWS, np.float32)
        return layer_steps.Terms(self.zeros(1, 1, DIM), self.zeros(1, 1, 1, DIM), ends, pairs, scales)

    def _rows(self, count: int) -> list[Array]:
        return [self.zeros(ROWS, DIM) for _ in range(count)]

    def layer_turn(self) -> None:
        """Compile the pass after the product of queries, keys and values."""
        y, x, cos, sin = self._rows(4)
        layer_steps.turn(y, x, self._terms(), cos, sin, 1)

    def _norm(self) -> layer_steps.Norm:
        return layer_steps.Norm(self.zeros(DIM), np.float32(1e-6))

    def layer_close_and_norm(self) -> None:
        """Compile the pass after the product of the attention output."""
        out, h, before, y, x = self._rows(5)
        layer_steps.close_and_norm(out, self._norm(), h, before, y, x, self._terms())

    def layer_gate(self) -> None:
        """Compile the pass after the products of gate and up."""
        out, x = self._rows(2)
        layer_steps.gate(out, self.zeros(ROWS, 2 * DIM), x, self._terms())

    def layer_close(self) -> None:
        """Compile the pass after the last product of a layer."""
        h, y, x = self._rows(3)
        layer_steps.close(h, h, y, x, self._terms())

    def decode_layer(self) -> None:
        """Compile a whole layer of a decode step, if its products are our own and packed."""
        kind = product_kind(self.products, bfloat16=self.element == np.uint16)
        if kind is None or self.weights != np.float32:
            return
        h, before = self._rows(2)
        outputs = (3 * DIM, DIM, 2 * DIM, DIM)
        weights = tuple((products.pack(self.zeros(n, DIM), kind), products.starts(None, n, kind)) for n in outputs)
        keys, values = self.zeros(ROWS, 1, DIM, 16), self.zeros(ROWS, 1, 16, DIM)
        layer_steps.decode_layer(
            h,
            before,
            norms=(self._norm(), self._norm()),
            weights=weights,
            terms=(self._terms(),) * 4,
            angles=(self.zeros(ROWS, DIM), self.zeros(ROWS, DIM)),
            cache=attention.FilledCache(keys, values, np.zeros(ROWS, np.int32)),
            shape=layer_steps.LayerShape(1, 1, DIM, DIM),
            options=OPTIONS,
        )

    def largest(self) -> None:
        """Compile greedy token selection."""
        reductions.largest(self.zeros(1, 1))

    def factors(self) -> None:
        """Compile for one pair, and for many."""
        for columns in (1, cpu.PARALLEL_FROM):
            pairs = np.zeros(1, np.uint32)
            cpu.fill_factors(np.empty((1, columns), np.float32), (0, 0), Stream.FACTOR_B, pairs, pairs)

    def update_lowrank(self) -> None:
        """Compile for a small tensor, and for a large one."""
        for rows in (1, cpu.PARALLEL_FROM):
            cpu.update_lowrank(np.zeros((rows, 1), self.weights), (0, 0), STEP, rank=1)

    def fingerprint(self) -> None:
        """Compile the fingerprint of the current weights."""
        self._mix(self.weights)

    def _mix(self, element: type[np.generic]) -> None:
        for size in (1, cpu.PARALLEL_FROM):
            cpu.fingerprint(np.zeros(size, np.uint16 if element == np.uint16 else np.uint32), (0, 0))


OPTIONS = attention.AttentionOptions(1.0, 0, 0.0)

STEP = (Update(0, (Term(0, 0, 1.0),)),)
"""An update along one pair."""


def product_kind(wanted: str, *, bfloat16: bool) -> products.ProductKind | None:
    """Return the kind of product that a setting selects on this processor; None for the library's."""
    if wanted == "auto" and bfloat16 and "amx-bf16" in processor.features():
        return None
    kinds: tuple[products.ProductKind, ...] = ("bf16dot", "fma32")
    can = (kind for kind in kinds if wanted in ("auto", kind) and products.available(kind, bfloat16=bfloat16))
    return next(can, None)


def warm(dtype: str, weights_dtype: str = "float32", wanted: str = "auto") -> None:
    """Compile the kernels of a low-rank run that are not cached yet, until the requesting process ends.

    ``dtype`` is "bfloat16" or "float32", ``weights_dtype`` as in the configuration,
    ``wanted`` the setting ``products``.
    """
    element: type[np.generic] = np.uint16 if dtype == "bfloat16" else np.float32
    parent = os.getppid()
    warmer = Warmer(element, np.float32 if weights_dtype == "float32" else element, wanted)
    for step in reversed(list(warmer.steps())):
        if os.getppid() != parent:
            return
        step()


if __name__ == "__main__":
    warm(*sys.argv[1:])
