"""Evaluation of a model or a run on one or several tasks: load it once, measure it on each, and compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from seedtune import engines, tasks
from seedtune.config.config import Config
from seedtune.config.yaml_file import override, read_settings
from seedtune.engines.base import Engine
from seedtune.errors import ConfigError
from seedtune.evaluation.estimators import Estimate, bootstrap
from seedtune.evaluation.held_out import EvalConfig, Measures, check_eval_config, held_out, measure
from seedtune.evaluation.prompt_baseline import baselines, voted
from seedtune.rollouts.prepare import TaskInputs, take
from seedtune.run import directory, ledger, recorded_config, replay
from seedtune.tasks.base import Task
from seedtune.types import __version__

SCHEMA = 1
"""Version of the JSON form: new fields keep the version; any other change increments it."""

VOTES = 16
"""Samples per prompt of a baseline, if none are configured."""

BASE = "base model"
SETTINGS = ("max_completion_length", "system_prompt", "chat_template_kwargs", "top_p", "stop", "engine")
"""Settings recorded with a result."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The evaluated weights under a name, and one result per task."""

    name: str
    generation: int | None
    """Generation of a run; None for a model."""

    fingerprint: str
    """Fingerprint of the weights: equal weights have equal ones."""

    results: tuple[Measures, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Subjects evaluated on the same prompts, the requested one first."""

    what: str
    model: str
    eval_config: EvalConfig
    settings: Mapping[str, Any]
    subjects: tuple[Subject, ...]

    def difference(self, other: int, task: int) -> dict[str, Estimate]:
        """Return the first subject minus another one on a task, paired by prompt, for the measures of both."""
        ours, theirs = (self.subjects[index].results[task].columns for index in (0, other))
        shared = [name for name in ours if name in theirs]
        return {name: bootstrap((ours[name] - theirs[name])[:, None], seed=self.eval_config.seed)[0] for name in shared}

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON, with None for NaN."""
        return {
            "schema": SCHEMA,
            "seedtune": __version__,
            "what": self.what,
            "model": self.model,
            "eval_config": {**asdict(self.eval_config), "ks": list(self.eval_config.counts)},
            "settings": dict(self.settings),
            "subjects": [self._subject(index) for index in range(len(self.subjects))],
        }

    def _subject(self, index: int) -> dict[str, Any]:
        one = self.subjects[index]
        results = [_result(result) for result in one.results]
        for task, result in enumerate(results) if index else ():
            result["first_less_this"] = _numbers(self.difference(index, task))
        return {"name": one.name, "generation": one.generation, "fingerprint": one.fingerprint, "results": results}


def _result(result: Measures) -> dict[str, Any]:
    kept = {name: getattr(result, name) for name in ("task", "prompts", "put", "votes", "seconds")}
    return {**kept, "measures": _numbers(result.estimates)}


def _numbers(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: asdict(estimate) for name, estimate in estimates.items()}


def is_run(what: str | Path) -> bool:
    """Return whether this is a run directory, as opposed to a model."""
    return directory.RunPaths(Path(what)).ledger.exists()


def settings_of(what: str | Path, *, file: Path | None = None, sets: Sequence[str] = ()) -> Config:
    """Return the settings for evaluating ``what``: a run's own, or those of ``file`` (say, RUN/config.yaml).

    ``sets`` override single settings.  Raises ConfigError for an unknown setting, or if ``what`` is a run and ``file``
    is given; `evaluate` raises it for a change that the weights of a run depend on.
    """
    if not is_run(what):
        named = {"model": str(what)}
        return Config.create({**override({**(read_settings(file) if file else {}), **named}, sets), **named})
    if file is not None:
        raise ConfigError(f"{what} is a run and has settings of its own: change them one by one, and leave out {file}.")
    return recorded_config.with_settings(recorded_config.run_config(Path(what)), sets)


def evaluate(
    what: str | Path,
    *,
    on: Sequence[str | Task] = (),
    generation: int | None = None,
    eval_config: EvalConfig | None = None,
    config: Config | None = None,
    progress: replay.Progress | None = None,
) -> Evaluation:
    """Evaluate a model (folder, id, built-in name) or a run after ``generation`` generations (all by default).

    ``on``: tasks or names of built-in ones; the configured task by default.  ``config`` has the generation settings,
    see `settings_of`; completions are greedy whatever its temperature, and ``eval_config`` says what is sampled in
    addition. Weights are loaded once for all tasks.  Raises ConfigError, RunError, LedgerError or RewardError.
    """
    eval_config = eval_config or EvalConfig()
    if eval_config.prompt_baseline:
        count = eval_config.samples or VOTES
        eval_config = replace(eval_config, samples=count, ks=tuple(sorted({*eval_config.ks, 1, count})))
    config = _asked_task(what, on, config or settings_of(what))
    opened, goals = _run(Path(what), config, progress) if is_run(what) else _model(str(what), config, eval_config)
    reached = goals(generation, eval_config)
    wanted = [_task(one, config) for one in on or [config.task]]
    for task in wanted:
        held_out(task, config)
        check_eval_config(task, eval_config)
    subjects: list[Subject] = []
    for goal in reached:
        with opened(goal) as engine:
            subjects += _subjects(engine, wanted, config, eval_config, (str(what), goal))
    kept = {name: getattr(config, name) for name in SETTINGS}
    return Evaluation(str(what), config.model, eval_config, kept, tuple(subjects))


def _asked_task(what: str | Path, on: Sequence[str | Task], config: Config) -> Config:
    """For a model, configure the only task in ``on``, so that ``task_args`` are its settings."""
    if is_run(what) or config.train_dataset is not None:
        return config
    if len(on) == 1 and isinstance(on[0], str):
        return config.replace(task=on[0])
    if config.task_args and config.task not in on:
        raise ConfigError(f"task_args={config.task_args} belong to one task. Evaluate it alone, or leave them out.")
    return config


Opened = Callable[[int | None], Any]
Goals = Callable[[int | None, EvalConfig], list[int | None]]


def _model(what: str, config: Config, eval_config: EvalConfig) -> tuple[Opened, Goals]:
    """Return a context manager that opens the model, and its only goal: the model itself."""
    if eval_config.kl or eval_config.baseline is not None:
        raise ConfigError(f"a comparison with the base model needs a run directory, and {what!r} is not one.")

    @contextmanager
    def opened(_: int | None) -> Iterator[Engine]:
        engine = engines.create(config)
        try:
            engine.load()
            yield engine
        finally:
            engine.close()

    def goals(generation: int | None, _: EvalConfig) -> list[int | None]:
        if generation is not None:
            raise ConfigError(f"--generation needs a run directory, and {what!r} is not one.")
        return [None]

    return opened, goals


def _run(root: Path, config: Config, progress: replay.Progress | None) -> tuple[Opened, Goals]:
    """Return a context manager that opens a run at a generation, and the generations to open, requested one first."""
    recorded, contents = recorded_config.run_config(root), ledger.read(directory.RunPaths(root).ledger)
    recorded_config.check_same_run(root, contents.header, recorded)
    names = [name for name, _, _ in ledger.differences(recorded.model_dump(), config.model_dump())]
    fixed = [name for name in names if name in ("model", *recorded_config.WEIGHTS)]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: the run's weights depend on it, so an evaluation cannot change it.")

    @contextmanager
    def opened(goal: int | None) -> Iterator[Engine]:
        engine, _ = replay.load(root, config, contents, generation=goal, progress=progress)
        try:
            yield engine
        finally:
            engine.close()

    def goals(generation: int | None, eval_config: EvalConfig) -> list[int | None]:
        first = replay.goal_of(root, contents, generation)
        others = [] if eval_config.baseline is None else [replay.goal_of(root, contents, eval_config.baseline)]
        return list(dict.fromkeys([first, *others, *([0] if eval_config.prompt_baseline else [])]))

    return opened, goals


def _task(one: str | Task, config: Config) -> Task:
    if isinstance(one, Task):
        return one
    return take(config, TaskInputs())[1] if one == config.task else tasks.create(one)


def _subjects(
    engine: Engine, wanted: Sequence[Task], config: Config, eval_config: EvalConfig, place: tuple[str, int | None]
) -> list[Subject]:
    """Evaluate the engine's current model and, if that is the base model, its prompt baselines."""
    what, generation = place
    results = tuple(measure(engine, task, config, eval_config) for task in wanted)
    name = what if generation is None else f"generation {generation}" if generation else BASE
    found = [(name, results)]
    if eval_config.prompt_baseline and not generation:
        found.append((f"{name}, majority of {eval_config.samples}", tuple(voted(result) for result in results)))
        best, best_voted = baselines(engine, wanted, config, eval_config)
        found += [
            (f"{name}, best prompt", best),
            (f"{name}, best prompt, majority of {eval_config.samples}", best_voted),
        ]
    fingerprint = engine.fingerprint()
    return [Subject(told, generation, fingerprint, held) for told, held in found]
