"""Prompt baseline: the base model with the best of several prompts, and with the majority vote of its samples.

Training has to gain more than a better prompt or a vote does (FIELD: best-of-N with a vote is matched by prompt choice
and self-consistency).  The prompt is chosen on training prompts and reported on held-out ones.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

import numpy as np

from seedtune import engines
from seedtune.config.config import Config
from seedtune.engines.base import Engine, Tokenizer
from seedtune.errors import ConfigError, DataError
from seedtune.evaluation.held_out import PLAIN, EvalConfig, Measures, estimated, evaluate, other, prompts_of
from seedtune.run import metrics
from seedtune.tasks.base import Task
from seedtune.types import Example, Message

log = logging.getLogger("seedtune")

CHOSEN_ON = 64
"""Maximum number of training prompts on which the prompt is chosen."""


@dataclass(frozen=True, slots=True)
class Wording:
    """A variation of prompts: a ``system`` message, or words ``after`` the last user message."""

    name: str
    system: str = ""
    after: str = ""


WORDINGS = (
    Wording(PLAIN),
    Wording("step by step", after="Let's think step by step."),
    Wording("only the answer", after="Give only the final answer, nothing else."),
    Wording("careful", system="You are careful and precise. You check your answer before you give it."),
    Wording("brief", system="You answer as briefly as possible."),
    Wording("follow the format", after="Follow the instructions and the format that is asked for exactly."),
)
"""The candidates; the first is the task's own prompt, and of equal ones the first is chosen."""


def best_prompt(engine: Engine, task: Task, config: Config, eval_config: EvalConfig) -> Measures:
    """Evaluate the engine's current model with the best prompt, which may be the task's own."""
    started = time.perf_counter()
    wording = choose(engine, task, config, eval_config)
    task, config = reworded(wording, task, config)
    result = evaluate(engine, task, config, replace(eval_config, kl=False), wording=wording.name)
    return replace(result, seconds=time.perf_counter() - started)


def choose(engine: Engine, task: Task, config: Config, eval_config: EvalConfig) -> Wording:
    """Return the wording of the highest accuracy (or mean reward, without accuracy) on training prompts.

    Raises ConfigError if the task has no training prompts.
    """
    if not task.train:
        raise ConfigError(f"task {task.name!r} has no training prompts to choose a prompt on. Leave out the baseline.")
    practice = replace(task, test=task.train[: min(CHOSEN_ON, eval_config.limit or CHOSEN_ON)], test_sets={})
    greedy = EvalConfig(seed=eval_config.seed)
    shown = replace(task, test=(*practice.test, *prompts_of(task, config, eval_config.limit)))
    tokenizer = engines.tokenizer(config)
    scores, wordings = [], [wording for wording in WORDINGS if _can_be_read(wording, shown, config, tokenizer)]
    for wording in wordings:
        practised, settings = reworded(wording, practice, config.replace(eval_prompts=0))
        columns = evaluate(engine, practised, settings, greedy).columns
        score = metrics.mean(columns["accuracy" if "accuracy" in columns else "reward"])
        scores.append(-np.inf if score is None else score)
    return wordings[int(np.argmax(scores))]


def _can_be_read(wording: Wording, shown: Task, config: Config, tokenizer: Tokenizer) -> bool:
    """Whether the model can read all ``shown`` prompts in a wording: some chat templates have no system message."""
    if wording.name == PLAIN:
        return True
    shown, config = reworded(wording, shown, config)
    try:
        other(config.replace(prompt_truncation="error", eval_prompts=0), shown, tokenizer=tokenizer)
    except DataError as error:
        log.warning("the wording %r is left out: %s", wording.name, error)
        return False
    return True


def voted(measures: Measures) -> Measures:
    """Return the results of the majority vote among a model's samples, under the names for a single completion."""
    votes = max(int(name.partition("@")[2]) for name in measures.columns if name.startswith("majority_reward@"))
    votes_of = f"majority_reward@{votes}"
    parts = [name.removesuffix(votes_of) for name in measures.columns if name.endswith(votes_of)]  # "", "SET/"
    names = {f"{part}accuracy": f"{part}maj@{votes}" for part in parts}
    names |= {f"{part}reward": f"{part}{votes_of}" for part in parts}
    columns = {name: measures.columns[source] for name, source in names.items() if source in measures.columns}
    return replace(measures, columns=columns, estimates=estimated(columns), votes=votes)


def reworded(wording: Wording, task: Task, config: Config) -> tuple[Task, Config]:
    """Apply a wording to the held-out prompts of a task; a system prompt of the run stays in front."""
    system = wording.system
    if system and config.system_prompt is not None:
        config, system = config.replace(system_prompt=f"{config.system_prompt}\n{system}"), ""
    return replace(task, test=tuple(_put(example, system, wording.after) for example in task.test)), config


def _put(example: Example, system: str, after: str) -> Example:
    prompt = example.prompt
    if isinstance(prompt, str):
        return replace(example, prompt="\n\n".join(part for part in (system, prompt, after) if part))
    messages = list(prompt)
    if after:
        users = (index for index, message in enumerate(messages) if message["role"] == "user")
        last = max(users, default=len(messages) - 1)
        messages[last] = {**messages[last], "content": f"{messages[last]['content']}\n\n{after}"}
    if system and messages[0]["role"] == "system":
        messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n{system}"}
    elif system:
        first: Message = {"role": "system", "content": system}
        messages.insert(0, first)
    return replace(example, prompt=tuple(messages))
