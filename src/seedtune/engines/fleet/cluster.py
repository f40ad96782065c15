"""Ray: a cluster of one's own on this machine, as closed as Ray allows, or one that is there already."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from seedtune.errors import ConfigError, MissingExtraError
from seedtune.settings import FleetSettings

INSTALL = "pip install 'ray>=2.50'"
NAMESPACE = "seedtune"

OURS = {
    # Without it Ray looks for an address that others can reach, and listens on all interfaces.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment of a cluster that is started here, unless the user has set it.  Ray reads it when it is imported."""

PATIENCE = 10.0
"""Seconds that a cluster has to take a connection."""

SHOWN = 300
"""Characters of what Ray says that are passed on."""

OBJECTS = 80 << 20
"""Bytes of Ray's object store: requests and replies are small, and go another way."""


def check() -> None:
    """MissingExtraError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("engine=fleet", INSTALL)


def require() -> ModuleType:
    """The module ``ray``; MissingExtraError if it is not installed."""
    check()
    import ray

    found: ModuleType = ray
    return found


@dataclass(slots=True)
class Cluster:
    """A connection to Ray, made when it is needed."""

    settings: FleetSettings
    own: bool = False
    """Whether Ray was started here and ends with this process."""

    def connect(self) -> None:
        """Start Ray, or join what is there; ConfigError if it cannot be reached."""
        if self.settings.address is None:
            self._prepare()
        ray = require()
        if ray.is_initialized():
            return
        address = self.settings.address
        self._knock(address)
        how: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "configure_logging": False}
        if address is None:
            self.own = True
            how |= {
                "address": "local",
                "include_dashboard": False,
                "num_cpus": self._cores(),
                "object_store_memory": OBJECTS,
            }
        else:
            how["address"] = address
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            ray.init(**how)
        except Exception as error:  # the boundary: Ray raises whatever it likes
            raise ConfigError(f"{self._unreachable()}: {_first_line(error)}") from error
        _quieten()

    def _prepare(self) -> None:
        for name, value in OURS.items():
            os.environ.setdefault(name, value)

    def _knock(self, address: str | None) -> None:
        """ConfigError if nobody listens at HOST:PORT, where Ray would try for minutes."""
        host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
        if not colon or not port.isdigit():
            return
        try:
            socket.create_connection((host, int(port)), PATIENCE).close()
        except OSError as error:
            raise ConfigError(f"{self._unreachable()}: {error}") from error

    def _unreachable(self) -> str:
        address = self.settings.address
        if address is None:
            return "Ray does not start on this machine"
        return f"fleet.address={address!r} cannot be reached (leave it out to start Ray on this machine)"

    def _cores(self) -> float:
        """As many as all workers want: what they want of cores is taken as said, not measured."""
        most = max(self.settings.max_workers or 0, 4 * sum(self.settings.kinds.values()))
        return max(os.cpu_count() or 1, most * max(1.0, self.settings.cpus or 1.0))

    def reconnect(self) -> None:
        """Once more from the beginning, when Ray itself is gone."""
        ray = require()
        with suppress(Exception):
            ray.shutdown()
        self.connect()

    def alive(self) -> bool:
        """Whether some node of Ray's is there."""
        ray = require()
        try:
            return any(node["Alive"] for node in ray.nodes())
        except Exception:  # noqa: BLE001 - whatever Ray says, it is not there
            return False

    def gpus(self) -> float:
        """GPUs of the cluster."""
        found: float = require().cluster_resources().get("GPU", 0.0)
        return found

    def close(self) -> None:
        """End what was started here."""
        if self.own:
            self.own = False
            require().shutdown()


def _quieten() -> None:
    """Ray prints a paragraph for every worker that dies; a fleet says it in a line."""
    with suppress(Exception):  # not a part of Ray's interface
        from ray._private import worker

        worker.print_to_stdstream = lambda *_, **__: None


def end(actor: Any, pid: int | None, host: str | None) -> None:
    """Kill a worker, also one that is stopped and hears nothing."""
    ray = require()
    with suppress(Exception):
        ray.kill(actor, no_restart=True)
    if pid is not None and host == socket.gethostname():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def said(error: BaseException) -> str:
    """What Ray says of a worker that is gone, in one line."""
    text = " ".join(str(error).split())
    for sign in ("The actor is dead because ", "The actor died because of an error"):
        if sign in text:
            text = text[text.index(sign) :]
            break
    for noise in (
        "The actor is dead because ",
        " Worker exit type:",
        " Some common causes include:",
        " To troubleshoot",
    ):
        text = text.split(noise)[0] or text.removeprefix(noise)
    return text[:SHOWN]


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
