"""The adaptive step on synthetic tasks (benchmarks/step_model.py), where the best fixed one is known."""

from __future__ import annotations

import numpy as np
import pytest

from benches import load

study = load("strategies")
model = load("step_model")
RUNS = 200


@pytest.fixture(scope="module", params=model.TASKS, ids=lambda name: name.replace(" ", "-"))
def task(request):
    found = model.TASKS[request.param]
    rng = np.random.default_rng(1)
    return found, [model.mean_of(found, model.fixed(ratio), RUNS, rng) for ratio in model.FIXED]


@pytest.mark.parametrize("start", [None, 0.5, 30.0])
def test_it_needs_little_more_than_the_best_fixed_step(task, start):
    found, sweep = task
    ours = model.mean_of(found, model.adaptive(start), RUNS, np.random.default_rng(2))
    assert model.ratio(ours, sweep) < 1.3
    assert ours[-1] > 0.9 * max(curve[-1] for curve in sweep)


def test_no_fixed_step_is_as_good_on_all_tasks():
    rng = np.random.default_rng(3)
    worst = dict.fromkeys(model.FIXED, 0.0)
    for found in model.TASKS.values():
        sweep = [model.mean_of(found, model.fixed(ratio), RUNS, rng) for ratio in model.FIXED]
        for ratio, curve in zip(model.FIXED, sweep, strict=True):
            worst[ratio] = max(worst[ratio], model.ratio(curve, sweep))
    assert min(worst.values()) > 1.3


def test_reaching_a_target_is_interpolated():
    points = [(0, 0.0), (132, 1.0), (264, 3.0)]
    assert study.reached(points, 2.0) == 198.0
    assert study.reached(points, 4.0) == np.inf
