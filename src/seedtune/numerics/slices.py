"""A rank's slice of a tensor: some of its rows and columns.  A tensor of other than two dimensions is one row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

BAND = 1 << 20
"""Elements of whole rows that are copied to scratch memory, or to a device, at a time."""


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
class Slice:
    """A rectangle of a tensor."""

    rows: Run
    columns: Run

    @classmethod
    def all_of(cls, shape: tuple[int, ...], *, owner: bool = True) -> Slice:
        """Return the slice that is the whole tensor."""
        rows, columns = shape if len(shape) == 2 else (1, math.prod(shape))
        return cls(Run(0, rows, rows, owner), Run(0, columns, columns))

    @property
    def owned(self) -> bool:
        """Whether this rank counts the slice, if several ranks hold replicas."""
        return self.rows.owner and self.columns.owner

    @property
    def shape(self) -> tuple[int, int]:
        """Its rows and columns."""
        return self.rows.size, self.columns.size

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.rows.size * self.columns.size

    @property
    def whole_rows(self) -> bool:
        """Whether it is as wide as the tensor, so that its elements are contiguous."""
        return self.columns.size == self.columns.whole

    def start(self, row: int = 0) -> int:
        """Return the linear index in the whole tensor of the first element of a row of the slice."""
        return (self.rows.first + row) * self.columns.whole

    def of(self, whole: Any) -> Any:
        """Return the slice's elements, (rows, columns), of a whole tensor."""
        grid = whole.reshape(self.rows.whole, self.columns.whole)
        return self.narrow(grid[self.rows.first : self.rows.stop])

    def narrow(self, rows: Any) -> Any:
        """Return the slice's columns of whole rows."""
        return rows[:, self.columns.first : self.columns.stop]

    def widen(self, part: Any) -> Any:
        """Return whole rows with ``part`` in the slice's columns; ``part`` itself if it is that wide."""
        if self.whole_rows:
            return part
        shape = (part.shape[0], self.columns.whole)
        rows = np.zeros(shape, part.dtype) if isinstance(part, np.ndarray) else part.new_zeros(shape)
        self.narrow(rows)[...] = part
        return rows

    def bands(self, *, small: bool) -> Iterator[slice]:
        """Yield runs of rows to process at a time: all rows if none are copied to scratch and ``small`` is not set."""
        step = BAND // max(1, self.columns.whole) if small or not self.whole_rows else self.rows.size
        step = max(1, step)
        yield from (slice(first, first + step) for first in range(0, self.rows.size, step))
