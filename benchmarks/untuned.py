"""Nothing given but model, data and reward, against a sweep of fixed (σ, α): held-out gains at equal rollouts.

    python benchmarks/untuned.py response|sweep|auto|split|page [--tasks brief sums] [--seeds 3] [--output DIR]

Tasks differ in reward (sparse, dense), number of training prompts, prompts a generation, temperature and model; each
has a budget of rollouts.  The base model, the last one and the one that the run hands out, chosen on held-out prompts,
are measured on fresh ones that the run never sees.  ``response`` measures, without training, how rewards answer to σ:
32 members on 32 training prompts at every σ.  ``sweep`` runs every pair of σ and step ratio ρ (the step's length over
that of a member's perturbation); ``auto`` gives neither.  A run is a process with one thread; finished runs are kept in
untuned-runs.jsonl of the output folder and not run again.  The models of 1M weights are those of countdown.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from untuned_tasks import MODELS, TASKS, Job, Row

Floats = NDArray[np.float64]

POPULATION = 32
"""N of the sweep."""


# ------------------------------------------------------------------------------ one run, in a process of its own


def one_run(name: str, settings: Row, seed: int, models: Path) -> Row:
    """The base model, the last model and the one handed out, on fresh prompts that the run has never seen."""
    import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported
    from seedtune import ESConfig, ESTrainer
    from seedtune.run import directory

    job = TASKS[name]
    model = str(models / job.model) if job.model in MODELS else job.model
    common = {"save_steps": 0, "eval_steps": 0, "fingerprint_steps": 1000, "reward_workers": 0, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        made = {**common, "generations": job.generations, **job.settings, "model": model, "output_dir": f"{folder}/run"}
        rows = job.data()
        trainer = ESTrainer(
            args=ESConfig.create({**made, **settings}),
            reward_funcs=job.reward,
            train_dataset=rows.train,
            eval_dataset=rows.test,
        )
        trainer.train()
        lines = directory.read_lines(trainer.paths.metrics)
        chosen, last = trainer.session.chosen, trainer.generation
        scores = fresh(trainer, rows.fresh, job.reward, (0, last, chosen))
        found = {"sigma": trainer.config.sigma, "measured": trainer.session.measured, "chosen": chosen}
        found |= {"rollouts": sum(line.get("rollouts", 0) for line in lines), "start": float(scores[0].mean())}
        found |= {"last": compared(scores[0], scores[last]), "handed": compared(scores[0], scores[chosen])}
        return {**found, "generations": figures(lines)}


def fresh(trainer: Any, rows: list[Row], reward: Any, generations: tuple[int, ...]) -> dict[int, Floats]:
    """Each fresh prompt's reward after these generations."""
    from seedtune.rollouts.evaluator import Evaluator
    from seedtune.rollouts.prepare import prepare
    from seedtune.tasks.from_config import TaskInputs
    from seedtune.types import UNPERTURBED

    task = prepare(trainer.config, TaskInputs(reward, None, rows, rows, None)).task
    found = {}
    for generation in dict.fromkeys(generations):
        with trainer.session.at(generation) as (engine, _):
            outcome = Evaluator(engine, task, trainer.config).unperturbed(task.test, generation=0)
            found[generation] = np.nan_to_num(outcome.row(UNPERTURBED))
    return found


def compared(before: Floats, now: Floats) -> Row:
    """A model's mean reward, its standard error, the gain over the base model, paired, and the error of that."""
    apart = now - before
    errors = [float(each.std(ddof=1) / math.sqrt(len(each))) for each in (now, apart)]
    return {"reward": float(now.mean()), "spread": errors[0], "gain": float(apart.mean()), "error": errors[1]}


def figures(rows: list[Row]) -> list[Row]:
    """What each generation says of itself."""
    kept = ("reward", "reward_std", "reward_unperturbed", "success_rate", "step_ratio", "agreement", "curvature")
    return [{k: v for k, v in row.items() if k in kept or k == "alarms"} for row in rows if "rollouts" in row]


# ------------------------------------------------------------------------------ how rewards answer to σ

SIGMAS = {False: [1e-3 * 2 ** (k / 2) for k in range(10)], True: [1e-3 * 2**k for k in range(7)]}
"""σ of `response`, of SmolLM2 and of the models of 1M weights."""


def response(name: str, settings: Row, models: Path) -> list[Row]:
    """What 32 members (16 pairs) and the unperturbed model answer to 32 training prompts, at every σ."""
    import seedtune.engines.transformers  # noqa: F401 - as above
    from seedtune import ESConfig, engines
    from seedtune.planning.probe import describe
    from seedtune.rollouts import sigma_search
    from seedtune.rollouts.evaluator import Evaluator
    from seedtune.rollouts.prepare import prepare
    from seedtune.rollouts.sigma_search import GENERATION
    from seedtune.tasks.from_config import TaskInputs
    from seedtune.types import UNPERTURBED, Member, Plan

    job, small = TASKS[name], TASKS[name].model in MODELS
    model = str(models / job.model) if small else job.model
    made = {**job.settings, "model": model, "reward_workers": 0, "prompts_per_generation": 32, **settings}
    data = job.data()
    run = prepare(ESConfig.create(made), TaskInputs(job.reward, None, data.train, data.test, None))
    members = tuple(Member(GENERATION, pair, sign) for pair in range(16) for sign in (1, -1))
    engine = engines.create(run.config)
    engine.load()
    evaluator, examples = Evaluator(engine, run.task, run.config), run.task.train[:32]
    base = evaluator.evaluate((UNPERTURBED,), examples, plan=Plan(GENERATION, 0.0, ()))
    own = sigma_search.answered(engine, run.config, run.task)
    texts, rows = {rollout.prompt: rollout.text for rollout in base.rollouts}, []
    for sigma in SIGMAS[small]:
        outcome = evaluator.evaluate(members, examples, plan=Plan(GENERATION, sigma, members))
        means, apart = outcome.scores.mean(axis=1), base.scores[0] - outcome.scores.mean(axis=0)
        answers = describe(outcome.rollouts, texts)
        rows.append({
            "sigma": sigma,
            "unperturbed": float(base.scores.mean()),
            "members": float(means.mean()),
            "gap_error": float(apart.std(ddof=1) / math.sqrt(len(apart))),
            "spread": float(means.std()),
            "best": float(means.max()),
            "changed": 1.0 - answers.unchanged,
            "damaged": answers.empty + answers.repeating,
            "loss": sigma_search.loss(engine, run.config, own, sigma),
        })  # fmt: skip
    engine.close()
    return rows


HEADS = "σ|gap: unperturbed − members|spread|gap / spread|best − unperturbed|changed|damaged|loss"


def response_page(runs: list[Row]) -> str:
    """A table a task."""
    lines = []
    for run in runs:
        base = run["response"][0]["unperturbed"]
        lines += [f"## {run['task']}", "", f"Unperturbed {base:.3f} on 32 training prompts.", ""]
        lines += [f"|{HEADS}|", "| ---: " * 8 + "|"]
        for row in run["response"]:
            gap, best = base - row["members"], row["best"] - base
            cells = [f"{row['sigma']:.4f}", f"{gap:+.3f} ± {row['gap_error']:.3f}", f"{row['spread']:.3f}"]
            cells += [f"{gap / max(row['spread'], 1e-9):.2f}", f"{best:+.3f}"]
            lines.append(f"| {' | '.join(cells)} | {row['changed']:.0%} | {row['damaged']:.0%} | {row['loss']:.3f} |")
        lines.append("")
    return "\n".join(lines)


# ------------------------------------------------------------------------------ all runs


def sweep(job: Job) -> dict[str, Row]:
    """Every fixed pair, with α = ρσ√(N/2): exact if the two members of a pair are opposites (‖w‖ = √(2N))."""
    return {
        f"σ {sigma:g} ρ {ratio:g}": {
            "sigma": sigma,
            "alpha": ratio * sigma * math.sqrt(POPULATION / 2),
        }
        for sigma in job.sigmas
        for ratio in job.ratios
    }


def split(job: Job) -> dict[str, Row]:
    """The task's budget of rollouts, spent in generations of one size or of a quarter, as N members × P prompts."""
    prompts = int(job.settings["prompts_per_generation"])
    sizes = {POPULATION * prompts: job.generations, POPULATION * prompts // 4: 4 * job.generations}
    return {
        f"{size} rollouts, N {members}": {
            "population": members,
            "prompts_per_generation": size // members,
            "generations": generations,
            "eval_steps": generations,
        }
        for size, generations in sizes.items()
        for members in (8, 16, 32, 64, 128)
        if size // members >= 2
    }


STUDIES: dict[str, Callable[[Job], dict[str, Row]]] = {
    "response": lambda job: {"response": {}},
    "sweep": sweep,
    "auto": lambda job: {"auto": {}},
    "split": split,
}


def collect(options: argparse.Namespace) -> None:
    """Make the runs that are missing."""
    kept = options.output / "untuned-runs.jsonl"
    done = {_name(run) for run in map(json.loads, kept.read_text().splitlines())} if kept.exists() else set()
    wanted = [
        {
            "task": task,
            "study": options.study,
            "label": label,
            "settings": {**settings, **json.loads(options.settings)},
            "seed": seed,
        }
        for seed in range(options.first, options.first + options.seeds)
        for task in options.tasks
        for label, settings in STUDIES[options.study](TASKS[task]).items()
        if options.labels is None or label in options.labels
    ]
    missing = [run for run in wanted if _name(run) not in done]
    for model in {TASKS[run["task"]].model for run in missing} & set(MODELS):
        if not (options.output / model).exists():
            _process(
                str(Path(__file__).with_name("countdown.py")),
                "--family",
                MODELS[model],
                "--output",
                str(options.output / model),
            )

    def make(run: Row) -> None:
        run |= json.loads(_process(__file__, "run", json.dumps(run), str(options.output)))
        with kept.open("a") as file:
            file.write(json.dumps(run) + "\n")
        if "response" in run:
            print(f"{run['task']}: {len(run['response'])} σ", flush=True)
            return
        what, last, handed = f"{run['task']} | {run['label']} | seed {run['seed']}", run["last"], run["handed"]
        ends = f"last {last['gain']:+.3f} ± {last['error']:.3f}, handed out {handed['gain']:+.3f} ({run['chosen']})"
        print(f"{what}: {run['start']:.3f}, {ends}, σ {run['sigma']:g}", flush=True)

    with ThreadPoolExecutor(max(1, options.jobs)) as pool:
        list(pool.map(make, missing))


def _process(*arguments: str) -> str:
    """The last line that a Python process with one thread prints."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    made = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, check=False)
    if made.returncode:
        raise SystemExit(f"{arguments}: {made.stderr[-2000:]}")
    return made.stdout.splitlines()[-1]


def _name(run: Row) -> str:
    return json.dumps([run["task"], run["study"], run["settings"], run["seed"]], sort_keys=True)


def page(runs: list[Row]) -> str:
    """A row a task: what nothing given reaches, by seed, beside the best fixed pair of the sweep.

    Everything is measured on fresh prompts, which no run has seen.  Of the pairs those with the most seeds compare.
    """
    heads = ("task", "start", "handed out: gain by seed (± its error)", "last model", "σ", "best pair", "its gain")
    lines = [f"| {' | '.join(heads)} |", "| --- | ---: | --- | --- | --- | --- | --- |"]
    totals = {"handed": 0.0, "last": 0.0, "pair": 0.0}
    for task in TASKS:
        made = {study: [run for run in runs if (run["task"], run["study"]) == (task, study)] for study in STUDIES}
        if not made["auto"]:
            continue
        gains = {kind: [run[kind]["gain"] for run in made["auto"]] for kind in ("handed", "last")}
        pairs: dict[str, list[float]] = {}
        for run in made["sweep"]:
            pairs.setdefault(run["label"], []).append(run["last"]["gain"])
        most = max(map(len, pairs.values()), default=0)
        means = sorted((statistics.mean(found), label) for label, found in pairs.items() if len(found) == most)
        best = [means[-1][1], "; ".join(f"{gain:+.3f}" for gain in pairs[means[-1][1]])] if means else ["–"] * 2
        cells = [
            task if TASKS[task].seen else f"{task} (not looked at before)",
            f"{statistics.mean(run['start'] for run in made['auto']):.3f}",
            "; ".join(f"{run['handed']['gain']:+.3f} ± {run['handed']['error']:.3f}" for run in made["auto"]),
            "; ".join(f"{gain:+.3f}" for gain in gains["last"]),
            ", ".join(f"{run['sigma']:g}" for run in made["auto"]),
            *best,
        ]
        lines.append(f"| {' | '.join(cells)} |")
        if means:
            totals["pair"] += means[-1][0]
            for kind in gains:
                totals[kind] += statistics.mean(gains[kind])
    return "\n".join([*lines, "", *_sums(totals), *_below([run for run in runs if run["study"] == "auto"])])


def _sums(totals: Row) -> list[str]:
    ratios = [totals[kind] / totals["pair"] if totals["pair"] else math.nan for kind in ("handed", "last")]
    return [
        f"Sum of the mean gains over that of the best pairs: {ratios[0]:.2f} handed out, {ratios[1]:.2f} last models."
    ]


def _below(runs: list[Row]) -> list[str]:
    found = {
        (kind, error): sum(run[kind]["gain"] < -run[kind][error] for run in runs)
        for kind in ("handed", "last")
        for error in ("spread", "error")
    }
    return [
        f"Of {len(runs)} runs, below the start by more than the standard error of the model's own evaluation: "
        f"{found['handed', 'spread']} handed out, {found['last', 'spread']} last models; "
        f"by more than that of the paired difference: {found['handed', 'error']} and {found['last', 'error']}."
    ]


def main() -> None:
    """One study, or one run of it."""
    if sys.argv[1:2] == ["run"]:
        run = json.loads(sys.argv[2])
        models = Path(sys.argv[3])
        made = {"response": response(run["task"], run["settings"], models)} if run["study"] == "response" else None
        print(json.dumps(made or one_run(run["task"], run["settings"], run["seed"], models)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES, "page"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[name for name, job in TASKS.items() if job.seen])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, one thread each")
    parser.add_argument("--labels", nargs="+", help="only these runs of the study, such as 'σ 0.007 ρ 0.4'")
    parser.add_argument("--settings", default="{}", help="further settings of every run, as JSON")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.study != "page":
        collect(options)
    runs = [json.loads(line) for line in (options.output / "untuned-runs.jsonl").read_text().splitlines()]
    if options.study == "page":
        print(page(runs))
    elif options.study == "response":
        print(response_page([run for run in runs if "response" in run and run["task"] in options.tasks]))


if __name__ == "__main__":
    main()
