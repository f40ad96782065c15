"""The reward of benchmarks/scoring.py, in a file of its own as a user's would be."""

from __future__ import annotations

import time

SECONDS = 0.2


def judged(completions, **_):
    values = []
    for completion in completions:
        time.sleep(SECONDS)
        values.append(float(len(completion)))
    return values
