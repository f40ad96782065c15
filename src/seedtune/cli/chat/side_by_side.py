"""The command ``seedtune chat``: reads messages from a terminal or a pipe, and prints both models' answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from seedtune import activities
from seedtune.cli.console import console, error_console, plain, read_line, say
from seedtune.cli.options import Generation, LocalSets, RunFolder, bounded
from seedtune.cli.progress import ReplayProgress
from seedtune.errors import ConfigError, DataError
from seedtune.types import COUNT

if TYPE_CHECKING:
    from seedtune.cli.chat.conversation import Answers, Conversation

NARROW = 80
"""Columns of a terminal below which answers stand one below the other."""

BASE = "base model"
HELP = "/reset begins a new conversation, /quit (or Ctrl-D) ends"


def chat(
    run: RunFolder,
    generation: Generation = None,
    temperature: Annotated[float, bounded(0, 1000, help="0: the most probable answer (greedy).")] = 0.0,
    max_tokens: Annotated[int | None, bounded(1, COUNT, help="New tokens of an answer; the run's by default.")] = None,
    to_json: Annotated[bool, typer.Option("--json", help="Write a line of JSON for each message.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the base model is, if not where the run had it.")] = None,
    sets: LocalSets = None,
) -> None:
    """Talk to the base model and to the tuned one side by side.

    The tuned model is rebuilt from the ledger.  One model is in memory: its weights change between the two answers.
    On a terminal the conversation goes on until /reset; /quit, Ctrl-D or Ctrl-C ends.  From a pipe every line is a
    conversation of its own: seedtune chat RUN < prompts.txt
    """
    from seedtune.cli.chat.conversation import Conversation
    from seedtune.run import recorded_config, replay

    recorded = replay.RecordedRun.read(run)
    config = recorded_config.for_weights(recorded.config, sets or (), model=model)
    if config.engine == "ray":
        raise ConfigError("chat takes one engine, not engine=ray. Leave it out, or give --set engine=transformers.")
    goal = replay.goal_of(run, recorded.contents.generations, generation, chosen=recorded.contents.chosen)
    limit = config.max_completion_length if max_tokens is None else max_tokens
    with ReplayProgress(console()) as progress:
        opened = recorded.weights(config, goal, None if to_json else progress)
        with opened as engine:
            progress.bar.stop()
            _talk(Conversation(engine, config, temperature, limit), f"generation {goal}", to_json=to_json)


def _talk(conversation: Conversation, tuned: str, *, to_json: bool) -> None:
    """Answer messages until they end."""
    asks = sys.stdin is not None and sys.stdin.isatty()
    if not to_json:
        chats = "" if conversation.chats() else "; the model has no chat template: it continues each text by itself"
        say(f"{conversation.config.model}: {BASE} and {tuned}{f'; {HELP}' if asks else ''}{chats}")
    for text in _messages(conversation, asks=asks):
        if not asks:
            conversation.reset()
        try:
            with activities.doing("answering"):
                answers = conversation.say(text)
        except DataError as error:
            if not asks:
                raise
            error_console().print("error: " + " ".join(str(error).splitlines()))
            continue
        _show(text, answers, tuned, to_json=to_json, asks=asks)


def _messages(conversation: Conversation, *, asks: bool) -> Iterator[str]:
    """Yield the messages for the models, obeying the commands that are typed on a terminal."""
    for line in _lines(asks=asks):
        text = line.strip()
        if asks and text == "/quit":
            return
        if asks and text == "/reset":
            conversation.reset()
            say("(a new conversation)")
        elif asks and text.startswith("/"):
            say(f"{text.split()[0]} is no command: {HELP}")
        elif text:
            yield text


def _lines(*, asks: bool) -> Iterator[str]:
    if not asks:
        yield from sys.stdin or ()
        return
    while True:
        try:
            line = read_line("> ")
        except EOFError:
            say("")
            return
        yield line


def _show(text: str, answers: Answers, tuned: str, *, to_json: bool, asks: bool) -> None:
    """Print both answers: as JSON, as two columns, or one below the other."""
    if to_json:
        row = {"prompt": text, "base": answers.base, "tuned": answers.tuned, "model": tuned}
        sys.stdout.write(plain(json.dumps(row)) + "\n")
        sys.stdout.flush()
        return
    screen = console()
    if screen.is_terminal and screen.width >= NARROW:
        table = Table(BASE, tuned, expand=True, show_lines=False)
        for column in table.columns:
            column.overflow, column.ratio = "fold", 1
        table.add_row(answers.base, answers.tuned)
        screen.print(table)
        return
    if not asks:
        say(f"prompt: {text}")
    say(f"{BASE}: {answers.base}")
    say(f"{tuned}: {answers.tuned}")
    sys.stdout.flush()
