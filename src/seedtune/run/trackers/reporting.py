"""Reporting: sends a run's metrics to its trackers, each in a thread of its own, without ever waiting for one."""

from __future__ import annotations

import logging
import queue
import re
import threading
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from seedtune.config.yaml_file import dotted
from seedtune.errors import first_line
from seedtune.run.directory import RunPaths, write_whole
from seedtune.run.trackers import TRACKERS, completion_table
from seedtune.run.trackers.base import Row, TrackedRun, Tracker
from seedtune.run.trackers.packages import FunctionTracker, tracked_name
from seedtune.types import __version__

if TYPE_CHECKING:
    from seedtune.config.config import Config
    from seedtune.engines.base import EngineInfo

log = logging.getLogger("seedtune")

PENDING = 1000
"""Most reports that wait for a tracker, so that one that hangs fills no memory."""

FINISH_SECONDS = 30.0
"""Time that a tracker has at the end of a run for the reports that wait."""


class Reporting:
    """The trackers of a run.  They cannot stop or change it: one that fails is left out after one warning.

    A context that closes them, and a callback of the trainer.  Raises MissingExtraError for a package that is missing.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._channels: list[Channel] = []
        self._trackers()  # raises before the run begins
        if config.log_completions:
            completion_table.check_installed()

    def _trackers(self) -> dict[str, Tracker]:
        return {
            f"function {getattr(each, '__name__', each)!s}" if callable(each) else each: (
                FunctionTracker(each) if callable(each) else TRACKERS[each]()
            )
            for each in self.config.report_to
        }

    def __enter__(self) -> Reporting:
        """Open nothing yet: see `on_start`."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the trackers, and wait for what they still write, `FINISH_SECONDS` at most."""
        self._send("finish", kind is None)
        for channel in self._channels:
            channel.close()
        self._channels = []

    def on_start(self, trainer: Any, info: EngineInfo, first: int) -> None:
        """Open the trackers."""
        if self.config.report_to:
            self._channels = [Channel(name, tracker) for name, tracker in self._trackers().items()]
            self._send("start", TrackedRun(_name_of(trainer.paths), trainer.paths.root, _parameters(self.config, info)))

    def on_generation(self, metrics: Row) -> None:
        """Report a generation."""
        self._send("log", dict(metrics), metrics["generation"])

    def on_evaluate(self, metrics: Row) -> None:
        """Report an evaluation."""
        self._send("log", dict(metrics), metrics["generation"])

    def on_completions(self, generation: int, rows: Sequence[Row]) -> None:
        """Report the completions of a generation."""
        self._send("table", rows, generation)

    def _send(self, method: str, *arguments: Any) -> None:
        for channel in self._channels:
            channel.send(method, *arguments)


class Channel:
    """A tracker and the thread that calls it; after the first failure the tracker receives nothing more."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker = name, tracker
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(PENDING)
        self._failed = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"seedtune-{name}", daemon=True)
        self._thread.start()

    def send(self, method: str, *arguments: Any) -> None:
        """Put a call of the tracker's method into the queue, and return at once."""
        self._put(partial(getattr(self.tracker, method), *arguments))

    def close(self) -> None:
        """Wait for the calls in the queue, for a limited time."""
        self._put(None)
        if not self._failed.is_set():
            self._thread.join(FINISH_SECONDS)
            if self._thread.is_alive():
                self._fail(f"it did not finish within {FINISH_SECONDS:g} seconds")

    def _put(self, call: Callable[[], None] | None) -> None:
        if not self._failed.is_set():
            try:
                self._calls.put_nowait(call)
            except queue.Full:
                self._fail(f"{self._calls.maxsize} reports wait for it")

    def _work(self) -> None:
        try:
            while (call := self._calls.get()) is not None:
                call()
        except Exception as error:  # noqa: BLE001 - the boundary of trackers: a run never ends with one
            self._fail(f"{type(error).__name__}: {first_line(error)}")

    def _fail(self, why: str) -> None:
        if not self._failed.is_set():
            self._failed.set()
            log.warning(
                "report_to: %s gets nothing more of this run (%s). The run goes on, and metrics.jsonl has everything.",
                *(self.name, why[:500]),
            )


def _name_of(paths: RunPaths) -> str:
    """Return the name of the run in trackers, which stays the same after a resume."""
    if paths.tracked_as.is_file():
        with paths.tracked_as.open(encoding="utf-8", errors="replace") as file:
            recorded = file.read(200).strip()
        if re.fullmatch(r"[A-Za-z0-9_.-]{1,120}", recorded):
            return recorded
    name = tracked_name(paths.root, uuid.uuid4().hex[:8])
    write_whole(paths.tracked_as, f"{name}\n".encode())
    return name


def _parameters(config: Config, info: EngineInfo) -> dict[str, Any]:
    """Return the configuration with dotted names, and what was loaded."""
    loaded = {"device": info.device, "dtype": info.dtype, "parameters": info.coverage.total}
    return {**dotted(config.model_dump(mode="json")), "seedtune": __version__, **loaded}
