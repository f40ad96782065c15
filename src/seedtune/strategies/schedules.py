"""Schedules of σ and α: pure functions of the generation.

They do not depend on the total number of generations, because a finished run may be resumed with more, which must not
change earlier generations.
"""

from __future__ import annotations

import math

from seedtune.config.sections import ScheduleSettings


def factor(schedule: ScheduleSettings, generation: int) -> float:
    """Return what a schedule multiplies the configured σ or α by in a generation: warm-up · shape.

    * Warm-up over w generations (``warmup``): min(1, (g + 1)/(w + 1)), never 0; the shape advances during warm-up, too.
    * Shape, with t = min(1, g/``over``): ``linear`` 1 + (to − 1)·t; ``cosine`` to + (1 − to)·(1 + cos πt)/2;
      ``constant`` 1.

    Rounded to 12 digits, so that math libraries that differ in the last bit give equal runs.
    """
    warm = min(1.0, (generation + 1) / (schedule.warmup + 1))
    return float(f"{warm * _shape(schedule, generation):.12g}")


def _shape(schedule: ScheduleSettings, generation: int) -> float:
    if schedule.kind == "constant":
        return 1.0
    assert schedule.over is not None
    done = min(1.0, generation / schedule.over)
    if schedule.kind == "linear":
        return 1.0 + (schedule.to - 1.0) * done
    return schedule.to + (1.0 - schedule.to) * (1.0 + math.cos(math.pi * done)) / 2
