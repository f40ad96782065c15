"""Prepare a run: record the inputs in the configuration, build the task, check both, and fit prompts to the model."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from seedtune import engines
from seedtune.config.config import Config
from seedtune.config.data_and_rewards import OWN_TASK
from seedtune.config.sections import ConversationSettings
from seedtune.engines.base import Tokenizer
from seedtune.errors import ConfigError, DataError
from seedtune.rewards.execution.call import raised
from seedtune.rewards.execution.thread import TimedThread
from seedtune.rollouts.prompts import prompt_of, rehearsed
from seedtune.tasks import environments
from seedtune.tasks.base import Task
from seedtune.tasks.data.prompt_length import Limit, fit
from seedtune.tasks.environments import Tools
from seedtune.tasks.from_config import TaskInputs, built, recorded
from seedtune.tasks.reference_answers import reference_answers, scored_by_the_engine, scores_itself
from seedtune.types import Example, begun

log = logging.getLogger("seedtune")

NOTHING = TaskInputs()

ToolsByName = Mapping[str | None, Tools]
"""The tools of each environment by its name, which is None for one of all rows."""

CONVERSATIONS = ("messages", "conversation", "conversations")
"""Columns of data for supervised fine-tuning, whose conversations hold the answers."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration that records everything passed to a run, and the run's task."""

    config: Config
    task: Task


def prepare(
    config: Config,
    inputs: TaskInputs = NOTHING,
    *,
    task: Task | None = None,
    model: Any = None,
    processing_class: Any = None,
    fits: bool = True,
) -> Prepared:
    """Return the resolved configuration and its task, with prompts that fit the model's context if ``fits``.

    ``task`` is used instead of the configuration's; ``model`` replaces its model: a folder, a Hugging Face id, or a
    loaded model, which is saved in the folder ``output_dir`` + "-base"; ``processing_class``, as in TRL, is a
    tokenizer, which must be the model's own.  Raises ConfigError for settings that do not fit together or the task,
    DataError for unusable data, ModelError for an unknown model, StorageError if a loaded one cannot be saved.
    """
    if not isinstance(config, Config):
        kind = type(config).__name__
        raise ConfigError(f"args is a {kind}, not an ESConfig. Give ESConfig(**settings).")
    if isinstance(model, Config):
        raise ConfigError("model is an ESConfig: the arguments are in TRL's order. Give ESTrainer(args=ESConfig(…)).")
    is_name = isinstance(model, str | os.PathLike)
    config = recorded(config.replace(model=os.fspath(model)) if is_name else config, inputs)
    task = built(config, inputs) if task is None else task
    tools = check(config, task)
    if model is not None and not is_name:
        from seedtune.engines.transformers import given_model

        folder = given_model.save(model, processing_class, Path(f"{config.output_dir}-base"))
        config = config.replace(model=folder)
    if processing_class is not None:
        engines.check_tokenizer(config, processing_class)
    return Prepared(config, fitted(config, task, tools) if fits else task)


def check(config: Config, task: Task) -> ToolsByName:
    """Raise ConfigError or DataError if the settings do not fit the task; return the tools of its environments."""
    for problem in _problems(config, task):
        raise ConfigError(problem)
    environments.check_named(task.environment, task.train, "training")
    environments.check_named(task.environment, task.test, "held-out")
    check_prompts(config, task, (*task.train, *task.test))
    _check_begun(config, task)
    if config.uses_likelihood:
        for example in (*task.train, *task.test):
            reference_answers(config, example)
    if not task.train:
        raise DataError(f"the training data of task {task.name!r} is empty. Give at least one row with a 'prompt'.")
    return _tools(config, task)


def _problems(config: Config, task: Task) -> Iterator[str]:
    """Yield what is wrong with the task under these settings, rule by rule."""
    own, talks = config.task == OWN_TASK, task.environment is not None
    for name in ("reward_weights", "eval_dataset"):
        if getattr(config, name) is not None and not own:
            yield f"{name} is for own data and rewards: give train_dataset and reward_funcs, or leave it out."
    if config.task_args and own:
        yield f"task_args={config.task_args} are for a built-in task, not for own data and rewards."
    scored_elsewhere = any(reward.function is not scored_by_the_engine for reward in task.rewards)
    if config.uses_likelihood and (talks or scored_elsewhere):
        yield (
            f"objective={config.objective} is a reward by itself. Leave reward_funcs and environments out, or use "
            "objective=mean."
        )
    if config.kl_steps and talks:
        yield f"kl_steps={config.kl_steps} measures single answers, not conversations. Use kl_steps=0."
    if config.conversation != ConversationSettings() and not talks:
        yield f"conversation has no effect on task {task.name!r}, which has no environment. Leave it out."
    if config.max_staleness and (talks or scores_itself(task)):
        yield (
            f"ray.max_staleness={config.max_staleness} is for single completions, but task {task.name!r} "
            f"{'is a conversation' if talks else 'generates nothing'}. Use ray.max_staleness=0."
        )


def _tools(config: Config, task: Task) -> ToolsByName:
    """Return the tools of each environment of the task, described to a chat template if one of its rows is a chat."""
    rows = (*task.train, *task.test)
    chats = {environments.name_of(task.environment, row) for row in rows if not isinstance(row.prompt, str)}
    template = config.conversation.tools == "template"
    return {
        name: _tried(config, task, name, templated=template and name in chats)
        for name in environments.factories(task.environment)
    }


def _tried(config: Config, task: Task, name: str | None, *, templated: bool) -> Tools:
    """Return the tools of the environment of this name; ConfigError if it cannot be made or they be described."""
    factory = environments.factories(task.environment)[name]
    with closing(TimedThread(config.reward_timeout)) as thread:
        trial = thread.call(partial(environments.try_out, factory, task.tools, templated=templated))
    error = trial.exception()
    if error is not None:
        which = "its environment" if name is None else f"its environment {name!r}"
        why = str(error) if isinstance(error, ConfigError) else f"{which} {raised(error)}. Mend it."
        raise ConfigError(f"task {task.name!r}: {why}") from error
    tools: Tools = trial.result()
    return tools


def _check_begun(config: Config, task: Task) -> None:
    """Say which prompts end with an assistant message, which the model continues; DataError if it is the answer."""
    rows = (*task.train, *task.test)
    found = [row for row in rows if begun(row.prompt)[0] != row.prompt]
    if not found or {"continue_final_message", "add_generation_prompt"} & config.chat_template_kwargs.keys():
        return
    row, text, share = found[0], begun(found[0].prompt)[1], f"{len(found)} of {len(rows)}"
    if config.task == OWN_TASK and config.prompt_column in CONVERSATIONS:
        raise DataError(
            f"row {row.id}: its {config.prompt_column!r} end with an answer, which the model would read, {text!r:.80} "
            f"(so in {share} rows). Put the answer into a column of its own, or, if the model is to continue it, set "
            "chat_template_kwargs.continue_final_message=true."
        )
    log.warning(
        "%s prompts end with an assistant message, which the model continues, first row %d: %.80r", share, row.id, text
    )


def check_prompts(config: Config, task: Task, examples: Sequence[Example]) -> None:
    """Raise ConfigError if a system prompt cannot be put in front of a prompt."""
    if config.system_prompt is not None and any(isinstance(example.prompt, str) for example in examples):
        raise ConfigError(
            f"system_prompt={config.system_prompt!r} needs chat prompts, but task {task.name!r} has "
            "plain text. Make its prompts lists of messages, or leave system_prompt out."
        )


def fitted(config: Config, task: Task, tools: ToolsByName | None = None, *, tokenizer: Tokenizer | None = None) -> Task:
    """Return the task with prompts (and reference answers) that the model can read and that fit its context.

    ``tokenizer`` is the engine's, loaded if it is not given.
    """
    tokenizer = tokenizer or engines.tokenizer(config)

    def measure(rows: Sequence[Example]) -> list[int]:
        prompts = [prompt_of(config, row) for row in rows]
        for name in environments.factories(task.environment):  # a template may refuse only the turns that follow
            pairs = zip(rows, prompts, strict=True)
            talks = [prompt for row, prompt in pairs if environments.name_of(task.environment, row) == name]
            tokenizer.lengths(rehearsed(config, talks, (tools or {}).get(name, {})))
        return tokenizer.lengths(prompts)

    def measure_answers(rows: Sequence[Example]) -> list[int]:
        answers = [reference_answers(config, row).answers for row in rows]
        prompts = (prompt_of(config, row) for row in rows)
        return tokenizer.lengths([replace(p, answers=a) for p, a in zip(prompts, answers, strict=True)])

    task, context = fit(task, _limit(config, tokenizer.context_length), measure), tokenizer.context_length
    if scores_itself(task):
        why = f"the model's context of {context}, with the longest answer"
        task = fit(task, Limit(context or math.inf, why, config.prompt_truncation), measure_answers)
    return task


def _limit(config: Config, context: int | None) -> Limit:
    """Return the token limit of a prompt."""
    limits, new = {math.inf: ""}, config.max_completion_length
    if config.max_prompt_length is not None:
        limits[config.max_prompt_length] = f"max_prompt_length={config.max_prompt_length}"
    if context is not None and config.uses_likelihood:
        limits.setdefault(context, f"the model's context of {context}")
    elif context is not None and new < context:
        limits.setdefault(context - new, f"the model's context of {context} without max_completion_length={new}")
    elif context is not None:
        raise ConfigError(
            f"max_completion_length={new} leaves no room for a prompt in the model's context of {context} tokens. "
            "Lower it."
        )
    return Limit(min(limits), limits[min(limits)], config.prompt_truncation)
