"""The text of a commented settings file, and of a reward to fill in."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from seedtune.cli.console import plain
from seedtune.cli.init.trial import FUNCTION, NewRun, Tried
from seedtune.config.foreign_data import parse_yaml

SETTINGS = """\
# Settings of a run on your own data.  Train with:  seedtune train {file}
# Change one for a single run with --set KEY=VALUE; a misspelt one is an error that names the nearest.

model: {model}  # Hugging Face id, local folder, or built-in name

# {train} rows for training and {test} held out, with the columns {columns}.
# Prompts are text, or lists of chat messages; all other columns go to the reward, by name.
train_dataset: {train_dataset}
{prompt_column}
# The reward: a function(prompts, completions, **columns) that returns a number for each completion, higher is better.
# Several: [a.py:f, b.py:g], with reward_weights: [1, 0.5]
reward_funcs: {reward}

# The run directory: ledger, metrics, answers, report.  Each run needs its own.
output_dir: {output_dir}

generations: 20            # updates; 'seedtune resume RUN --generations 40' goes on
population: 32             # perturbed models a generation
prompts_per_generation: 16 # training prompts that each of them answers
max_completion_length: 64  # most new tokens of an answer

# Left to the run, which finds both; 'seedtune probe {file}' shows what perturbations do.
# sigma: 0.001   # size of the perturbations
# alpha: 0.0005  # step size
"""

REWARDS = '''\
"""The reward of your fine-tune.  Fill in the function below; seedtune calls it with TRL's signature."""


def {function}(completions, {parameter}**columns):
    """Return one number for each completion: higher is better, None for "does not apply".

    ``columns`` holds the other columns of your data as lists, and ``prompts``.
    """
    return [score(text_of(completion){argument}) for completion{variable} in {iterated}]


def score(text{plain}):
    {comment}
    {body}


def text_of(completion):
    """Text prompts have completions that are text; chats have lists of messages."""
    return completion if isinstance(completion, str) else completion[0]["content"]
'''

WITH_TARGET = {
    "comment": "# An example to replace: 1 for the right answer in the text, and a little more for a short one.",
    "body": "return float(str({target}).strip() in text) + 0.1 / (1 + len(text) / 100)",
}
WITHOUT_TARGET = {
    "comment": "# An example to replace: highest for about 80 characters.  It says nothing about what the text says.",
    "body": "return 1 / (1 + abs(len(text) - 80) / 80)",
}


def settings(run: NewRun, reward: str, tried: Tried, file: Path) -> str:
    """Return the text of the settings ``file``."""
    column = "" if run.prompt_column == "prompt" else f"prompt_column: {scalar(run.prompt_column)}\n"
    (named,) = run.settings(reward)["reward_funcs"]
    return SETTINGS.format(
        file=shlex.quote(plain(str(file))),
        model=scalar(run.model),
        train=tried.train,
        test=tried.test,
        columns=", ".join(map(plain, run.columns)),
        train_dataset=scalar(run.train_dataset),
        prompt_column=column,
        reward=f"[{scalar(named)}]",
        output_dir=scalar(f"runs/{Path(run.train_dataset).stem}"),
    )


def rewards(run: NewRun) -> str:
    """Return the code of a reward to fill in, which uses the column with the right answers if there is one."""
    target = run.target if run.target and run.target.isidentifier() else None
    if target is None:
        words = {"parameter": "", "argument": "", "variable": "", "iterated": "completions", "plain": ""}
        return REWARDS.format(function=FUNCTION, **words, **WITHOUT_TARGET)
    words = {
        "parameter": f"{target}, ",
        "argument": ", right",
        "variable": ", right",
        "iterated": f"zip(completions, {target})",
        "plain": ", right",
        "comment": WITH_TARGET["comment"],
        "body": WITH_TARGET["body"].format(target="right"),
    }
    return REWARDS.format(function=FUNCTION, **words)


def scalar(value: Any) -> str:
    """Return YAML, on one line and without comment signs, that is read as the value: plain text where that is safe."""
    if isinstance(value, str) and value.isprintable():
        with suppress(ValueError):
            if parse_yaml(f"[{value}]") == [value] and parse_yaml(f"a: {value}") == {"a": value}:
                return value
    return json.dumps(value)
