"""Argument checks of the kernels on every device: elements, slices and words outside of a noise address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedtune.numerics.noise import ELEMENT_LIMIT, SUBSPACE_LIMIT, WORD_LIMIT


def require_array(name: str, array: NDArray[Any], dtype: type[np.generic], ndim: int) -> None:
    """Raise ValueError unless ``array`` is C contiguous, of this type and number of dimensions."""
    if array.dtype != dtype or array.ndim != ndim or not array.flags.c_contiguous:
        layout = "contiguous" if array.flags.c_contiguous else "strided"
        raise ValueError(
            f"{name} is a {layout} {array.ndim}-d array of {array.dtype}; "
            f"it must be a C-contiguous {ndim}-d array of {np.dtype(dtype)}"
        )


def require_elements(start: int, count: int) -> None:
    """Raise ValueError unless elements ``start .. start + count - 1`` can be addressed."""
    if start < 0 or start + count > ELEMENT_LIMIT:
        raise ValueError(f"element range starts at {start} with {count} items, but it must lie in [0, {ELEMENT_LIMIT})")


def require_slice(part: Sequence[int], shape: tuple[int, int], row_start: int, col_start: int) -> None:
    """Raise ValueError unless a slice of shape ``part`` at that corner fits inside a tensor of this ``shape``."""
    fits = 0 <= row_start <= shape[0] - part[0] and 0 <= col_start <= shape[1] - part[1]
    if not fits:
        raise ValueError(f"a slice of shape {tuple(part)} at ({row_start}, {col_start}) does not lie inside {shape}")
    require_elements(0, shape[0] * shape[1])


def require_subspaces(subspaces: int) -> None:
    """Raise ValueError unless 16-bit codes can be assigned to that many subspaces."""
    if not 1 <= subspaces <= SUBSPACE_LIMIT:
        raise ValueError(f"subspaces is {subspaces}, but it must be at least 1 and at most {SUBSPACE_LIMIT}")


def require_shared_noise(shared_noise: int) -> None:
    """Raise ValueError unless pairs can be assigned to that many shared normals."""
    if not 1 <= shared_noise < WORD_LIMIT:
        raise ValueError(f"shared_noise is {shared_noise}, but it must be at least 1 and below {WORD_LIMIT}")


def require_rows(start: int, count: int, rank: int) -> None:
    """Raise ValueError unless elements ``start ..`` of a factor are whole rows, which subspaces are assigned by."""
    if start % rank or count % rank:
        raise ValueError(f"{count} elements from {start} are no whole rows of a factor of rank {rank}; give whole rows")


def require_words(what: str, values: list[int]) -> NDArray[np.uint32]:
    """Return numbers as 32-bit words; ValueError for a number outside [0, 2**32)."""
    if values and not 0 <= min(values) <= max(values) < WORD_LIMIT:
        raise ValueError(f"{what}s from {min(values)} to {max(values)} must be at least 0 and below {WORD_LIMIT}")
    return np.array(values, np.uint32)
