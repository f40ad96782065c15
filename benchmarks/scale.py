"""How 1 to 1,024 Ray workers do: simulated, and checked against real runs with one and two.

    python benchmarks/scale.py measure [--cases toy tiny smollm2] [--output benchmarks/results/scale-runs.json]
    python benchmarks/scale.py page [--measured benchmarks/results/scale-runs.json] [--output benchmarks/results]

``measure`` trains with real workers on Ray (`calibration.py`; two to three minutes on an idle machine without
``smollm2``) and keeps every job's times; the distribution of times goes from there into the simulation.  ``page``
simulates (`simulation.py`: the real dispatcher, everything else a model) and writes scale.md and scale.svg.  The same
seed gives the same page, but for the microseconds of the scheduler.  The plot needs ``pip install matplotlib``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import calibration
from scenario import Driver, Lognormal, Measured, Outcome, Scenario, Uniform, Workers, population
from simulation import simulate

from seedtune.config.sections import RaySettings
from seedtune.engines.ray.scheduler import Request, Scheduler

RESULTS = Path(__file__).parent / "results"
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
PROMPTS = 32
FIXED, SPREAD = 30.0, 0.3
ROLLOUT = 30.0 / (8 * PROMPTS)
DRIVER = Driver(dispatch=0.005, collect=20e-6, latency=0.001, between=2.0)
ASYNCHRONOUS = replace(DRIVER, max_staleness=1)

ASSUMPTIONS = f"""\
Everything marked *simulated, 7B on H100* rests on these assumptions; none of them was measured on an accelerator:

* Worker: one H100 with a 7B model. A job of 8 members × {PROMPTS} prompts × at most 1,024 tokens takes 60 s on average:
  half of that whatever the number of rows, because every step reads all weights, half in proportion to the rows. The
  logarithm of a job's time has a standard deviation of {SPREAD}, drawn anew for every job; workers are equally fast
  where nothing else is said.
* Jobs: groups of 8 members where nothing else is said, and the unperturbed model by itself.
* Update: 1.5 s for every 1,024 members of the population, on every worker, before its first job of a generation; each
  further update in the same pass takes as long again.
* Driver, one thread: {1e3 * DRIVER.dispatch:g} ms for each job (the limit that is set for it),
  {1e6 * DRIVER.collect:g} µs for each rollout that arrives ([scoring](scoring.md) has 8 to 466 µs, by how the reward
  is called), {DRIVER.between:g} s between two generations. While it is busy all workers wait; asynchronous updates
  stop it as long as others.
* Network: {1e3 * DRIVER.latency:g} ms each way. Weights never travel.
* Deaths and hangs are Poisson processes, one rate for every worker. A replacement is there after 120 s, with the newest
  snapshot (one every {DRIVER.save_steps} generations), and replays the updates since before it asks for work. Its
  machine is as fast as the one before. A hang is not reported: it is found by the dispatcher's time-out, the larger of
  {DRIVER.settings.straggler_timeout:g} s, ten times what the job should take and three times the slowest of late (more
  after failures).
* Idle workers are given overdue jobs (twice as long as expected) by a look every {DRIVER.look:g} s.
* The driver does not fail, and workers share nothing that they could slow each other down with."""

CHECKED = """\
`toy` waits 0.1 s for every job and needs no processor; `tiny` is an untrained Llama of a million weights, `smollm2`
SmolLM2-135M; each worker has one core. The prediction for 1 worker is calibrated with every second generation and
compared with the others; that for 2 workers is calibrated with the run with 1. Workers that compute slow each other
down on this machine: by how much is taken from the evaluations of the run with 2 itself (*slowed*), so that for them
the check is of packing and overheads and not of evaluation times. `toy` needs no such correction: it is the clean
check. Generations that warm up are left out, and the last."""

WHERE = """\
Where the time goes with 1 worker. *Under way*: from sending a job to its answer, beyond updating and evaluating.
*Handling*: from an answer to the next job, scoring included. The simulation takes both to be the driver's own time."""

FOUR = """\
Utilisation over 100 generations. *Jobs*: each takes 1 to 2 s, drawn evenly. *Workers*: a job takes 1 s on the fastest
of the four and 2 s on the slowest. *Both*. 5 ms per job, 1 ms of network each way. Static: jobs are dealt out
round-robin before a generation begins."""


# ------------------------------------------------------------------------------- scenarios


def large(members: int, workers: Workers, driver: Driver = DRIVER, *, group: int = 8, generations: int = 8) -> Outcome:
    """A 7B model on H100s, see the assumptions."""
    update = 1.5 * members / 1024
    workers = replace(workers, update=update, further=update, restart=120.0)
    jobs = population(members, group=group, rollouts=PROMPTS)
    return simulate(Scenario(Lognormal(ROLLOUT, SPREAD, FIXED), jobs, workers, driver, generations))


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown, all but the first column to the right."""
    columns = list(columns)
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def percent(share: float) -> str:
    return f"{share:.1%}"


USUAL = ("utilisation", "generations/h", "rollouts/s", "driver busy", "lost work", "staleness")


def usual(outcome: Outcome) -> list[str]:
    """The six figures of every scenario."""
    return [
        percent(outcome.utilisation),
        f"{outcome.generations_per_hour:,.1f}",
        f"{outcome.rollouts_per_second:,.1f}",
        percent(outcome.driver_busy),
        percent(outcome.lost),
        f"{outcome.staleness:.2f}",
    ]


def four_workers() -> str:
    """Times spread twofold: who pulls and who is dealt out to."""
    kinds = {
        "jobs": (Uniform(1.0, 2.0), (1.0,)),
        "workers": (Uniform(1.0, 1.0), (1.0, 4 / 3, 5 / 3, 2.0)),
        "both": (Uniform(1.0, 2.0), (1.0, 4 / 3, 5 / 3, 2.0)),
    }
    rows = []
    for each in (4, 8, 12, 16, 32):
        cells = [f"{each}"]
        for seconds, slowness in kinds.values():
            jobs = population(4 * each, group=1, unperturbed=False)
            driver = Driver(dispatch=0.005, latency=0.001)
            one = Scenario(seconds, jobs, Workers(4, slowness), driver, generations=100)
            dealt = replace(one, driver=replace(driver, static=True))
            cells += [percent(simulate(one).utilisation), percent(simulate(dealt).utilisation)]
        rows.append(cells)
    return table(["jobs per worker", *(f"{kind}: {way}" for kind in kinds for way in ("pulled", "static"))], rows)


Curves = dict[str, dict[int, Outcome]]


def curves() -> Curves:
    """1 to 1,024 workers, for the table and the plot."""
    ways = {"pulled": DRIVER, "static": replace(DRIVER, static=True), "staleness 1": ASYNCHRONOUS}
    return {
        f"{members:,} members, {name}": {count: large(members, Workers(count), driver) for count in COUNTS}
        for members in (1024, 8192)
        for name, driver in ways.items()
    }


def counts_table(found: Curves, members: int) -> str:
    pulled, static, asynchronous = (found[f"{members:,} members, {way}"] for way in ("pulled", "static", "staleness 1"))
    rows = [
        [
            f"{count:,}",
            percent(static[count].utilisation),
            *usual(pulled[count])[:4],
            percent(asynchronous[count].utilisation),
            f"{asynchronous[count].generations_per_hour:,.1f}",
            f"{asynchronous[count].staleness:.2f}",
        ]
        for count in COUNTS
    ]
    names = ["workers", "static: utilisation", *(f"pulled: {name}" for name in USUAL[:4])]
    return table([*names, "staleness 1: utilisation", "generations/h", "staleness"], rows)


def thousand() -> str:
    """1,024 workers: smaller groups, and staleness."""
    rows = [
        [
            f"{group}",
            f"{staleness}",
            *usual(large(8192, Workers(1024), replace(DRIVER, max_staleness=staleness), group=group)),
        ]
        for group in (8, 4, 2)
        for staleness in (0, 1, 2)
    ]
    return table(["members per job", "max_staleness", *USUAL], rows)


def stragglers() -> str:
    kinds = {
        "none": (1.0,),
        "4 of 64, twice as slow": (2.0, *[1.0] * 15),
        "4 of 64, 5 times as slow": (5.0, *[1.0] * 15),
        "16 of 64, twice as slow": (2.0, *[1.0] * 3),
    }
    rows = []
    for name, slowness in kinds.items():
        for way, driver in {
            "static": replace(DRIVER, static=True),
            "pulled": DRIVER,
            "pulled, staleness 1": ASYNCHRONOUS,
        }.items():
            rows.append([name, way, *usual(large(2048, Workers(64, slowness), driver, generations=20))])
    return table(["slow workers", "jobs are", *USUAL], rows)


def failures() -> str:
    rows = []
    for deaths, hangs in ((0.0, 0.0), (0.01, 0.0), (0.1, 0.0), (1.0, 0.0), (4.0, 0.0), (0.0, 0.1), (0.0, 1.0)):
        outcome = large(2048, Workers(64, failures=deaths, hangs=hangs), generations=50)
        counts = outcome.counts
        rows.append([f"{deaths:g}", f"{hangs:g}", *usual(outcome)[:5], f"{counts['deaths'] + counts['found']}"])
        rows[-1].append(f"{counts['given_up']} of {counts['made']:,}")
    return table(["deaths/h of a worker", "hangs/h", *USUAL[:5], "workers replaced", "jobs given up"], rows)


def joining() -> str:
    """What a worker replays before its first job, and what a generation takes before and after 32 join 32."""
    rows = []
    for steps, name in ((25, "25 generations"), (100, "100 generations"), (0, "never")):
        for generation in (10, 60, 110):
            late, driver = Workers(64, late=(32, generation)), replace(DRIVER, save_steps=steps)
            outcome = large(2048, late, driver, generations=generation + 4)
            took = [after - before for before, after in zip((0.0, *outcome.ends), outcome.ends, strict=False)]
            cells = [f"{outcome.joined[0]:,.0f}", f"{took[generation - 1]:,.0f}", *(f"{s:,.0f}" for s in took[-4:-2])]
            rows.append([name, f"{generation}", *cells])
    seconds = ("replayed (s)", "the generation before (s)", "that in which they join (s)", "the one after (s)")
    return table(["snapshot every", "joins at generation", *seconds], rows)


def drivers() -> str:
    rows = []
    for dispatch in (0.001, 0.005, 0.02, 0.1):
        for collect in (8e-6, 98e-6, 466e-6):
            driver = replace(DRIVER, dispatch=dispatch, collect=collect)
            outcome = large(8192, Workers(1024), driver, group=4)
            rows.append([f"{1e3 * dispatch:g}", f"{1e6 * collect:g}", *usual(outcome)[:4]])
    return table(["ms per job", "µs per rollout", *USUAL[:4]], rows)


def dispatcher_itself() -> str:
    """Microseconds of the real dispatcher for each job, measured here: give, answer, give."""
    rows = []
    for workers in (2, 64, 1024):
        scheduler, jobs = Scheduler(RaySettings()), 4 * workers
        for _ in range(jobs):
            scheduler.add(Request(1.0))
        started = time.perf_counter()
        for now in range(5):
            for worker in map(str, range(workers)):
                if now:
                    scheduler.finish(worker, float(now))
                scheduler.next(worker, float(now), workers - 1)
        rows.append([f"{workers:,}", f"{(time.perf_counter() - started) / jobs * 1e6:.0f}"])
    return table(["workers", "µs per job"], rows)


def as_measured(run: calibration.Run) -> str:
    """1 to 1,024 workers that are as fast as the one that was measured here, 1,024 members."""
    found = calibration.calibrate(run.rounds)
    cost = max(found.seconds)
    jobs = population(1024, group=8, rollouts=cost / 8)
    driver = Driver(dispatch=found.dispatch, between=found.between)
    rows = []
    for count in COUNTS:
        workers = Workers(count, update=found.update, further=found.update)
        one = Scenario(Measured(found.seconds), jobs, workers, driver, generations=5)
        rows.append([f"{count:,}", *usual(simulate(one))[:4]])
    return table(["workers", *USUAL[:4]], rows)


# -------------------------------------------------------------------------------- the page


def real_part(path: Path) -> list[str]:
    """What was measured, and what the simulation says to it."""
    title = "## Check against real runs (predicted and measured)"
    if not path.exists():
        return [title, "", "Not measured yet: `python benchmarks/scale.py measure`."]
    made, runs = json.loads(path.read_text(encoding="utf-8")), calibration.read(path)
    said = f"Real workers on Ray {made['ray']}, torch {made['torch']}, {made['cores']} cores, {made['date']}."
    lines = [title, "", f"{said} {CHECKED}", "", *calibration.check_table(runs), "", WHERE, ""]
    lines += calibration.overhead_table(runs)
    computing = [case for case, count in runs if count == 1 and case not in calibration.CLEAN]
    for case in computing[-1:]:
        lines += ["", f"## Workers like the one measured here (simulated from `{case}`, 1,024 members)", ""]
        lines += ["Evaluation times, updates, dispatch and pauses are those measured with 1 worker.", ""]
        lines.append(as_measured(runs[case, 1]))
    return lines


def summary(found: Curves) -> list[str]:
    """The figures for 1,024 workers, and what one can do about them."""
    strict, loose = (found[f"8,192 members, {way}"][1024] for way in ("pulled", "staleness 1"))
    few = found["1,024 members, pulled"]
    return [
        f"* 1,024 workers and 8,192 members, a job for each worker: {percent(strict.utilisation)} of their time is "
        f"evaluation, {strict.generations_per_hour:.0f} generations/h, {strict.rollouts_per_second:,.0f} rollouts/s, "
        f"the driver busy {percent(strict.driver_busy)}. What is lost is waiting for the slowest job.",
        f"* With max_staleness=1 it is {percent(loose.utilisation)}, {loose.generations_per_hour:.0f} generations/h.",
        f"* 1,024 members keep 16 workers busy ({percent(few[16].utilisation)}), not 128 "
        f"({percent(few[128].utilisation)}): it takes about 8 jobs per worker.",
    ]


def sections(found: Curves) -> list[tuple[str, str, str]]:
    """Title, what is said, and table."""
    on = "simulated, 7B on H100"
    doubled = "What the slower one of two workers at the same job does is lost work."
    groups = "Smaller groups spend more on reading weights, and leave less waiting at a generation's end."
    return [
        ("Four workers, times spread twofold (simulated, no accelerator assumed)", FOUR, four_workers()),
        (f"1,024 members ({on})", "128 jobs and the unperturbed model.", counts_table(found, 1024)),
        (f"8,192 members ({on})", "1,024 jobs and the unperturbed model.", counts_table(found, 8192)),
        (f"1,024 workers, 8,192 members: smaller groups and staleness ({on})", groups, thousand()),
        (f"Stragglers: 64 workers, 2,048 members ({on})", doubled, stragglers()),
        (f"Failures: 64 workers, 2,048 members, 50 generations ({on})", "", failures()),
        (f"Joining late: 32 workers join 32, 2,048 members ({on})", "", joining()),
        (f"The driver: 1,024 workers, 8,192 members in groups of 4 ({on})", "", drivers()),
        ("The dispatcher's own time (measured here, the real class without Ray)", "", dispatcher_itself()),
    ]


def page(measured: Path) -> tuple[str, Curves]:
    """Everything but the file."""
    found = curves()
    made = f"`python benchmarks/scale.py page`, {time.strftime('%Y-%m-%d')}. Python {platform.python_version()}."
    note = "How the simulation works is at the top of `benchmarks/simulation.py`; its dispatcher is the real one."
    lines = ["# 1 to 1,024 Ray workers", "", f"{made} {note}", "", "## In short (simulated, 7B on H100)", ""]
    lines += [*summary(found), "", "![utilisation and generations per hour](scale.svg)", ""]
    lines += ["## Assumptions", "", ASSUMPTIONS, "", *real_part(measured), ""]
    for title, said, shown in sections(found):
        lines += [f"## {title}", "", *([said, ""] if said else []), shown, ""]
    return "\n".join(lines), found


def plot(found: Curves, path: Path) -> None:
    """Utilisation and generations per hour against workers, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "scale"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for name, outcomes in found.items():
        colour = {"pulled": "tab:blue", "static": "tab:orange", "staleness 1": "tab:green"}[name.rpartition(", ")[2]]
        style: dict[str, Any] = {"color": colour, "linestyle": "-" if name.startswith("8") else "--", "marker": "."}
        axes[0].plot(COUNTS, [100 * outcomes[count].utilisation for count in COUNTS], **style)
        axes[1].plot(COUNTS, [outcomes[count].generations_per_hour for count in COUNTS], label=name, **style)
    for axis, label in zip(axes, ("utilisation, %", "generations per hour"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_xticks(COUNTS, [str(count) for count in COUNTS], fontsize=7)
        axis.set_xlabel("workers (simulated)")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[1].set_yscale("log")
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure, or simulate and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="real runs with 1 and 2 workers")
    measuring.add_argument("--cases", nargs="+", choices=calibration.CASES, default=["toy", "tiny"])
    measuring.add_argument("--output", type=Path, default=RESULTS / "scale-runs.json")
    running = commands.add_parser("run", help="one real run, in this process (measure calls it)")
    running.add_argument("case", choices=calibration.CASES)
    running.add_argument("workers", type=int)
    running.add_argument("output", type=Path)
    writing = commands.add_parser("page", help="simulate, and write scale.md and scale.svg")
    writing.add_argument("--measured", type=Path, default=RESULTS / "scale-runs.json")
    writing.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.command == "measure":
        calibration.measure(options.cases, options.output)
    elif options.command == "run":
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            run = calibration.train(options.case, options.workers, Path(folder))
        options.output.write_text(json.dumps(run), encoding="utf-8")
    else:
        text, found = page(options.measured)
        print(text)
        (options.output / "scale.md").write_text(text, encoding="utf-8")
        plot(found, options.output / "scale.svg")


if __name__ == "__main__":
    main()
