"""Measure briefly, when a model is loaded, how fast this processor multiplies: for information and warnings only.

A table (`product_choice`) decides which product is used; a decision by timing could make two runs of one
configuration diverge.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from functools import cache

import torch

from seedtune.engines.transformers.members.population_linear import LiveWeight, ProductForm

log = logging.getLogger("seedtune")

ROWS = (4, 32, 128)
SECONDS = 0.3
"""Maximum seconds of the measurement, plus the product in progress when they are over."""
REPEATS = 3
MOST_OUTPUTS, MOST_INPUTS = 1024, 4096
"""Of larger weights only a part is multiplied."""
WORTH = 1.3
"""Ratio of speeds from which another product is worth a warning."""
LARGE = 1 << 16
"""Minimum elements of a weight for that warning: for smaller ones the call takes as long as the product."""


def measured(form: ProductForm, shapes: Sequence[tuple[int, int]], dtype: torch.dtype) -> float | None:
    """Return GFLOP/s of this form at 128 rows over the two largest (outputs, inputs); None if the time was too short.

    Logs a warning, once per process, if torch's own product is faster by `WORTH` over all row counts.
    """
    largest = sorted(set(shapes), key=math.prod)[-2:]
    return _measured(form, tuple((min(n, MOST_OUTPUTS), min(k, MOST_INPUTS)) for n, k in largest), dtype)


@cache
def _measured(form: ProductForm, shapes: tuple[tuple[int, int], ...], dtype: torch.dtype) -> float | None:
    forms = list(dict.fromkeys((form, ProductForm("library", form.copied))))
    seconds = _times(forms, shapes, dtype)
    if seconds is None:
        return None
    own, other = seconds[0], seconds[-1]
    if sum(own) > WORTH * sum(other) and max(map(math.prod, shapes)) >= LARGE:
        log.warning(
            "products: torch's own took %.2f times less than %s on this processor; products=library uses "
            "it (another arithmetic: a run keeps the one it began with)",
            sum(own) / sum(other),
            form.kind,
        )
    return 2 * ROWS[-1] * sum(map(math.prod, shapes)) / own[-1] / 1e9


@torch.no_grad()
def _times(
    forms: Sequence[ProductForm], shapes: Sequence[tuple[int, int]], dtype: torch.dtype
) -> list[list[float]] | None:
    """Return each form's seconds for all shapes at each number of rows, minimum of several; None if time ran out."""
    source, found = torch.Generator().manual_seed(0), [[0.0] * len(ROWS) for _ in forms]
    for form in forms:  # compile products that have not been used yet
        _live(torch.zeros(2, 2, dtype=dtype), form)(torch.zeros(1, 2, dtype=dtype))
    deadline = time.perf_counter() + SECONDS
    for outputs, inputs in shapes:
        weight = torch.randn(outputs, inputs, generator=source).to(dtype)
        lives = [_live(weight, form) for form in forms]
        for place, rows in enumerate(ROWS):
            x = torch.randn(rows, inputs, generator=source).to(dtype)
            for number, live in enumerate(lives):
                if time.perf_counter() > deadline:
                    return None
                found[number][place] += min(_seconds(live, x) for _ in range(REPEATS))
    return found


def _live(weight: torch.Tensor, form: ProductForm) -> LiveWeight:
    live = LiveWeight(form)
    live.set(weight)
    return live


def _seconds(live: LiveWeight, x: torch.Tensor) -> float:
    started = time.perf_counter()
    live(x)
    return time.perf_counter() - started
