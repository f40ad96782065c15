"""The report of a run in progress, served to browsers on this machine only, and whether the run goes on.

The server listens at 127.0.0.1, answers requests whose Host header names this machine (a stranger's page whose name is
made to point here, by DNS rebinding, has another one), and only below a path that it draws at random and prints, so
that other users of the machine find nothing.  It reads the run's folder and writes nothing.
"""

from __future__ import annotations

import json
import re
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from seedtune.errors import ConfigError
from seedtune.evaluation import report
from seedtune.evaluation.html_report.markup import duration, escaped, known
from seedtune.evaluation.html_report.run_data import load, settings_in
from seedtune.run import directory
from seedtune.run.directory import RunPaths

PERIODS, LEAST, LOADING = 5, 30.0, 600.0
"""A run stalls after so many usual generations without metrics, at the least so many seconds; loading takes longer."""

RECENT = 20
"""Newest generations whose median time is the usual one."""

ADDRESS = "127.0.0.1"
HOSTS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")
"""Where the server listens, and the Host headers that it answers, with any port: it may be forwarded."""

CHECKED = 5.0
"""Seconds between two looks at the run for the terminal."""

HEADERS = {
    "Content-Security-Policy": f"{report.POLICY}; script-src 'self'; connect-src 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

_HEAD = "<script src=live.js defer></script><noscript><meta http-equiv=refresh content=10></noscript>"


@dataclass(frozen=True, slots=True)
class RunState:
    """Whether a run goes on, in a word and in a sentence."""

    word: Literal["loading", "running", "stalled", "ended"]
    said: str


def state_of(paths: RunPaths, *, now: float | None = None) -> RunState:
    """Return the state of a run at ``now`` (seconds of the epoch), from the times at which its files were written.

    A run that ends writes its report after its last metrics.
    """
    changed = _changed(paths.metrics) or _changed(paths.config) or 0.0
    silent = (time.time() if now is None else now) - changed
    rows = [row for row in _metrics(paths.metrics, _stamp(paths.metrics)) if "reward" in row or "eval_reward" in row]
    done = max((row["generation"] for row in rows), default=0)
    goal = known(settings_in(paths.config).get("generations"))
    place = f"generation {done:,}" + (f" of {goal:,.0f}" if goal else "")
    if (_changed(paths.report) or -1.0) >= changed:
        return RunState("ended", f"Ended after {place}.")
    usual = _usual(rows)
    patience = LOADING if usual is None else max(LEAST, PERIODS * usual + _slowest_evaluation(rows))
    if silent <= patience:
        return (
            RunState("running", f"Running: {place} is complete.") if rows else RunState("loading", "Loading the model.")
        )
    since = time.strftime("%H:%M:%S", time.localtime(changed))
    expected = "loading takes minutes at most" if usual is None else f"a generation usually takes {duration(usual)}"
    return RunState(
        "stalled",
        f"Stalled at {place}: no new metrics since {since}, and {expected}. The process may hang, or be gone: look at "
        "its terminal. Nothing is lost; seedtune resume goes on.",
    )


def _usual(rows: Sequence[dict[str, Any]]) -> float | None:
    seconds = [found for row in rows if (found := known(row.get("step_time"))) is not None]
    return statistics.median(seconds[-RECENT:]) if seconds else None


def _slowest_evaluation(rows: Sequence[dict[str, Any]]) -> float:
    return max((known(row.get("eval_time")) or 0.0 for row in rows), default=0.0)


def _changed(path: Path) -> float | None:
    return path.stat().st_mtime if path.is_file() else None


def _stamp(*paths: Path) -> str:
    """Return a text that changes when one of the files does."""
    found = [path.stat() if path.is_file() else None for path in paths]
    return " ".join("-" if stat is None else f"{stat.st_mtime_ns}.{stat.st_size}" for stat in found)


@lru_cache(maxsize=1)
def _metrics(path: Path, _: str) -> list[dict[str, Any]]:
    return directory.read_lines(path)


class LiveReport:
    """The page of a run, rendered again when the run's files have changed."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self._lock, self._shown, self._sections = threading.Lock(), "", [""]
        self._run = load(paths)

    @property
    def stamp(self) -> str:
        """Text that changes when the page does."""
        return _stamp(self.paths.metrics, self.paths.samples, self.paths.evaluations, self.paths.config)

    def page(self) -> str:
        """Return the whole page, with the state of the run at its top."""
        with self._lock:
            stamp = self.stamp
            if stamp != self._shown:
                self._run = load(self.paths)
                self._sections, self._shown = report.sections_of(self._run, self.paths), stamp
            state = state_of(self.paths)
            status = f'<p id=status role=status class={state.word} data-stamp="{stamp}">{escaped(state.said)}</p>'
            return report.page([self._run], self._sections, head=_HEAD, status=status)

    def state(self) -> str:
        """Return the state of the run and the stamp of its page as JSON."""
        found = state_of(self.paths)
        return json.dumps({"stamp": self.stamp, "word": found.word, "said": found.said})


class LiveServer(ThreadingHTTPServer):
    """Serves a run's page at ``url``; ``announce`` gets a sentence whenever the state of the run changes."""

    daemon_threads = True

    def __init__(self, paths: RunPaths, *, port: int = 0, announce: Callable[[str], None] | None = None) -> None:
        """Listen at a port, a free one for 0.  Raises ConfigError if it cannot be used."""
        self.live, self.announce = LiveReport(paths), announce
        self._key, self._word, self._next = secrets.token_urlsafe(12), "", 0.0
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}. Choose another one, or leave it out.") from error
        self.url = f"http://{ADDRESS}:{self.server_port}/{self._key}/"

    def service_actions(self) -> None:
        """Look at the run from time to time, and announce a change of its state."""
        if self.announce is None or time.monotonic() < self._next:
            return
        self._next, state = time.monotonic() + CHECKED, state_of(self.live.paths)
        if state.word != self._word:
            self._word = state.word
            self.announce(state.said)

    def answer(self, path: str) -> tuple[str, str] | None:
        """Return (type, text) for a path, None for an unknown one."""
        found: dict[str, Callable[[], tuple[str, str]]] = {
            f"/{self._key}/": lambda: ("text/html", self.live.page()),
            f"/{self._key}/state": lambda: ("application/json", self.live.state()),
            f"/{self._key}/live.js": lambda: ("text/javascript", _script()),
        }
        return found[path]() if path in found else None


def _script() -> str:
    return resources.files("seedtune.evaluation.html_report").joinpath("live.js").read_text(encoding="utf-8")


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; the base class refuses every other method."""

    server: LiveServer
    server_version, sys_version, timeout = "seedtune", "", 30

    def do_GET(self) -> None:
        """Send a page."""
        self._send(body=True)

    def do_HEAD(self) -> None:
        """Send the headers of a page."""
        self._send(body=False)

    def log_message(self, *_: Any) -> None:
        """Write nothing to the terminal."""

    def _send(self, *, body: bool) -> None:
        if not HOSTS.fullmatch(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.FORBIDDEN, "Open the address that seedtune watch printed")
            return
        found = self.server.answer(self.path)
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND, "Open the address that seedtune watch printed")
            return
        kind, text = found
        data = text.encode()
        self.send_response(HTTPStatus.OK)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(data)),
            **HEADERS,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)
