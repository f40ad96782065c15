"""Evaluation of one model on a task's held-out prompts: rewards, accuracy and statistics of its completions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedtune import activities, tasks
from seedtune.config.config import Config
from seedtune.config.foreign_data import shown
from seedtune.config.sections import LikelihoodSettings
from seedtune.engines.base import Engine, Tokenizer
from seedtune.errors import ConfigError
from seedtune.evaluation.estimators import Estimate, bootstrap, majority_at_k, pass_at_k
from seedtune.rewards.scorer import Scorer
from seedtune.rollouts.evaluator import Evaluator, Outcome
from seedtune.rollouts.prepare import check_prompts, fitted
from seedtune.run import metrics as run_metrics
from seedtune.run.diagnostics import divergence
from seedtune.tasks.base import Task
from seedtune.tasks.reference_answers import scores_itself
from seedtune.types import COUNT, STEPS, Example, length, tokens

Floats = NDArray[np.float64]
Columns = Mapping[str, Floats]
"""Measure → one value per prompt; NaN where there is none."""

GENERATED: dict[str, Any] = {"objective": "mean", "likelihood": LikelihoodSettings()}
"""Settings of evaluations that generate completions."""

PLAIN = "as it is"
"""Name of the wording that leaves prompts unchanged."""


FEWEST = 16
"""Members that `EvalConfig.randopt` needs at least: two of them vote."""


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Evaluation settings: greedy completions, and ``samples`` sampled completions of every prompt if above 0.

    Raises ConfigError for incompatible settings.
    """

    samples: int = 0
    temperature: float = 0.7
    """Temperature of the samples; other completions are greedy."""

    ks: tuple[int, ...] = ()
    """The k of pass@k and maj@k; by default 1 and ``samples``."""

    limit: int | None = None
    """Number of held-out prompts, from the first; all of them by default."""

    kl: bool = False
    """Measure the divergence from the base model, on the greedy completions."""

    seed: int = 0
    """Seed of the samples and of the bootstrap, independent of the perturbation noise."""

    baseline: int | None = None
    """Compare with the run after this many generations; 0 is its base model."""

    prompt_baseline: bool = False
    """Add the base model with the best of several prompts, and with the majority vote of its samples."""

    randopt: int = 0
    """Add the vote of the best of so many random members of the base model, chosen on training prompts; 0: none."""

    def __post_init__(self) -> None:
        if self.samples < 0 or (self.ks and not self.samples):
            raise ConfigError(f"samples={self.samples}: pass@k and maj@k need samples. Give as many as the largest k.")
        if any(not 1 <= k <= self.samples for k in self.ks):
            raise ConfigError(f"k={list(self.ks)} of samples={self.samples}: every k is from 1 to the samples.")
        if self.samples and not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature:g} gives equal samples: use one above 0, such as 0.7.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit}: evaluate at least one prompt.")
        if 0 < self.randopt < FEWEST:
            raise ConfigError(f"randopt={self.randopt}: choose the best of at least {FEWEST} members.")
        for name, high in {
            "samples": COUNT,
            "randopt": COUNT,
            "limit": COUNT,
            "seed": 2**64 - 1,
            "baseline": STEPS,
        }.items():
            if not 0 <= (getattr(self, name) or 0) <= high:
                raise ConfigError(f"{name}={shown(getattr(self, name))}: give a number from 0 to {high:,}.")

    @property
    def counts(self) -> tuple[int, ...]:
        """All values of k, ascending."""
        return tuple(sorted({*self.ks} or {1, self.samples} - {0})) if self.samples else ()


@dataclass(frozen=True, slots=True)
class Measures:
    """Values by prompt, and their means with intervals; ``wording`` names the prompts' `Wording`."""

    task: str
    columns: Columns
    estimates: Mapping[str, Estimate]
    seconds: float
    wording: str = PLAIN
    votes: int | None = None
    """Number of samples in the majority vote; None for a single greedy completion."""

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return len(next(iter(self.columns.values())))


def evaluate(engine: Engine, task: Task, config: Config, eval_config: EvalConfig, *, wording: str = PLAIN) -> Measures:
    """Evaluate the engine's current model on the held-out prompts of ``task``.

    Names: ``accuracy`` (full marks), ``reward``, ``reward/FUNCTION`` (if there are several), ``length`` (tokens),
    ``truncated``, ``empty``, ``repeating`` and ``unscored`` (shares) of greedy completions, and ``kl``; of samples
    ``sampled_reward``, ``pass@K``, ``maj@K`` and ``majority_reward@K``; all of them again as ``SET/…`` for the prompts
    of each named set of the task.  A completion without a reward is wrong for accuracy, pass@k and maj@k, 0 if a vote
    chooses it, and excluded from other mean rewards.  The numbers depend on the weights and the settings alone.
    """
    check_eval_config(task, eval_config)
    started = time.perf_counter()
    alone = {"temperature": 0.0, "samples_per_prompt": 1, **({} if scores_itself(task) else GENERATED)}
    greedy = _answer(engine, task, config.replace(**alone), eval_config)
    columns = answered(greedy, task)
    if eval_config.samples:
        several = {
            "temperature": eval_config.temperature,
            "samples_per_prompt": eval_config.samples,
            "seed": eval_config.seed,
        }
        drawn = _answer(engine, task, config.replace(**{**alone, **several}), eval_config)
        columns |= sampled(drawn, task, eval_config.counts)
    columns |= by_set(columns, greedy.examples, task)
    estimates = estimated(columns, eval_config.seed)
    if eval_config.kl:
        estimates["kl"] = Estimate(divergence(engine, config, greedy))
    engine.take_times()
    return Measures(task.name, columns, estimates, time.perf_counter() - started, wording)


def check_eval_config(task: Task, eval_config: EvalConfig) -> None:
    """Raise ConfigError if the task does not support a requested measure."""
    if scores_itself(task) and (eval_config.samples or eval_config.kl or eval_config.randopt):
        raise ConfigError(
            f"task {task.name!r} generates nothing. Leave out --samples, --k, --kl, --prompt-baseline and --randopt."
        )
    if task.environment is not None and eval_config.kl:
        raise ConfigError(f"--kl measures single answers, but task {task.name!r} is a conversation. Leave it out.")


def _answer(engine: Engine, task: Task, config: Config, eval_config: EvalConfig) -> Outcome:
    """Complete the held-out prompts.

    The draws are always those of generation 0, so that equal weights give equal completions, whichever run they are
    from.  Rewards that change with the generations score as at the end of the run.
    """
    examples = prompts_of(task, config, eval_config.limit)
    with activities.doing(f"held-out prompts of {task.name}"):
        scorer = Scorer(task.rewards, config, step=config.generations)
        return Evaluator(engine, task, config, scorer).unperturbed(examples, generation=0, tokens=True)


def by_set(columns: Columns, examples: Sequence[Example], task: Task) -> dict[str, Floats]:
    """Return each measure of each named set of the task, NaN for the prompts of other sets."""
    inside = {name: np.array([example.id in ids for example in examples]) for name, ids in task.test_sets.items()}
    return {
        f"{name}/{measure}": np.where(rows, column, np.nan)
        for name, rows in inside.items()
        for measure, column in columns.items()
    }


def prompts_of(task: Task, config: Config, limit: int | None = None) -> Sequence[Example]:
    """Return the held-out prompts to evaluate, the first ``limit`` of each set; may raise ConfigError."""
    if not task.test:
        raise ConfigError(
            f"task {task.name!r} has no held-out prompts to evaluate on. Give it some (eval_dataset for own data), "
            "or name another task."
        )
    most = limit or config.eval_prompts or None
    sets: list[Sequence[Example]] = [
        tuple(example for example in task.test if example.id in ids) for ids in task.test_sets.values()
    ]
    examples = [example for examples in sets or [task.test] for example in examples[:most]]
    check_prompts(config, task, examples)
    return examples


def answered(outcome: Outcome, task: Task) -> dict[str, Floats]:
    """Compute rewards and statistics of the completions, each as the mean over a prompt's completions."""
    rollouts = outcome.rollouts
    values: dict[str, Any] = {} if not task.has_accuracy else {"accuracy": right(task, outcome.rewards)}
    values["reward"] = outcome.rewards
    if len(outcome.by_function) > 1:
        values |= {f"reward/{name}": column for name, column in outcome.by_function.items()}
    values["length"] = [length(rollout) for rollout in rollouts]
    values["truncated"] = [rollout.finish == "length" for rollout in rollouts]
    values["empty"] = [not rollout.text.strip() for rollout in rollouts]
    values["repeating"] = [tokens(rollout).repeating for rollout in rollouts]
    values["unscored"] = np.isnan(outcome.rewards)
    return {name: _by_prompt(outcome, column) for name, column in values.items()}


def right(task: Task, rewards: Sequence[float]) -> NDArray[np.bool_]:
    """Return which rewards make a completion right, up to rounding; a missing reward does not."""
    least = task.full_marks if task.right_from is None else task.right_from
    assert least is not None
    full: NDArray[np.bool_] = np.asarray(rewards, dtype=np.float64) >= least - 1e-9 * max(1.0, abs(least))
    return full


def _by_prompt(outcome: Outcome, values: Any) -> Floats:
    column = np.asarray(values, dtype=np.float64)
    groups: list[list[float]] = [[] for _ in outcome.examples]
    for rollout, value in zip(outcome.rollouts, column, strict=True):
        groups[rollout.prompt].append(value)
    means = [run_metrics.mean(group) for group in groups]
    return np.array([np.nan if mean is None else mean for mean in means])


def sampled(outcome: Outcome, task: Task, ks: Sequence[int]) -> dict[str, Floats]:
    """Return the mean reward of the samples, and pass@k and votes for every k."""
    groups: list[list[int]] = [[] for _ in outcome.examples]
    for index, rollout in enumerate(outcome.rollouts):
        groups[rollout.prompt].append(index)
    answers = [task.answer_of(rollout.text) for rollout in outcome.rollouts]
    columns = {"sampled_reward": _by_prompt(outcome, outcome.rewards)}
    if task.has_accuracy:
        full = right(task, outcome.rewards).astype(float).tolist()
        for k in ks:
            columns[f"pass@{k}"] = np.array([pass_at_k(len(g), int(sum(full[i] for i in g)), k) for g in groups])
        columns |= {f"maj@{k}": _votes(groups, answers, full, k) for k in ks}
    return columns | {f"majority_reward@{k}": _votes(groups, answers, outcome.rewards, k) for k in ks}


def _votes(groups: Sequence[Sequence[int]], answers: Sequence[str], values: Sequence[float], k: int) -> Floats:
    return np.array([majority_at_k([answers[i] for i in g], [values[i] for i in g], k) for g in groups])


def estimated(columns: Columns, seed: int = 0) -> dict[str, Estimate]:
    """Return the mean and the interval of every measure."""
    return dict(zip(columns, bootstrap(np.stack(list(columns.values()), axis=1), seed=seed), strict=True))


def others(config: Config, own: Task) -> tuple[Task, ...]:
    """Return the further tasks evaluated by a run; ConfigError if they cannot be evaluated along with its ``own``."""
    if config.eval_tasks and not own.test:
        raise ConfigError(
            f"eval_tasks={list(config.eval_tasks)} are evaluated together with held-out prompts of the run's own task, "
            f"and {own.name!r} has none. Give it some, or leave eval_tasks out."
        )
    return tuple(other(config, tasks.create(name)) for name in config.eval_tasks)


def other(config: Config, task: Task, limit: int | None = None, *, tokenizer: Tokenizer | None = None) -> Task:
    """Return a task beside the run's own with held-out prompts that the model can read; may raise a SeedtuneError.

    Only the prompts to evaluate are read, see `prompts_of`, with the engine's ``tokenizer`` if that is loaded already.
    """
    shown = replace(task, train=(), test=prompts_of(task, config, limit))
    generating = config.replace(**GENERATED) if config.uses_likelihood else config
    test = fitted(generating.replace(max_prompt_length=None), shown, tokenizer=tokenizer).test
    return replace(task, test=test)


def during_training(
    engine: Engine, watched: Sequence[Task], config: Config, *, generation: int, scorer: Scorer | None = None
) -> tuple[dict[str, Any], Outcome]:
    """Return metrics of the held-out prompts of the run's own task (the first) and of others, and the own completions.

    Prompts are completed as in training, and those of the own task are scored by the run's ``scorer``.  Names are
    ``eval_…`` for the own task, ``eval_SET/…`` for each of its named sets, and ``eval_TASK/…`` for the others.
    """
    started = time.perf_counter()
    generating = config.replace(**GENERATED) if config.uses_likelihood else config
    with activities.doing("held-out prompts"):
        outcomes = [
            Evaluator(engine, task, config if own else generating, scorer if own else None).unperturbed(
                prompts_of(task, config), generation=generation
            )
            for task, own in ((task, task is watched[0]) for task in watched)
        ]
    taken = engine.take_times()
    own, first = watched[0], outcomes[0]
    metrics: dict[str, Any] = {"generation": generation, "eval_reward": run_metrics.mean(first.rewards)}
    metrics |= {f"eval_{name}": value for name, value in taken.figures.items()}
    metrics |= {"alarms": taken.notes} if taken.notes else {}
    if own.has_accuracy:
        metrics["eval_accuracy"] = float(np.mean(right(own, first.rewards)))
    functions = run_metrics.function_metrics(first.by_function, first.failed) | first.metrics
    metrics |= {f"eval_{name}": value for name, value in functions.items()}
    metrics |= {f"eval_{name}": value for name, value in run_metrics.completion_metrics(first.rollouts).items()}
    metrics["eval_completions/empty_ratio"] = float(np.mean([not rollout.text.strip() for rollout in first.rollouts]))
    of_sets = by_set(answered(first, own), first.examples, own) if own.test_sets else {}
    metrics |= {f"eval_{name}": run_metrics.mean(column) for name, column in of_sets.items()}
    for task, outcome in zip(watched[1:], outcomes[1:], strict=True):
        found = {name: run_metrics.mean(column) for name, column in answered(outcome, task).items()}
        metrics |= {f"eval_{task.name}/{name}": value for name, value in found.items()}
    return {**metrics, "eval_time": time.perf_counter() - started}, first
