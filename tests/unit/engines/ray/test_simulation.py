"""Ray workers in simulated time (benchmarks/simulation.py), and what real runs calibrate it with."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from benches import load

words = load("scenario")
simulation = load("simulation")
calibration = load("calibration")

EVEN = words.Uniform(1.0, 1.0)
TWOFOLD = words.Uniform(1.0, 2.0)


def scenario(count: int = 4, *, seconds=TWOFOLD, jobs: int = 48, generations: int = 10, workers=None, driver=None):
    """Jobs of one member each, for workers that cost nothing but their evaluations."""
    pieces = words.population(jobs, group=1, unperturbed=False)
    return words.Scenario(
        seconds, pieces, words.Workers(count, **(workers or {})), words.Driver(**(driver or {})), generations
    )


def test_one_worker_without_overheads_is_always_busy_and_takes_the_sum_of_its_jobs() -> None:
    outcome = simulation.simulate(scenario(1, seconds=EVEN, jobs=5, generations=3))
    assert outcome.utilisation == pytest.approx(1.0)
    assert outcome.ends == pytest.approx((5.0, 10.0, 15.0))
    assert outcome.generations_per_hour == pytest.approx(3600 / 5)
    assert outcome.rollouts_per_second == pytest.approx(1.0)


def test_overheads_of_driver_network_and_updates_add_up() -> None:
    driver = {"dispatch": 0.1, "collect": 0.02, "latency": 0.05, "between": 0.5}
    one = scenario(1, seconds=EVEN, jobs=5, generations=3, workers={"update": 0.25}, driver=driver)
    job = 1.0 + 0.1 + 0.02 + 2 * 0.05
    outcome = simulation.simulate(one)
    assert outcome.ends == pytest.approx((5 * job + 0.5, 10 * job + 1.25, 15 * job + 2.0))
    assert outcome.driver_busy == pytest.approx((15 * (0.1 + 0.02) + 3 * 0.5) / outcome.elapsed)


def test_the_workers_have_many_failures_and_hangs_and_still_every_job_is_done_given_up_or_open() -> None:
    shaky = {"failures": 60.0, "hangs": 20.0, "restart": 5.0, "update": 0.1}
    outcome = simulation.simulate(scenario(8, generations=40, workers=shaky))
    counts = outcome.counts
    assert counts["made"] == 40 * 48
    assert counts["done"] + counts["given_up"] + counts["open"] == counts["made"]
    assert counts["deaths"] > 0
    assert counts["found"] > 0


FOUR = (1.0, 4 / 3, 5 / 3, 2.0)


@pytest.mark.parametrize(
    ("seconds", "slowness"), [(TWOFOLD, (1.0,)), (EVEN, FOUR), (TWOFOLD, FOUR)], ids=["jobs", "workers", "both"]
)
def test_four_workers_with_times_spread_twofold_pull_to_95_percent_where_dealing_out_does_not(
    seconds, slowness
) -> None:
    pulled, dealt = (
        simulation.simulate(
            scenario(
                seconds=seconds,
                jobs=64,
                generations=100,
                workers={"slowness": slowness},
                driver={"static": static, "dispatch": 0.005},
            )
        )
        for static in (False, True)
    )
    assert pulled.utilisation >= 0.95 > dealt.utilisation


def test_a_death_loses_no_more_than_the_job_in_flight() -> None:
    outcome = simulation.simulate(scenario(4, generations=40, workers={"failures": 30.0}))
    evaluated = outcome.utilisation * outcome.elapsed * 4
    assert 0 < outcome.lost * evaluated <= 2.0 * (outcome.counts["deaths"] + outcome.counts["doubled"])
    assert outcome.counts["done"] == outcome.counts["made"]


def test_a_job_that_three_workers_died_of_is_given_up_and_the_run_goes_on() -> None:
    outcome = simulation.simulate(scenario(4, generations=20, workers={"failures": 2000.0}))
    assert outcome.counts["given_up"] > 0
    assert len(outcome.ends) == 20


def test_a_seed_gives_the_same_every_time_and_another_seed_something_else() -> None:
    one = scenario(4, workers={"failures": 10.0, "restart": 3.0}, driver={"max_staleness": 1, "dispatch": 0.01})
    assert simulation.simulate(one) == simulation.simulate(one)
    assert simulation.simulate(one).ends != simulation.simulate(replace(one, seed=1)).ends


def test_without_lag_nothing_is_stale_and_with_lag_nothing_is_staler_than_it() -> None:
    strict, loose = (
        simulation.Simulation(scenario(16, jobs=20, driver={"max_staleness": max_staleness}))
        for max_staleness in (0, 2)
    )
    assert strict.run().staleness == 0.0
    assert loose.run().staleness > 0.0
    assert max(loose.stale) <= 2


def test_lag_keeps_workers_busy_that_would_wait_for_the_last_job() -> None:
    strict, loose = (
        simulation.simulate(scenario(16, jobs=20, driver={"max_staleness": max_staleness})) for max_staleness in (0, 1)
    )
    assert loose.utilisation > strict.utilisation + 0.1


def test_a_slow_worker_holds_up_a_generation_less_when_its_job_is_doubled() -> None:
    slow = {"slowness": (20.0, *[1.0] * 15)}
    outcome = simulation.simulate(scenario(16, jobs=64, workers=slow))
    assert outcome.counts["doubled"] > 0
    assert max(b - a for a, b in zip(outcome.ends, outcome.ends[1:], strict=False)) < 20.0


def test_who_joins_late_replays_what_came_after_the_newest_snapshot() -> None:
    late = {"late": (2, 7), "update": 0.5, "further": 0.25}
    seconds = [
        simulation.simulate(scenario(4, workers=late, driver={"save_steps": steps})).joined for steps in (5, 0, 7)
    ]
    assert seconds == [(0.75, 0.75), (0.5 + 6 * 0.25,) * 2, (0.0, 0.0)]


def test_measured_seconds_come_back_for_costs_that_were_measured_and_are_scaled_for_others() -> None:
    measured = words.Measured({1.0: (0.1,), 8.0: (0.4,)}, slower=2.0)
    drawn = [measured.draw(simulation.np.random.default_rng(0), cost) for cost in (1.0, 8.0, 16.0)]
    assert drawn == pytest.approx([0.2, 0.8, 1.6])


def test_a_driver_that_takes_long_for_each_job_limits_many_workers() -> None:
    outcome = simulation.simulate(scenario(256, seconds=EVEN, jobs=1024, driver={"dispatch": 0.01}, generations=4))
    assert outcome.driver_busy > 0.75
    assert outcome.utilisation < 0.5


def made_up_run(count: int, generations: int = 40):
    """What a real run would leave behind, from the simulation itself."""
    costs = {4.0: (0.9, 1.0, 1.4), 1.0: (0.4, 0.5)}
    jobs = words.population(20, group=4)
    fleet = words.Workers(count, update=0.2, further=0.2)
    driver = words.Driver(dispatch=0.03, between=0.3)
    seen = simulation.Simulation(
        words.Scenario(words.Measured(costs), jobs, fleet, driver, generations, seed=count), trace=True
    )
    seen.run()
    return calibration.Run(count, generations, tuple(seen.spans))


def test_calibration_finds_what_a_run_with_one_worker_was_made_of() -> None:
    found = calibration.calibrate(made_up_run(1).rounds)
    assert [piece.cost for piece in found.jobs] == [4.0] * 5 + [1.0]
    assert {round(seconds, 6) for seconds in found.seconds[4.0]} == {0.9, 1.0, 1.4}
    assert found.update == pytest.approx(0.2)
    assert found.dispatch == pytest.approx(0.03)
    assert found.between == pytest.approx(0.3)


@pytest.mark.parametrize("count", [1, 2])
def test_calibrated_with_one_worker_the_simulation_predicts_one_and_two(count) -> None:
    found = calibration.calibrate(made_up_run(1).rounds)
    measured, predicted = calibration.rates(made_up_run(count, 100).rounds, count), calibration.predict(found, count)
    assert predicted.generations_per_hour == pytest.approx(measured.generations_per_hour, rel=0.03)
    assert predicted.utilisation == pytest.approx(measured.utilisation, rel=0.03)


def test_rounds_leave_out_other_requests_the_first_generation_and_the_last() -> None:
    run = made_up_run(1, 5)
    request = replace(run.spans[8], kind="fingerprint", sent=0.0)
    rounds = replace(run, spans=(*run.spans, request)).rounds
    assert [one.position for one in rounds] == [1, 2, 3]
    assert {len(one.spans) for one in rounds} == {6}


def test_workers_that_slow_each_other_down_are_seen_in_their_own_spans() -> None:
    alone, together = made_up_run(1, 100), made_up_run(2, 100)
    slowed = replace(together, spans=tuple(replace(span, worked=2 * span.worked) for span in together.spans))
    assert calibration.contention(alone, together) == pytest.approx(1.0, rel=0.03)
    assert calibration.contention(alone, slowed) == pytest.approx(2.0, rel=0.03)


def test_a_file_of_runs_becomes_a_table_of_predicted_against_measured(tmp_path) -> None:
    runs = [
        {
            "case": "toy",
            "workers": count,
            "settings": {"generations": 40},
            "spans": [{**asdict(span), "later": "field"} for span in made_up_run(count).spans],
            "step_time": [1.0],
        }
        for count in (1, 2)
    ]
    (tmp_path / "runs.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
    lines = calibration.check_table(calibration.read(tmp_path / "runs.json"))
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| toy, 1 worker", "| toy, 2 workers"]
    assert len(calibration.overhead_table(calibration.read(tmp_path / "runs.json"))) == 3
    assert lines[-1].startswith("The largest difference is ")


def test_a_file_without_runs_compares_nothing() -> None:
    assert calibration.check_table({}) == ["No run left anything to compare with."]
