"""The parent's side of a worker process: start it, send it calls, and end it when it crashes or hangs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection, wait
from typing import Any

from seedtune.rewards.execution.call import Fault, RewardCall, RewardResult, failed

LOAD_SECONDS = 120.0
"""Time limit in seconds for importing a reward function."""

SIGN_SECONDS = 5.0
"""Time limit in seconds for an idle process to answer an empty request."""

GRACE = 0.5
"""Seconds after a time-out for a worker to report where it hangs."""

LARGEST = 1 << 28
"""Largest reply in bytes."""

READS = 16
"""Most reads to empty the output pipe after a call."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from seedtune.rewards.execution.process_main import main; main(*map(int, sys.argv[2:]))"
)
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)


class Excerpt:
    """The head and the tail of a call's output; the bytes between them are counted and dropped."""

    HEAD, TAIL = 1000, 3000

    def __init__(self) -> None:
        self.head, self.tail, self.dropped = b"", b"", 0

    def add(self, data: bytes) -> None:
        """Append output."""
        room = self.HEAD - len(self.head)
        self.head += data[:room]
        rest = self.tail + data[room:] if room > 0 else self.tail + data
        self.tail = rest[-self.TAIL :]
        self.dropped += len(rest) - len(self.tail)

    def text(self) -> str:
        """Return the kept output as text."""
        middle = f"\n… {self.dropped:,} bytes …\n".encode() if self.dropped else b""
        return (self.head + middle + self.tail).decode("utf-8", "replace").strip()


class ProcessWorker:
    """A separate process for reward functions; the next call after its end starts a new one."""

    def __init__(self, memory_mb: int) -> None:
        self.memory_mb, self._owner = memory_mb, os.getpid()
        self.prepared = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._excerpt, self._stopped = Excerpt(), False

    def call(self, call: RewardCall) -> RewardResult:
        """Run the call and return its result; a crash, a hang or exhausted memory fails it and ends the process."""
        request = {"source": call.source, "count": call.count, "seconds": call.seconds}
        try:
            message = json.dumps({**request, "keywords": plain(call.keywords)})
        except (TypeError, ValueError, RecursionError) as error:
            return failed(Fault("send", f"cannot be called in a worker process, because {error}"), call.count)
        began = time.monotonic()
        fault = self._ready(call.source)
        self.prepared = time.monotonic() - began
        reply = self._ask(message, call.seconds) if fault is None else fault
        answer = reply if isinstance(reply, Fault) else self._answer(reply)
        return failed(answer, call.count) if isinstance(answer, Fault) else answer

    def stop(self) -> None:
        """End the process, from any thread; a pending call fails."""
        self._stopped = True
        self._kill()

    def close(self) -> None:
        """End the process and release its pipes."""
        self._kill()
        if self._process is not None:
            self._process.wait()
            self._connection.close()
            self._output.close()
            os.close(self._lifeline)
            self._process = None

    def _answer(self, reply: dict[str, Any]) -> RewardResult | Fault:
        if "fault" in reply:
            return self._spent(Fault(*reply["fault"]))
        values = [math.nan if value is None else float(value) for value in reply["values"]]
        return RewardResult(values, {place: Fault(*fault) for place, fault in reply["faults"]})

    def _spent(self, fault: Fault) -> Fault:
        """Add the function's output to its fault; a process that ran out of memory is not used again."""
        if fault.kind == "memory":
            self.close()
            return fault._replace(message=f"ran out of memory (reward_memory_mb={self.memory_mb})")
        return fault._replace(details=_with_output(fault.details, self._printed()))

    def _ready(self, source: str) -> Fault | None:
        """Start the process and load the function if necessary; return the fault if that fails."""
        if self._process is not None and not self._listens():
            self.close()  # it ended between two calls, so no call is to blame
        if self._process is None:
            self._start()
        if source in self._loaded:
            return None
        reply = self._ask(json.dumps({"source": source}), LOAD_SECONDS)
        fault = reply if isinstance(reply, Fault) else Fault(*reply["fault"]) if "fault" in reply else None
        self._loaded.add(source)
        return None if fault is None else fault._replace(kind="load")

    def _listens(self) -> bool:
        """Whether the process answers an empty request and has sent no unsolicited reply."""
        assert self._process is not None
        return self._process.poll() is None and not self._connection.poll(0) and self._ask("{}", SIGN_SECONDS) == {}

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        watched, lifeline = os.pipe()
        with theirs, open(watched, "rb") as end:
            files = (theirs.fileno(), end.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), *map(str, (*files, self.memory_mb))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=files,
                start_new_session=True,
                env={**os.environ, **_ONE_THREAD, "TOKENIZERS_PARALLELISM": "false"},
            )
        assert self._process.stdout is not None
        self._output, self._lifeline, self._loaded = self._process.stdout, lifeline, set[str]()
        os.set_blocking(self._output.fileno(), False)
        self._connection = Connection(ours.detach())
        if self._stopped:
            self._kill()

    def _ask(self, message: str, seconds: float) -> dict[str, Any] | Fault:
        """Send a request and wait for the reply, reading printed output meanwhile."""
        self._printed()
        self._excerpt = Excerpt()
        deadline = time.monotonic() + seconds + GRACE
        try:
            self._connection.send_bytes(message.encode())
            while self._waits(deadline):
                pass
            if not self._connection.poll(0):
                return self._lost("hang", f"took longer than {seconds:g} s")
            reply: dict[str, Any] = json.loads(self._connection.recv_bytes(LARGEST))
            return reply
        except (OSError, EOFError, ValueError):
            return self._lost("crash", "ended its process")

    def _waits(self, deadline: float) -> bool:
        """Read available output; return whether to keep waiting for the reply or the end of the process."""
        output = self._output.fileno()
        ready = wait([self._connection, output], max(0.0, deadline - time.monotonic()))
        if output in ready and not self._read():
            self._connection.poll(max(0.0, deadline - time.monotonic()))  # it closed its output: only the reply is left
            return False
        return bool(ready) and self._connection not in ready and time.monotonic() < deadline

    def _read(self) -> bool:
        """Move available output into the excerpt; return False at end of file."""
        data = self._output.read(1 << 16)
        self._excerpt.add(data or b"")
        return data != b""

    def _printed(self) -> str:
        """Read the remaining output of the last call and return the excerpt."""
        for _ in range(READS):  # child processes of the call may print for ever
            if not (data := self._output.read(1 << 16)):
                break
            self._excerpt.add(data)
        return self._excerpt.text()

    def _lost(self, kind: Any, message: str) -> Fault:
        """Clean up a process that crashed, or kill one that hangs; return the fault."""
        assert self._process is not None
        process = self._process
        if kind == "crash":
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        self._kill()
        code = process.wait()
        printed = self._printed()
        self.close()
        return Fault(kind, f"{message} ({_ending(code)})" if kind == "crash" else message, _with_output("", printed))

    def _kill(self) -> None:
        """Kill the process and its children; does nothing in a fork of this process."""
        process = self._process
        if process is not None and os.getpid() == self._owner:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def plain(value: Any) -> Any:
    """Return ``value`` if it survives a round trip through JSON; raise TypeError naming the part that does not."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("its data hold a mapping with keys that are no text")
        for inner in value.values():
            plain(inner)
    elif isinstance(value, list):
        for inner in value:
            plain(inner)
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(f"its data hold a {type(value).__name__}, which is not plain (text, numbers, lists)")
    return value


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _with_output(details: str, printed: str) -> str:
    return f"{details}\nprinted:\n{printed}".strip() if printed else details
