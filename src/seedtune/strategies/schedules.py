"""Schedules of σ and α: pure functions of a run's progress.

They do not depend on the total number of generations, because a finished run may be resumed with more, which must not
change earlier generations.
"""

from __future__ import annotations

import math

from seedtune.config.sections import ScheduleSettings


def value(settings: ScheduleSettings, *, start: float, generation: int, rollouts: int = 0) -> float:
    """Compute σ or α of a generation: ``start`` · warm-up · factor.

    ``generation`` counts earlier generations, ``rollouts`` the population's earlier completions.

    * Warm-up over w generations (``warmup``): min(1, (g + 1)/(w + 1)), never 0; the factor advances during warm-up,
    too.
    * Factor, with t = min(1, progress/``over``) and progress in ``unit``: ``linear`` 1 + (to − 1)·t; ``cosine``
      to + (1 − to)·(1 + cos πt)/2; ``constant`` 1.

    The factor is rounded to 12 digits, so that math libraries that differ in the last bit give equal runs.
    """
    progress = generation if settings.unit == "generations" else rollouts
    factor = _warm(settings, generation) * _factor(settings, progress)
    return start * float(f"{factor:.12g}")


def _warm(settings: ScheduleSettings, generation: int) -> float:
    return min(1.0, (generation + 1) / (settings.warmup + 1))


def _factor(settings: ScheduleSettings, progress: int) -> float:
    if settings.kind == "constant":
        return 1.0
    assert settings.over is not None
    done = min(1.0, progress / settings.over)
    if settings.kind == "linear":
        return 1.0 + (settings.to - 1.0) * done
    return settings.to + (1.0 - settings.to) * (1.0 + math.cos(math.pi * done)) / 2
