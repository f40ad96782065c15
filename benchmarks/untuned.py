"""Nothing given but model, data and reward, against a sweep of fixed (σ, α): held-out gains at equal rollouts.

    python benchmarks/untuned.py response|sweep|auto|split|page [--tasks brief sums] [--seeds 3] [--output DIR]

Tasks differ in reward (sparse, dense), number of training prompts, prompts a generation, temperature and model; each
has a budget of rollouts.  ``response`` measures, without training, how rewards answer to σ: 32 members on 32 training
prompts at every σ.  ``sweep`` runs every pair of σ and step ratio ρ (the step's length over that of a member's
perturbation); ``auto`` gives neither.  A run is a process with one thread; finished runs are kept in
untuned-runs.jsonl of the output folder and not run again.  The models of 1M weights are those of countdown.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from untuned_tasks import MODELS, TASKS, Job, Row

POPULATION = 32
"""N of the sweep."""


# ------------------------------------------------------------------------------ one run, in a process of its own


def one_run(name: str, settings: Row, seed: int, models: Path) -> Row:
    """Every evaluation of a run: generation, rollouts so far, mean reward, paired gain and its error, empty share."""
    import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported
    from seedtune import ESConfig, ESTrainer
    from seedtune.run import directory

    job = TASKS[name]
    model = str(models / job.model) if job.model in MODELS else job.model
    common = {"save_steps": 0, "generations": job.generations, "fingerprint_steps": 1000, "seed": seed}
    every = max(1, job.generations // 4)
    with tempfile.TemporaryDirectory() as folder:
        made = {
            **common,
            **job.settings,
            "model": model,
            "output_dir": f"{folder}/run",
            "eval_steps": every if settings else 0,
            **settings,
        }
        if isinstance(job.data, str):
            trainer = ESTrainer(args=ESConfig.create({**made, "task": job.data, "eval_prompts": 96}))
        else:
            train, test = job.data()
            inputs = {"reward_funcs": job.reward, "train_dataset": train, "eval_dataset": test}
            trainer = ESTrainer(args=ESConfig.create({**made, "reward_workers": 0}), **inputs)
        trainer.train()
        trainer.load().close()
        rows = directory.read_lines(trainer.paths.metrics)
        made = points(rows, directory.read_lines(trainer.paths.samples))
        end = next(point for point in made if point["generation"] == trainer.session.chosen)
        found = {"sigma": trainer.config.sigma, "measured": trainer.session.measured, "chosen": trainer.session.chosen}
        return {**found, "end": end, "points": made, "generations": figures(rows)}


def points(rows: list[Row], samples: list[Row]) -> list[Row]:
    """Means over held-out prompts at every evaluation, paired with the first."""
    by: dict[int, list[float]] = {}
    for row in samples:
        if row["split"] == "test":
            by.setdefault(row["generation"], []).append(row["reward"] or 0.0)
    made, spent = [], 0
    for row in rows:
        spent += row.get("rollouts", 0)
        if "eval_reward" in row:
            now, start = np.array(by[row["generation"]]), np.array(by[0])
            gain = now - start
            error = float(gain.std(ddof=1) / math.sqrt(len(gain)))
            one = {"generation": row["generation"], "rollouts": spent, "reward": float(now.mean())}
            one |= {"gain": float(gain.mean()), "error": error, "empty": row["eval_completions/empty_ratio"]}
            made.append(one | {"spread": float(now.std(ddof=1) / math.sqrt(len(now)))})
    return made


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
    if isinstance(job.data, str):
        run = prepare(ESConfig.create({**made, "task": job.data}))
    else:
        train, test = job.data()
        run = prepare(ESConfig.create(made), TaskInputs(job.reward, None, train, test, None))
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
        last, what = run["end"], f"{run['task']} | {run['label']} | seed {run['seed']}"
        chosen = f"σ {run['sigma']:g}, generation {run['chosen']}"
        print(f"{what}: {last['reward']:.3f} ({last['gain']:+.3f} ± {last['error']:.3f}), {chosen}", flush=True)

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
    """A row a task: what nothing given reaches, by seed, beside the best and the worst fixed pair of the sweep.

    The model handed out was chosen on the prompts that measure it; fixed pairs had no choice: the last model compares.
    """
    heads = (
        "task",
        "start",
        "handed out: gain by seed (± its error)",
        "last model",
        "σ",
        "best pair",
        "its gain",
        "worst",
    )
    lines = [f"| {' | '.join(heads)} |", "| --- | ---: | --- | --- | --- | --- | ---: | ---: |"]
    totals = {"end": 0.0, "last": 0.0, "pair": 0.0}
    for task in TASKS:
        made = {study: [run for run in runs if (run["task"], run["study"]) == (task, study)] for study in STUDIES}
        if not made["auto"]:
            continue
        ends, lasts = [run["end"] for run in made["auto"]], list(map(_last, made["auto"]))
        pairs: dict[str, list[float]] = {}
        for run in made["sweep"]:
            pairs.setdefault(run["label"], []).append(run["end"]["gain"])
        means = sorted((sum(found) / len(found), label) for label, found in pairs.items())
        best = [means[-1][1], f"{means[-1][0]:+.3f}", f"{means[0][0]:+.3f}"] if means else ["–"] * 3
        cells = [
            task if TASKS[task].seen else f"{task} (not looked at before)",
            f"{made['auto'][0]['points'][0]['reward']:.3f}",
            "; ".join(f"{point['gain']:+.3f} ± {point['error']:.3f}" for point in ends),
            "; ".join(f"{point['gain']:+.3f}" for point in lasts),
            ", ".join(f"{run['sigma']:g}" for run in made["auto"]),
        ]
        lines.append(f"| {' | '.join([*cells, *best])} |")
        if means:
            totals["end"] += sum(point["gain"] for point in ends) / len(ends)
            totals["last"] += sum(point["gain"] for point in lasts) / len(lasts)
            totals["pair"] += means[-1][0]
    automatic = [run for run in runs if run["study"] == "auto"]
    handed, final = [run["end"] for run in automatic], list(map(_last, automatic))
    below = [sum(point["gain"] < -point["spread"] for point in points) for points in (handed, final)]
    ratios = [totals[name] / totals["pair"] for name in ("end", "last")] if totals["pair"] else [math.nan] * 2
    return "\n".join([
        *lines,
        "",
        f"Sum of the mean gains over that of the best pairs: {ratios[0]:.2f} handed out, {ratios[1]:.2f} last models.",
        f"Below the start by more than the evaluation's standard error: {below[0]} handed out, {below[1]} last models.",
    ])  # fmt: skip


def _last(run: Row) -> Row:
    """The evaluation of a run's last model."""
    found: Row = max(run["points"], key=lambda point: point["generation"])
    return found


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
