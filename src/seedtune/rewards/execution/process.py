"""The parent's side of a worker process: start it, send it calls, and end it when it crashes or hangs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection, wait
from typing import Any

from seedtune.rewards.execution.call import MESSAGE, Fault, FaultKind, RewardCall, RewardResult, failed, sent
from seedtune.rewards.sources.user_code import search_path

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
_OUT_OF_MEMORY = re.compile(
    r"\bMemoryError\b|can't start new thread|unable to start watchdog|(?:can't|[Cc]annot) allocate memory|bad_alloc"
    r"|LLVM ERROR: out of memory"
)
"""Messages of Python, torch, C++ and numba for a failed allocation (CUDA's memory is not limited here)."""

_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)


class Excerpt:
    """The head and the tail of a call's output; the bytes between them are counted and dropped."""

    HEAD, TAIL = 1000, 3000

    def __init__(self) -> None:
        self.kept, self.dropped = bytearray(), 0

    def add(self, data: bytes) -> None:
        """Append output."""
        self.kept += data
        surplus = max(0, len(self.kept) - self.HEAD - self.TAIL)
        del self.kept[self.HEAD : self.HEAD + surplus]
        self.dropped += surplus

    def text(self) -> str:
        """Return the kept output as text."""
        middle = f"\n… {self.dropped:,} bytes …\n".encode() if self.dropped else b""
        return (self.kept[: self.HEAD] + middle + self.kept[self.HEAD :]).decode("utf-8", "replace").strip()


class ProcessWorker:
    """A separate process for reward functions; the next call after its end starts a new one."""

    def __init__(self, memory_mb: int) -> None:
        self.memory_mb, self._owner = memory_mb, os.getpid()
        self.prepared = 0.0
        """Seconds of starting the process and loading the function in the last call."""
        self._process: subprocess.Popen[bytes] | None = None
        self._excerpt, self._stopped = Excerpt(), False

    def call(self, call: RewardCall) -> RewardResult:
        """Run the call and return its result; a crash, a hang or exhausted memory fails it and ends the process."""
        request = {"source": call.source, "count": call.count, "seconds": call.seconds, "state": call.state}
        try:
            message = json.dumps({**request, "keywords": sent(dict(call.keywords))})
        except (TypeError, ValueError, RecursionError) as error:
            return failed(Fault("send", f"cannot be called in a worker process, because {error}"), call.count)
        began = time.monotonic()
        fault = self._load(call.source)
        self.prepared = time.monotonic() - began
        answer = self._ask(message, call.seconds) if fault is None else fault
        return failed(answer, call.count) if isinstance(answer, Fault) else answer

    def stop(self) -> None:
        """End the process, from any thread; a pending call fails."""
        self._stopped = True
        self._kill()

    def close(self) -> None:
        """End the process and release its pipes."""
        self._kill()
        if self._process is not None:
            self._awaited(self._process)
            self._connection.close()
            self._output.close()
            os.close(self._lifeline)
            self._process = None

    def _load(self, source: str) -> Fault | None:
        """Start the process and load the function if necessary; return the fault if that fails."""
        if self._process is not None:
            self._ask(
                "{}", SIGN_SECONDS
            )  # forgets a process that ended or hangs between two calls: no call is to blame
        if self._process is None:
            self._start()
        if source in self._loaded:
            return None
        answer = self._ask(json.dumps({"source": source}), LOAD_SECONDS)
        fault = answer if isinstance(answer, Fault) else answer.faults.get(0)
        if fault is not None:
            return fault._replace(kind="load")
        self._loaded.add(source)
        return None

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        watched, lifeline = os.pipe()
        with theirs, open(watched, "rb") as end:
            files = (theirs.fileno(), end.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, json.dumps(search_path()), *map(str, (*files, self.memory_mb))],
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

    def _ask(self, message: str, seconds: float) -> RewardResult | Fault:
        """Send a request and wait for the reply, reading printed output meanwhile; a process that fails is closed."""
        self._printed()
        self._excerpt = Excerpt()
        deadline = time.monotonic() + seconds + GRACE
        waited: list[Any] = [self._connection, self._output]
        try:
            if self._connection.poll(0):
                return self._lost("crash", "sent a reply that it was not asked for")
            self._connection.send_bytes(message.encode())
            while self._connection not in (ready := wait(waited, deadline - time.monotonic())):
                if time.monotonic() >= deadline:
                    return self._lost("hang", f"took longer than {seconds:g} s")
                if ready and self._read() == b"":  # it closed its output: only the reply is left
                    waited.remove(self._output)
            values, faults, columns, metrics = json.loads(self._connection.recv_bytes(LARGEST))
        except (OSError, EOFError, ValueError):
            return self._lost("crash", "ended its process")
        printed = self._printed() if faults else ""
        found = {place: self._with_output(Fault(*fault), printed) for fault, places in faults for place in places}
        if any(fault.kind == "memory" for fault in found.values()):
            self.close()
        return RewardResult(values, found, columns, metrics)

    def _with_output(self, fault: Fault, printed: str) -> Fault:
        """Add the function's output to its fault, and the limits of memory to a fault that they cause."""
        limits, cause = memory_limits(self.memory_mb), printed if fault.kind == "crash" else fault.details
        fault = fault._replace(details=f"{fault.details}\nprinted:\n{printed}".strip() if printed else fault.details)
        if fault.kind == "hang" or not limits or not _OUT_OF_MEMORY.search(f"{fault.message}\n{cause}"):
            return fault
        return fault._replace(kind="memory", message=f"ran out of memory ({limits}): it {fault.message}"[:MESSAGE])

    def _read(self) -> bytes | None:
        """Move available output into the excerpt and return it: None if there is none yet, empty at end of file."""
        data = self._output.read(1 << 16)
        self._excerpt.add(data or b"")
        return data

    def _printed(self) -> str:
        """Read the remaining output of the last call and return the excerpt."""
        for _ in range(READS):  # child processes of the call may print for ever
            if not self._read():
                break
        return self._excerpt.text()

    def _lost(self, kind: FaultKind, message: str) -> Fault:
        """Close a process that crashed or hangs, and return the fault."""
        process = self._process
        assert process is not None
        if kind == "crash":
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        self._kill()
        code = self._awaited(process)
        if kind == "crash":
            message += f" (killed by {signal.Signals(-code).name})" if code < 0 else f" (exit code {code})"
        fault = self._with_output(Fault(kind, message), self._printed())
        self.close()
        return fault

    def _kill(self) -> None:
        """Have the process and its descendants killed by its supervisor; does nothing in a fork of this process."""
        process = self._process
        if process is not None and os.getpid() == self._owner:
            process.terminate()

    def _awaited(self, process: subprocess.Popen[bytes]) -> int:
        """Return the exit code of a process that was killed, whose supervisor may have been stopped by user code."""
        try:
            return process.wait(SIGN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def memory_limits(memory_mb: int) -> str:
    """Name the limits of a worker's memory: the setting, and the machine's if it is lower.  Empty if there are none."""
    site = [resource.getrlimit(resource.RLIMIT_DATA)[1], resource.getrlimit(resource.RLIMIT_AS)[0]]
    lowest = min((limit >> 20 for limit in site if limit != resource.RLIM_INFINITY), default=math.inf)
    words = [f"reward_memory_mb={memory_mb}"] if memory_mb else []
    return " and ".join([*words, f"ulimit: {lowest:g} MiB"] if lowest < (memory_mb or math.inf) else words)
