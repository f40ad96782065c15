"""Real runs of the Ray engine with one and two workers, and what the simulation predicts for them.

Three cases: ``toy`` waits 0.1 s for every job and needs no processor, so that workers do not disturb each other: the
clean check.  ``tiny`` is an untrained Llama of a million weights, ``smollm2`` the real SmolLM2-135M; their workers have
one core each, share the machine's memory and caches, and so slow each other down.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from scenario import HOUR, Driver, Measured, Outcome, Piece, Scenario, Workers
from simulation import simulate

from seedtune.engines.ray.statistics import Span

EVALUATIONS = ("evaluate", "likelihoods")
"""Kinds of spans that are a generation's jobs; all others are requests of other kinds."""

LIMIT = 180
"""Seconds that one run may take before it is given up."""

COMMON = {"save_steps": 0, "fingerprint_steps": 10**6, "reward_workers": 0, "eval_prompts": 1}
CASES: dict[str, dict[str, Any]] = {
    "toy": {
        "task": "toy",
        "model": "toy",
        "toy": {"delay": 0.1},
        "sigma": 0.05,
        "alpha": 0.2,
        "population": 64,
        "generations": 22,
        "prompts_per_generation": 4,
    },
    "tiny": {
        "sigma": 0.01,
        "alpha": 0.02,
        "population": 40,
        "generations": 14,
        "prompts_per_generation": 16,
        "max_completion_length": 32,
        "eval_size": 0.0,
    },
    "smollm2": {
        "model": "smollm2-135m",
        "task": "conciseness",
        "sigma": 0.006,
        "alpha": 0.018,
        "population": 24,
        "generations": 8,
        "prompts_per_generation": 4,
        "max_completion_length": 32,
    },
}
CLEAN = ("toy",)
"""Cases whose workers do not slow each other down."""


# ------------------------------------------------------------------------------ real runs


def train(case: str, workers: int, folder: Path) -> dict[str, Any]:
    """One real run, in this process: its spans, and the seconds of its generations."""
    from seedtune import ESConfig, ESTrainer

    inside = "toy" if case == "toy" else "transformers"
    fleet = {"engine": inside, "workers": workers, "min_workers": workers, "resources": {"CPU": 1}}
    settings = {**COMMON, **CASES[case], "engine": "ray", "ray": fleet}
    places = {"output_dir": str(folder / "run"), **_model(case, folder)}
    trainer = ESTrainer(args=ESConfig.create({**settings, **places}), **_data(case))
    try:
        trainer.train()
        spans = [asdict(span) for span in trainer.engine.spans]  # type: ignore[union-attr]
    finally:
        if trainer.engine is not None:
            trainer.engine.close()
    rows = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    step_time = [row["step_time"] for row in rows if "step_time" in row]
    return {"case": case, "workers": workers, "settings": settings, "spans": spans, "step_time": step_time}


def _model(case: str, folder: Path) -> dict[str, str]:
    """The tiny model is written first: an untrained one writes as many tokens as it may."""
    if case != "tiny":
        return {}
    import countdown

    words = countdown.tokenizer()
    model = countdown.Causal.from_config(countdown.FAMILIES["llama"](len(words)))
    model.save_pretrained(folder / "model")
    words.save_pretrained(folder / "model")
    return {"model": str(folder / "model")}


def _data(case: str) -> dict[str, Any]:
    if case != "tiny":
        return {}
    import countdown

    return {"reward_funcs": countdown.solved, "train_dataset": countdown.puzzles(64, 1)}


def measure(cases: Sequence[str], output: Path) -> None:
    """Every case with one worker and with two, each run in a process of its own; what fails is said and left out."""
    runs = []
    for case in cases:
        for workers in (1, 2):
            started = time.monotonic()
            run = _apart(case, workers)
            if run is not None:
                runs.append(run)
                found = f"{len(run['spans'])} spans, {len(run['step_time'])} generations"
                print(f"{case}, {workers} worker(s): {found}, {time.monotonic() - started:.0f} s", flush=True)
    if not runs:
        raise SystemExit(f"no run succeeded: {output} is left as it was")
    versions = {name: __import__(name).__version__ for name in ("ray", "torch")}
    made = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), **versions}
    output.write_text(json.dumps({**made, "cores": os.cpu_count(), "runs": runs}) + "\n", encoding="utf-8")
    for line in check_table(read(output)):
        print(line)


def _apart(case: str, workers: int) -> dict[str, Any] | None:
    # No cleaning up behind a process that was killed: its workers may still write.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).with_name("scale.py")), "run", case, str(workers), str(result)]
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONWARNINGS": "ignore"}
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
            if done.returncode == 0:
                run: dict[str, Any] = json.loads(result.read_text())
                return run
            print(f"{case}, {workers} worker(s) FAILED:\n{done.stderr[-2000:]}", file=sys.stderr, flush=True)
            return None
    print(f"{case}, {workers} worker(s) took longer than {LIMIT} s: left out", file=sys.stderr, flush=True)
    return None


def read(path: Path) -> dict[tuple[str, int], Run]:
    """The runs of a file, by case and number of workers."""
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return {
        (run["case"], run["workers"]): Run(
            run["workers"],
            run["settings"]["generations"],
            tuple(Span(**{name: span[name] for name in Span.__slots__}) for span in run["spans"]),
            tuple(run["step_time"]),
        )
        for run in runs
    }


# ----------------------------------------------------------------------------- calibration


@dataclass(frozen=True, slots=True)
class Round:
    """A generation: the number of updates before it, its seconds to the next one's first job, and its jobs."""

    position: int
    seconds: float
    spans: tuple[Span, ...]

    @property
    def evaluated(self) -> float:
        return sum(span.worked for span in self.spans)

    @property
    def between(self) -> float:
        """Seconds from its last answer to the next generation's first job."""
        first = min(span.sent for span in self.spans)
        return first + self.seconds - max(span.received for span in self.spans)


@dataclass(frozen=True)
class Run:
    """What one real run left behind."""

    workers: int
    generations: int
    spans: tuple[Span, ...]
    step_time: tuple[float, ...] = ()
    """Seconds of generations as the run's metrics have them: a second clock beside the spans."""

    @cached_property
    def rounds(self) -> tuple[Round, ...]:
        """All generations but those that warm up, until every worker has answered in one, and the last.

        With that nothing is left of held-out evaluations either: they come before the first and after the last.
        """
        jobs: dict[int, list[Span]] = {position: [] for position in range(self.generations)}
        for span in self.spans:
            if span.kind in EVALUATIONS and span.position in jobs:
                jobs[span.position].append(span)
        began = {position: min(span.sent for span in spans) for position, spans in jobs.items() if spans}
        return tuple(
            Round(position, began[position + 1] - began[position], tuple(jobs[position]))
            for position in range(self._warm_at, self.generations - 1)
            if position in began and position + 1 in began
        )

    @property
    def _warm_at(self) -> int:
        first: dict[str, int] = {}
        for span in self.spans:
            first[span.worker] = min(span.position, first.get(span.worker, span.position))
        return 1 + max(first.values(), default=0)


@dataclass(frozen=True, slots=True)
class Rates:
    """What is compared: generations per hour, and the share of the workers' time in which they evaluate."""

    generations_per_hour: float
    utilisation: float


def rates(rounds: Sequence[Round], workers: int) -> Rates:
    """As measured."""
    seconds = sum(one.seconds for one in rounds)
    return Rates(len(rounds) / seconds * HOUR, sum(one.evaluated for one in rounds) / (seconds * workers))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the simulation takes from a run with one worker."""

    seconds: dict[float, tuple[float, ...]]
    """Of evaluations, by cost."""
    jobs: tuple[Piece, ...]
    update: float
    under_way: float
    """Seconds from sending a job to its answer, beyond updating and evaluating."""
    handling: float
    """Seconds from an answer to the next job."""
    between: float

    @property
    def dispatch(self) -> float:
        """What a job costs beside the work itself."""
        return self.under_way + self.handling


def calibrate(rounds: Sequence[Round]) -> Calibration:
    """From generations of a run with one worker."""
    spans = [span for one in rounds for span in one.spans]
    costs = sorted({span.cost for span in spans})
    seconds = {cost: tuple(span.worked for span in spans if span.cost == cost) for cost in costs}
    gaps = [gap for one in rounds for gap in _gaps(one)]
    return Calibration(
        seconds,
        tuple(Piece(1, span.cost) for span in sorted(rounds[0].spans, key=lambda span: span.number)),
        update=statistics.mean(sum(span.synced for span in one.spans) for one in rounds),
        under_way=statistics.mean(span.received - span.sent - span.synced - span.worked for span in spans),
        handling=statistics.mean(gaps) if gaps else 0.0,
        between=statistics.mean(one.between for one in rounds),
    )


def _gaps(one: Round) -> Iterator[float]:
    ordered = sorted(one.spans, key=lambda span: span.sent)
    for before, after in pairwise(ordered):
        yield after.sent - before.received


def predict(found: Calibration, workers: int, *, slower: float = 1.0, generations: int = 200) -> Outcome:
    """The same generations in simulated time: all that a job costs beside the work is the driver's."""
    driver = Driver(dispatch=found.dispatch, between=found.between)
    fleet = Workers(workers, update=found.update, further=found.update)
    return simulate(Scenario(Measured(found.seconds, slower), found.jobs, fleet, driver, generations))


def contention(alone: Run, together: Run) -> float:
    """How many times longer the same generation's evaluations take in all where two workers run side by side."""
    one, two = (statistics.mean(r.evaluated for r in run.rounds) for run in (alone, together))
    return two / one


def halves(run: Run) -> tuple[list[Round], list[Round]]:
    """Every second generation to calibrate with, and the others to compare with."""
    return list(run.rounds[::2]), list(run.rounds[1::2])


# ------------------------------------------------------------------------------- the check


@dataclass(frozen=True, slots=True)
class Check:
    """A real run beside what was predicted for it."""

    name: str
    slower: float
    predicted: Rates
    found: Rates

    @property
    def differences(self) -> tuple[float, float]:
        """Of generations per hour and of utilisation, as shares of what was measured."""
        pairs = zip(astuple(self.predicted), astuple(self.found), strict=True)
        speed, busy = (one / other - 1.0 for one, other in pairs)
        return speed, busy


def checks(runs: dict[tuple[str, int], Run]) -> list[Check]:
    """Every run with something to compare with."""
    made = []
    for case in dict.fromkeys(case for case, _ in runs):
        alone, together = runs.get((case, 1)), runs.get((case, 2))
        if alone is None or len(alone.rounds) < 2:
            continue
        basis, rest = halves(alone)
        made.append(Check(f"{case}, 1 worker", 1.0, _rates(predict(calibrate(basis), 1)), rates(rest, 1)))
        if together is not None and together.rounds:
            slower = 1.0 if case in CLEAN else contention(alone, together)
            predicted = _rates(predict(calibrate(alone.rounds), 2, slower=slower))
            made.append(Check(f"{case}, 2 workers", slower, predicted, rates(together.rounds, 2)))
    return made


def _rates(outcome: Outcome) -> Rates:
    return Rates(outcome.generations_per_hour, outcome.utilisation)


def check_table(runs: dict[tuple[str, int], Run]) -> list[str]:
    """Predicted against measured, and the largest difference."""
    lines = [
        "| run | evaluations slowed | generations/h: predicted | measured | difference "
        "| utilisation: predicted | measured | difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    made = checks(runs)
    for one in made:
        (speed, busy), guess, found = one.differences, one.predicted, one.found
        cells = [
            f"{one.name} | ×{one.slower:.2f}",
            f"{guess.generations_per_hour:,.0f} | {found.generations_per_hour:,.0f} | {speed:+.1%}",
            f"{guess.utilisation:.1%} | {found.utilisation:.1%} | {busy:+.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if not made:
        return ["No run left anything to compare with."]
    largest = max(abs(difference) for one in made for difference in one.differences)
    return [*lines, "", f"The largest difference is {largest:.1%} (limit: 10 %)."]


def overhead_table(runs: dict[tuple[str, int], Run]) -> list[str]:
    """Where the time of a run with one worker goes beside evaluations."""
    lines = [
        "| run with 1 worker | evaluation of a job (s) | dispatch: under way (ms) | handling (ms) | together "
        "| update (ms) | between generations (ms) | a generation (s) | its `step_time` (s) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (case, workers), run in runs.items():
        if workers == 1 and run.rounds:
            found = calibrate(run.rounds)
            largest = statistics.mean(found.seconds[max(found.seconds)])
            parts = (found.under_way, found.handling, found.dispatch, found.update, found.between)
            whole = (statistics.mean(one.seconds for one in run.rounds), statistics.median(run.step_time))
            cells = [case, f"{largest:.3f}", *(f"{1e3 * part:.1f}" for part in parts), *(f"{s:.2f}" for s in whole)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines
