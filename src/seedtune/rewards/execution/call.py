"""One call of a reward function, the boundary to user code: TRL's conventions in, one checked float per completion out.

Worker processes import this module, so it depends on the standard library only.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import reprlib
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set, Sized
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from numbers import Integral, Real
from types import FrameType
from typing import Any, Literal, NamedTuple

FaultKind = Literal["exception", "value", "hang", "crash", "memory", "load", "send"]
"""Why a completion has no value.

In order: the function raised, returned something invalid, took too long, ended its process or ran out of memory; its
code could not be loaded in a worker, or its columns could not be sent to one.
"""

MESSAGE, DETAILS = 500, 4000
"""Characters kept of a message and of its details (a traceback or output)."""


LATE = 1.1
"""Time limits after which an awaitable is cancelled: its caller has counted a hang by then."""

BLOCKED = 0.5
"""Seconds after which an event loop that starts nothing new is blocked."""

LARGEST = 1e60
"""Largest absolute reward: the fourth power of rewards and derived values must not overflow a float."""


class Fault(NamedTuple):
    """A failure: ``message`` continues "the reward function 'x' …"; ``details`` hold a traceback or output."""

    kind: FaultKind
    message: str
    details: str = ""


@dataclass(frozen=True, slots=True)
class RewardResult:
    """One float per completion, NaN where missing, and the faults by completion index.

    ``columns`` (a value per completion) and ``metrics`` are what the function logged, by name.
    """

    values: list[float]
    faults: dict[int, Fault] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)


class TrainerState(NamedTuple):
    """TRL's ``trainer_state``: finished generations, and generations of the whole run."""

    global_step: int
    max_steps: int


TRL = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""Keyword arguments in TRL's convention that are no columns of the data."""

OWN = ("mean", "std", "failed")
"""Metrics of every reward, whose names it cannot log."""


class Log:
    """Columns and metrics that a call on ``count`` completions logs: TRL's ``log_extra`` and ``log_metric``."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.columns: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def extra(self, column: str, values: Iterable[Any]) -> None:
        """Log a value per completion for the samples; others than text, numbers and truth values become text.

        Raises ValueError for another number of values.
        """
        logged = [_logged(value) for value in islice(values, self.count + 1)]
        if len(logged) != self.count:
            raise ValueError(
                f"log_extra({column!r}) got {len(logged)} values for {self.count} completions: log one each"
            )
        self.columns[str(column)] = logged

    def metric(self, name: str, value: float) -> None:
        """Log a number; the metric is the mean of the finite ones of a generation.

        Raises ValueError for one of the names in `OWN`, and for what is no number.
        """
        if name in OWN:
            raise ValueError(f"log_metric({name!r}) would hide the reward's own {name}: choose another name")
        number = _number(value)
        if isinstance(number, str):
            raise ValueError(f"log_metric({name!r}) got {reprlib.repr(value)}: log a number within ±{LARGEST:g}")
        self.metrics.setdefault(str(name), []).append(number)


_OTHERS: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    datetime: (datetime.isoformat, datetime.fromisoformat),
    date: (date.isoformat, date.fromisoformat),
    time: (time.isoformat, time.fromisoformat),
    timedelta: (lambda value: [value.days, value.seconds, value.microseconds], lambda parts: timedelta(*parts)),
    Decimal: (str, Decimal),
    bytes: (bytes.hex, bytes.fromhex),
    tuple: (list, tuple),
}
"""Types that columns have and JSON has not: (how they are written, how they are read)."""

_TYPE = "\0type"
"""The key under which JSON has the name of such a type."""


def sent(value: Any) -> Any:
    """Return data as JSON has them; raise TypeError naming the type that `received` could not give back."""
    if type(value) in _OTHERS:
        return {_TYPE: type(value).__name__, "value": sent(_OTHERS[type(value)][0](value))}
    if isinstance(value, list):
        return [sent(inner) for inner in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("its data hold a mapping with keys that are no text")
        return {key: sent(inner) for key, inner in value.items()}
    if value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(f"its data hold a {type(value).__name__}, which is not plain (text, numbers, dates, lists)")
    return value


def received(text: bytes) -> Any:
    """Parse JSON with the values that `sent` wrote."""
    readers = {kind.__name__: read for kind, (_, read) in _OTHERS.items()}
    return json.loads(text, object_hook=lambda data: readers[data[_TYPE]](data["value"]) if _TYPE in data else data)


def _logged(value: Any) -> Any:
    if value is None or type(value) in (str, bool):
        return value
    if isinstance(value, Real) and math.isfinite(value):  # numpy's, too
        return int(value) if isinstance(value, Integral) else float(value)
    return str(value)[:MESSAGE]


@dataclass(frozen=True, slots=True)
class RewardCall:
    """A call of a reward function on ``count`` completions, with a time limit in ``seconds``.

    Worker processes load the function from ``source``; this process calls ``function``.
    """

    function: Callable[..., Any]
    source: str
    keywords: Mapping[str, Any]
    count: int
    seconds: float
    state: TrainerState | None = None


def failed(fault: Fault, count: int) -> RewardResult:
    """Return the result of a call that failed on all completions."""
    return RewardResult([math.nan] * count, dict.fromkeys(range(count), fault))


def attempt(
    function: Callable[..., Any],
    keywords: Mapping[str, Any],
    count: int,
    *,
    seconds: float | None = None,
    state: TrainerState | None = None,
) -> RewardResult:
    """Call a function with the keywords it accepts, await it if it is async, and check the returned values.

    Any exception except an interrupt becomes a fault of all completions of the call.  ``seconds`` limits the awaiting
    in a thread; otherwise the caller enforces the limit.  With a ``state`` the function gets it, and may log.
    """
    log = Log(count)
    more = {} if state is None else {"trainer_state": state, "log_extra": log.extra, "log_metric": log.metric}
    try:
        returned = awaited(function(**accepted(function, {**keywords, **more})), seconds)
        return replace(_checked(returned, count), columns=log.columns, metrics=log.metrics)
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001 - the named boundary: user code
        return failed(fault_of(error), count)


def fault_of(error: BaseException) -> Fault:
    """Convert an exception to a fault, with the traceback starting at the user's code."""
    kind: FaultKind = "memory" if isinstance(error, MemoryError) else "exception"
    steps = error.__traceback__
    while steps is not None and steps.tb_frame.f_code.co_filename == __file__:
        steps = steps.tb_next
    lines = traceback.format_exception(type(error), error, steps or error.__traceback__)
    return Fault(kind, raised(error), "".join(lines)[-DETAILS:])


def raised(error: BaseException) -> str:
    """Describe an exception, as in ``raised KeyError: 'answer'``."""
    while isinstance(error, BaseExceptionGroup):  # of an asyncio.TaskGroup
        error = error.exceptions[0]
    try:
        words = str(error)
    except Exception as own:  # noqa: BLE001 - the named boundary: the text is made by code of the error's own type
        words = f"(its text raised {type(own).__name__})"
    return f"raised {type(error).__name__}: {words}"[:MESSAGE].removesuffix(": ").removesuffix(".")


def accepted(function: Callable[..., Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the keywords that a function accepts; all if it has ``**kwargs`` or a signature that Python cannot read."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return dict(keywords)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(keywords)
    names = {parameter.name for parameter in parameters}
    return {key: value for key, value in keywords.items() if key in names}


def names(function: Callable[..., Any], keyword: str) -> bool:
    """Whether a function has a parameter of this name."""
    try:
        return keyword in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def awaited(value: Any, seconds: float | None = None) -> Any:
    """Return a value, or run an awaitable to its result, in the process's one event loop, as TRL does.

    Semaphores, clients and queues of a module belong to the loop that used them first.  In the main thread of a
    worker the loop runs there, where signals work.  Other threads share a background loop, which cancels an awaitable
    that takes longer than ``seconds``: it might hold a semaphore for ever.
    """
    if not inspect.isawaitable(value):
        return value
    if threading.current_thread() is threading.main_thread() and not _in_event_loop():
        return _main_loop().run(_await(value, None))
    late = None if seconds is None else LATE * seconds
    with _background:
        answer = asyncio.run_coroutine_threadsafe(_await(value, late), _background_loop()[0])
    return answer.result()


def free_loop(awaiting: FrameType | None, interrupt: Callable[[threading.Thread], None]) -> None:
    """Free the background loop, if the code of the frame waits for it, from what computes or blocks in it.

    That is interrupted; if it cannot be, later awaitables run in a new loop.
    """
    if not any(frame.f_code is awaited.__code__ for frame, _ in traceback.walk_stack(awaiting)):
        return
    with _background:
        loop, thread = _background_loop()
        if not _goes_on(loop):
            interrupt(thread)
            if not _goes_on(loop):
                _background_loop.cache_clear()


def _goes_on(loop: asyncio.AbstractEventLoop) -> bool:
    reached = threading.Event()
    loop.call_soon_threadsafe(reached.set)
    return reached.wait(BLOCKED)


def _in_event_loop() -> bool:
    """Whether the calling thread runs an event loop already (notebooks)."""
    with suppress(RuntimeError):
        return asyncio.get_running_loop() is not None
    return False


_main_loop = lru_cache(asyncio.Runner)
_background = threading.Lock()


@lru_cache
def _background_loop() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_run, args=(loop,), name="async rewards", daemon=True)
    thread.start()
    return loop, thread


def _run(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        with suppress(SystemExit, KeyboardInterrupt):  # of one awaitable, which has it as its error
            loop.run_forever()


async def _await(value: Awaitable[Any], seconds: float | None) -> Any:
    async with asyncio.timeout(seconds):
        return await value


def _checked(returned: Any, count: int) -> RewardResult:
    other = failed(Fault("value", f"returned {type(returned).__name__}, not a list of {count} numbers"), count)
    if isinstance(returned, bytes | Mapping | Set):  # what they iterate over are no rewards, or not in order
        return other
    try:
        given = iter(returned)
    except TypeError:
        return other
    values = list(given if isinstance(returned, Sized) else islice(given, count + 1))  # a generator may never end
    if len(values) != count:
        message = f"returned {len(values)} values for {count} completions: return one number or None for each"
        return failed(Fault("value", message), count)
    numbers = [_number(value) for value in values]
    wrong = {place: number for place, number in enumerate(numbers) if isinstance(number, str)}
    faults = {place: Fault("value", f"returned {reprlib.repr(values[place])}{why}") for place, why in wrong.items()}
    return RewardResult([math.nan if isinstance(number, str) else number for number in numbers], faults)


def _number(value: Any) -> float | str:
    """Convert a returned value to a finite float (NaN for None and NaN), or say what is wrong with it."""
    if value is None:
        return math.nan
    if isinstance(value, str | bytes):
        return ", which is text: return a number or None"
    try:
        number = float(value)
    except Exception:  # noqa: BLE001 - the named boundary: conversion is code of the value's own type
        return f" ({type(value).__name__}): return a number or None"
    if math.isinf(number):
        return ", which is not finite: return a number or None"
    if abs(number) > LARGEST:
        return f", too large to be averaged: return a number within ±{LARGEST:g}, or None"
    return number
