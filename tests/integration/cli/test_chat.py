"""``seedtune chat``: the base and the tuned model answer side by side, each with exactly its own weights."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

import models
import runs
from seedtune.cli.chat.conversation import FULL, Conversation
from seedtune.config.config import Config
from seedtune.engines.base import Engine
from seedtune.errors import DataError
from seedtune.run import replay
from seedtune.trainer import ESTrainer
from seedtune.types import UNPERTURBED, Job, Prompt, Sampling
from waiting import BOUND

USER = {"role": "user", "content": "Hi?"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A run of a tiny chat model whose answers change."""
    root = tmp_path_factory.mktemp("tiny")
    models.save_family("llama", root / "model", template=models.CHAT_TEMPLATE)
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in ("a", "b")]
    config = Config(
        model=str(root / "model"),
        output_dir=str(root / "run"),
        generations=2,
        population=4,
        sigma=0.2,
        alpha=2.0,
        eval_size=0.0,
        max_completion_length=6,
        reward_workers=0,
    )
    ESTrainer(args=config, reward_funcs=lengths, train_dataset=rows).train()
    return root / "run"


def lengths(completions, **_):
    return [float(len(set(completion[0]["content"]))) for completion in completions]


def answer(engine: Engine, *messages: dict[str, str]) -> str:
    (rollout,) = engine.evaluate([Job(0, 0.0, (UNPERTURBED,), (Prompt(0, messages),), Sampling(6))])
    return rollout.text


@pytest.mark.parametrize("generation", [2, 1])
def test_every_answer_has_the_weights_of_its_model(tiny, generation):
    recorded = replay.RecordedRun.read(tiny)
    config = recorded.config
    base, _ = replay.load_base(config)
    with closing(base), recorded.weights(config, generation) as tuned, recorded.weights(config, generation) as one:
        talk = Conversation(one, config, max_tokens=6)
        before = one.fingerprint()
        histories = {"base": [USER], "tuned": [USER]}
        found = talk.say("Hi?")
        for name, engine in (("base", base), ("tuned", tuned)):
            assert getattr(found, name) == answer(engine, *histories[name])
            histories[name] += [{"role": "assistant", "content": getattr(found, name)}, USER]
        assert found.base != found.tuned
        again = talk.say("Hi?")
        for name, engine in (("base", base), ("tuned", tuned)):
            assert getattr(again, name) == answer(engine, *histories[name])
        assert talk.turn == 2
        talk.reset()
        assert talk.say("Hi?") == found
        assert one.fingerprint() == before


def test_a_conversation_that_fills_the_context_says_so(tiny):
    recorded = replay.RecordedRun.read(tiny)
    with recorded.weights(recorded.config, 2) as engine:
        talk = Conversation(engine, recorded.config, max_tokens=6)
        with pytest.raises(DataError, match="exceeds the model's context"):
            talk.say("a" * 60)
        assert talk.turn == 0
        assert talk.say("Hi?").base != FULL
        assert talk.say("a" * 60).base == FULL


def piped(run: Path, text: str, *options: str) -> list[str]:
    """The lines that a chat prints for a text that comes from a pipe."""
    command, environment = runs.command("chat", run, *options), runs.environment()
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, env=environment, timeout=BOUND, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_line_of_a_pipe_is_a_conversation_of_its_own(run):
    rows = [json.loads(line) for line in piped(run, "Hello\n\nBye\nHello\n", "--json")]
    assert [row["prompt"] for row in rows] == ["Hello", "Bye", "Hello"]
    assert rows[0] == rows[2]
    assert {row["model"] for row in rows} == {"generation 5"}
    assert all(row["base"] != row["tuned"] for row in rows)


def test_from_a_pipe_answers_are_plain_lines(run):
    first, prompt, base, tuned = piped(run, "/quit\n", "--generation", "0")
    assert first == "toy: base model and generation 0"
    assert (prompt, base.split(": ")[0], tuned.split(": ")[0]) == ("prompt: /quit", "base model", "generation 0")
    assert base.split(": ")[1] == tuned.split(": ")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--generation", "9"], "generation 9 is not in"),
        (["--temperature", "-1"], "--temperature -1.0 is out of range"),
        (["--set", "sigma=3"], "the run is what it is"),
        (["--set", "engine=ray"], "chat takes one engine, not engine=ray."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_value_is_one_line(failure, run, arguments, message):
    assert message in failure("chat", run, *arguments)


def test_what_is_no_run_is_named(failure, tmp_path):
    assert "is not a run directory" in failure("chat", tmp_path)


def on_terminal(run: Path, typed: list[str], *, columns: int) -> tuple[int, str]:
    """Type a line after each prompt of the chat; return its exit code and what it showed."""
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in runs.environment(TERM="xterm").items() if name != "COLUMNS"}
    process = subprocess.Popen(runs.command("chat", run), env=environment, preexec_fn=partial(os.login_tty, theirs))
    os.close(theirs)
    shown, waiting = "", list(typed)
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # the process has ended
            break
        if not part:
            break
        shown += part.decode()
        if shown.endswith("> ") and waiting:
            os.write(terminal, waiting.pop(0).encode())
    code = process.wait(BOUND)
    os.close(terminal)
    return code, shown


def test_on_a_wide_terminal_answers_stand_side_by_side(run):
    code, shown = on_terminal(run, ["Hello\n", "/reset\n", "/rest\n", "/quit\n"], columns=120)
    assert code == 0, shown
    shown = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", shown)
    assert any(line.startswith("┃ base model") and "┃ generation 5" in line for line in shown.splitlines())
    assert "(a new conversation)" in shown
    assert "/rest is no command: /reset begins a new conversation" in shown


@pytest.mark.parametrize(("key", "expected"), [("\x04", 0), ("\x03", 130)], ids=["Ctrl-D", "Ctrl-C"])
def test_on_a_narrow_terminal_they_follow_one_another(run, key, expected):
    code, shown = on_terminal(run, ["Hello\n", key], columns=60)
    assert code == expected, shown
    assert "\nbase model: " in shown
    assert "\ngeneration 5: " in shown
    assert "Traceback" not in shown
