"""Evaluation of a model or a run on one or several tasks: load it once, measure it on each, and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from seedtune import engines, tasks
from seedtune.config.config import Config
from seedtune.config.data_and_rewards import OWN_TASK
from seedtune.engines.base import Engine
from seedtune.errors import ConfigError
from seedtune.evaluation import held_out, models
from seedtune.evaluation.best_members import best_members, votes_of
from seedtune.evaluation.estimators import Estimate, bootstrap
from seedtune.evaluation.held_out import EvalConfig, Measures
from seedtune.evaluation.prompt_baseline import CHOSEN_ON, best_prompt, voted
from seedtune.rollouts.prepare import NOTHING, prepare
from seedtune.run import ledger, replay
from seedtune.tasks.base import Task
from seedtune.tasks.from_config import built
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
        subject, results = self.subjects[index], []
        for task, result in enumerate(subject.results):
            kept = {name: getattr(result, name) for name in ("task", "prompts", "wording", "votes", "seconds")}
            results.append({**kept, "measures": _numbers(result.estimates)})
            if index:
                results[-1]["first_less_this"] = _numbers(self.difference(index, task))
        return {
            "name": subject.name,
            "generation": subject.generation,
            "fingerprint": subject.fingerprint,
            "results": results,
        }


def _numbers(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: asdict(estimate) for name, estimate in estimates.items()}


def evaluate(
    what: str | Path,
    *,
    on: Sequence[str | Task] = (),
    generation: int | str | None = None,
    eval_config: EvalConfig | None = None,
    config: Config | None = None,
    progress: replay.Progress | None = None,
) -> Evaluation:
    """Evaluate a model (folder, id, built-in name) or a run after ``generation`` generations (all by default).

    ``generation`` may also be ``best``, ``best:METRIC`` or ``lowest:METRIC``, as in `seedtune.export_run`.

    ``on``: tasks or names of built-in ones; by default the run's own, or that of ``config``.  ``config`` has the
    generation settings, see `models.settings_of`; completions are greedy whatever its temperature, and ``eval_config``
    says what is sampled in addition. Weights are loaded once for all tasks.  Raises ConfigError, RunError, LedgerError
    or RewardError.
    """
    eval_config, on = eval_config or EvalConfig(), models.named_tasks(on)
    if eval_config.prompt_baseline:
        count = eval_config.samples or VOTES
        eval_config = replace(eval_config, samples=count, ks=tuple(sorted({*eval_config.ks, 1, count})))
    config = _asked_task(what, on, config or models.settings_of(what, on=on))
    goals = _goals(what, models.ledger_of(what, config), generation, eval_config)
    if not on:
        _check_has_task(what, config)
    practice = CHOSEN_ON if eval_config.prompt_baseline or eval_config.randopt else 1
    wanted = [_task(name_or_task, config, practice, eval_config.limit) for name_or_task in on or [config.task]]
    for task in wanted:
        held_out.prompts_of(task, config)
        held_out.check_eval_config(task, eval_config)
    subjects: list[Subject] = []
    for goal in goals:
        with models.opened(what, config, generation=goal, progress=progress) as engine:
            subjects += _subjects(engine, wanted, config, eval_config, model=str(what), generation=goal)
    kept = {name: getattr(config, name) for name in SETTINGS}
    return Evaluation(str(what), config.model, eval_config, kept, tuple(subjects))


def _asked_task(what: str | Path, on: Sequence[str | Task], config: Config) -> Config:
    """For a model, configure the only task in ``on``, so that ``task_args`` are its settings."""
    if models.is_run(what) or config.train_dataset is not None:
        return config
    if len(on) == 1 and isinstance(on[0], str):
        return config.replace(task=on[0])
    if on and config.task_args and config.task not in on:
        raise ConfigError(f"task_args={config.task_args} belong to one task. Evaluate it alone, or leave them out.")
    return config


def _check_has_task(what: str | Path, config: Config) -> None:
    """Raise ConfigError if the settings name nothing to evaluate on, or ModelError for the misspelt path of a run."""
    if config.task == OWN_TASK and config.train_dataset is None:
        _ = engines.tokenizer(config).context_length  # reads the model's configuration
        raise ConfigError(
            f"nothing says what to evaluate {str(what)!r} on. Give --task NAME (in Python on=[NAME]; 'seedtune tasks' "
            "lists the names), or a settings file with your own data and reward (--config)."
        )


def _goals(
    what: str | Path, contents: ledger.Contents | None, generation: int | str | None, eval_config: EvalConfig
) -> list[int | None]:
    """Return the generations of a run to evaluate, the requested one first; [None] for a model."""
    if contents is None:
        if eval_config.kl or eval_config.baseline is not None:
            raise ConfigError(f"a comparison with the base model needs a run directory, and {str(what)!r} is not one.")
        if generation is not None:
            raise ConfigError(f"--generation needs a run directory, and {str(what)!r} is not one.")
        return [None]
    baseline, base = eval_config.baseline, [0] if eval_config.prompt_baseline or eval_config.randopt else []
    asked = [generation, *([] if baseline is None else [baseline]), *base]
    return list(
        dict.fromkeys(replay.goal_of(Path(what), contents.generations, goal, chosen=contents.chosen) for goal in asked)
    )


def _task(wanted: str | Task, config: Config, practice: int, limit: int | None) -> Task:
    """Return a task with the held-out prompts to evaluate, fitted; the run's own has ``practice`` training rows."""
    if wanted == config.task:
        task = built(config, NOTHING)
        shown = held_out.prompts_of(task, config, limit)
        return prepare(config, task=replace(task, train=task.train[:practice], test=shown)).task
    return held_out.other(config, wanted if isinstance(wanted, Task) else tasks.create(wanted), limit)


def _subjects(
    engine: Engine,
    wanted: Sequence[Task],
    config: Config,
    eval_config: EvalConfig,
    *,
    model: str,
    generation: int | None,
) -> list[Subject]:
    """Evaluate the engine's current model and, if that is the base model, its prompt baselines."""
    name = model if generation is None else f"generation {generation}" if generation else BASE
    results = [held_out.evaluate(engine, task, config, eval_config) for task in wanted]
    found = {name: results}
    if eval_config.prompt_baseline and not generation:
        best = [best_prompt(engine, task, config, eval_config) for task in wanted]
        votes = f"majority of {eval_config.samples}"
        found[f"{name}, {votes}"] = [voted(result) for result in results]
        found[f"{name}, best prompt"] = best
        found[f"{name}, best prompt, {votes}"] = [voted(result) for result in best]
    if eval_config.randopt and not generation:
        heading = f"{name}, vote of {votes_of(eval_config.randopt)} of {eval_config.randopt} random members"
        found[heading] = [best_members(engine, task, config, eval_config) for task in wanted]
    fingerprint = engine.fingerprint()
    return [Subject(heading, generation, fingerprint, tuple(held)) for heading, held in found.items()]
