"""Reward functions that misbehave, always or on the prompt ``word 0`` only.  Worker processes import this."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def sleeps(completions, **_):
    time.sleep(1e9)


def holds_the_lock(completions, **_):
    re.match(r"(a+)+$", "a" * 60 + "b")


def exits(completions, **_):
    sys.exit("bye")


def leaves(completions, **_):
    os._exit(3)


def kills_its_group(completions, **_):
    os.killpg(0, signal.SIGKILL)


def exhausts_memory(completions, **_):
    held = []
    while True:
        held.append(str(len(held)) * 10**6)


def starts_threads(completions, **_):
    hold = threading.Event()
    while True:
        threading.Thread(target=hold.wait, daemon=True).start()


def allocates_in_torch(completions, **_):
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")


def allocates_in_cpp(completions, **_):
    sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'")
    sys.stderr.flush()
    os.abort()


def hides_its_error(completions, **_):
    try:
        exhausts_memory(completions)
    except MemoryError as error:
        raise ValueError("something went wrong") from error


def prints_much_and_raises(completions, **_):
    prints_much(completions)
    raise ValueError("after all that")


def prints_any_text(completions, **_):
    print("\u03c3 \udc80")
    print("\u03c3", file=sys.stderr)
    return [1.0] * len(completions)


def prints_much(completions, **_):
    sys.stdout.write("first words\n")
    for _ in range(100):
        sys.stdout.write("x" * 10**6)
    sys.stderr.write("last words")
    return [0.5] * len(completions)


def raises(completions, **_):
    raise KeyError("answer")


def too_few(completions, **_):
    return []


def text(completions, **_):
    return ["0.5"] * len(completions)


def infinite(completions, **_):
    return [-math.inf] * len(completions)


def nan(completions, **_):
    return [math.nan] * len(completions)


def none(completions, **_):
    return [None] * len(completions)


async def async_raises(completions, **_):
    await asyncio.sleep(0)
    raise RuntimeError("in a loop")


GATE = asyncio.Semaphore(1)


async def gated(completions, **_):
    async def one():
        async with GATE:
            await asyncio.sleep(0)
            return 1.0

    return await asyncio.gather(*(one() for _ in completions))


async def rings(completions, **_):
    """Signals are for the main thread."""
    signal.alarm(60)
    signal.alarm(0)
    return [1.0] * len(completions)


def starts_a_session(completions, **_):
    """Start a process with a session of its own, whose parent ends at once, and return its number."""
    ours, theirs = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(theirs, str(os.getpid()).encode())
            time.sleep(1e9)
        os._exit(0)
    os.waitpid(parent, 0)
    return [float(os.read(ours, 20))] * len(completions)


def stops_its_parent(completions, **_):
    os.kill(os.getppid(), signal.SIGSTOP)
    return [0.0] * len(completions)


def forks(completions, **_):
    os.fork()
    return [2.0] * len(completions)


def reads_input(completions, **_):
    return [float(len(sys.stdin.read()))] * len(completions)


def closes_everything(completions, **_):
    os.closerange(0, 100)
    return [1.0] * len(completions)


def pid(completions, **_):
    return [os.getpid()] * len(completions)


def progress(completions, completion_ids, trainer_state, log_extra, log_metric, **_):
    """TRL's keywords: tokens of every completion, the trainer's state, and what is logged."""
    log_extra("shouted", [text.upper() for text in completions])
    log_extra("kind", [int] * len(completions))
    for ids in completion_ids:
        log_metric("tokens", len(ids))
    log_metric("nothing", math.nan)
    return [trainer_state.global_step / trainer_state.max_steps + len(ids) for ids in completion_ids]


def progress_of_all(completion_ids, **given):
    return progress(completion_ids=completion_ids, **given)


class Overlong:
    """Called as TRL's get_soft_overlong_punishment(most, free) and get_repetition_penalty_reward are."""

    def __init__(self, most: int, free: int) -> None:
        self.most, self.free = most, free

    def __call__(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        over = (max(0, len(ids) - self.most + self.free) for ids in completion_ids)
        return [max(-1.0, -count / self.free) for count in over]


class CosineScaled:
    """Called as TRL's get_cosine_scaled_reward(max_len=…) is."""

    def __init__(self, max_len: int) -> None:
        self.max_len = max_len

    def __call__(self, completions: list[str], solution: list[str], completion_ids: list[list[int]], **_: Any):
        right = [text.startswith(answer) for text, answer in zip(completions, solution, strict=True)]
        scaled = (math.cos(math.pi * len(ids) / self.max_len) for ids in completion_ids)
        return [0.5 + 0.5 * value if ok else -0.5 for ok, value in zip(right, scaled, strict=True)]


overlong, cosine_scaled = Overlong(6, 4), CosineScaled(4)


def compares(completions, **_):
    """Needs the other completions of the prompt."""
    return [float(len(text) > min(map(len, completions))) for text in completions]


def counts_turns(environments, **_):
    return [environment.turns for environment in environments]


def counts_turns_by_keyword(completions, **keywords):
    return counts_turns(**keywords) if "1" in completions[0] else counts_turns(keywords["environments"])


def takes_all(**columns):
    return [float("environments" in columns) for _ in columns["completions"]]


def leaves_at_100(completions, **_):
    return leaves(completions) if "100" in completions[0] else [1.0]


def threads(completions, **_):
    return [int(os.environ["OMP_NUM_THREADS"])] * len(completions)


def length(completions, **_):
    return [len(completion) for completion in completions]


def size(completions, **_):
    return [len(completions)] * len(completions)


def digits(completions: list[str], **_: Any) -> list[float]:
    """What a hostile function gives where it behaves."""
    return [sum(character == "1" for character in completion) for completion in completions]


def _on_word_0(misbehave: Callable[..., Any]) -> Callable[..., Any]:
    def reward(prompts, completions, **columns):
        if "word 0" in prompts:
            returned = misbehave(completions=completions)
            return asyncio.run(returned) if asyncio.iscoroutine(returned) else returned
        return digits(completions)

    return reward


SOMETIMES = (
    *("sleeps", "exits", "leaves", "kills_its_group", "exhausts_memory", "prints_much_and_raises"),
    *("raises", "too_few", "text", "infinite", "async_raises"),
)
"""Functions of these names after ``sometimes_`` fail on ``word 0``."""

for _name in (*SOMETIMES, "prints_much", "nan", "none"):
    _made = _on_word_0(globals()[_name])
    _made.__name__ = _made.__qualname__ = f"sometimes_{_name}"
    globals()[_made.__name__] = _made
