"""Connect to Ray: a private cluster on this machine, as closed as Ray allows, or an existing one.

Ray is imported where it is used, because it reads its settings from the environment when it is imported.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedtune.config.sections import RaySettings
from seedtune.errors import ConfigError, MissingExtraError, first_line

log = logging.getLogger("seedtune")

INSTALL = "pip install 'ray>=2.50' 'msgspec>=0.19'"
NAMESPACE = "seedtune"

ALWAYS = {"RAY_ENABLE_AUTO_CONNECT": "0"}
"""Environment for any cluster: a call after shutdown would otherwise start another Ray."""

OURS = {
    # Without it Ray looks for an address reachable from other hosts, and listens on all interfaces.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # By default Ray's workers have niceness 15: beside any busy process they would get 3 % of a core.
    "RAY_worker_niceness": "0",
}
"""Environment of a cluster started here, unless the user has set it."""

CONNECT_SECONDS = 10.0
"""Seconds to wait for a cluster to accept a connection."""

SHOWN = 300
"""Maximum characters quoted from Ray's messages."""

_BEFORE = re.compile("^.*?(The actor is dead because |(?=The actor died because of an error))")
_AFTER = re.compile(" Worker exit type:| Some common causes include:| To troubleshoot")

OBJECTS = 80 << 20
"""Bytes of Ray's object store: requests and replies are small, and do not use it."""


def check() -> None:
    """Raise MissingExtraError if Ray, or the package that encodes messages, is not installed."""
    if not all(map(importlib.util.find_spec, ("ray", "msgspec"))):
        raise MissingExtraError("engine=ray", INSTALL)


@dataclass(slots=True, eq=False)
class Cluster:
    """A connection to Ray, made on demand."""

    settings: RaySettings

    def connect(self) -> None:
        """Start Ray, or join an existing cluster; ConfigError if it cannot be reached."""
        address = self.settings.address
        for name, value in (ALWAYS if address else ALWAYS | OURS).items():
            os.environ.setdefault(name, value)
        import ray

        if ray.is_initialized():
            if _owners:
                _owners.append(self)
            elif address is not None:
                log.warning("Ray runs in this process already: ray.address=%r is not asked", address)
            return
        self._knock(address)
        options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "configure_logging": False}
        if address is None:
            options |= {
                "address": "local",
                "include_dashboard": False,
                "num_cpus": 1,  # workers of a private Ray reserve none, and Ray starts an idle process for each
                "object_store_memory": OBJECTS,
            }
        else:
            options["address"] = address
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            with _kept_interrupt():
                ray.init(**options)
        except Exception as error:  # the boundary: Ray may raise any exception
            raise ConfigError(f"{self._unreachable()}: {first_line(error)}") from error
        _owners[:] = [self] if address is None else []
        _quieten()

    def _knock(self, address: str | None) -> None:
        """Raise ConfigError if HOST:PORT does not accept a connection, where Ray would retry for minutes."""
        host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
        if not colon or not port.isdigit():
            return
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise ConfigError(f"{self._unreachable()}: {error}") from error

    def _unreachable(self) -> str:
        address = self.settings.address
        if address is None:
            return "Ray does not start on this machine"
        return f"ray.address={address!r} cannot be reached (leave it out to start Ray on this machine)"

    def reconnect(self) -> None:
        """Connect again from the beginning, after Ray itself is gone."""
        import ray

        with suppress(Exception):
            ray.shutdown()
        self.connect()

    def alive(self) -> bool:
        """Return whether a node of the cluster is alive."""
        import ray

        try:
            return any(node["Alive"] for node in ray.nodes())
        except Exception:  # noqa: BLE001 - whatever Ray says, it is not there
            return False

    def gpus(self) -> float:
        """Return the number of GPUs in the cluster."""
        import ray

        found: float = ray.cluster_resources().get("GPU", 0.0)
        return found

    def close(self) -> None:
        """Shut down the Ray that was started here."""
        if self in _owners:
            _owners.remove(self)
            if not _owners:
                import ray

                ray.shutdown()


_owners: list[Cluster] = []
"""Connections of this process that share the Ray started by one of them: it ends with the last."""


@contextmanager
def _kept_interrupt() -> Iterator[None]:
    """Keep this process's answer to SIGTERM, in whose place Ray puts one that exits at once, also while it starts.

    A process without an answer keeps Ray's: the default would end it without closing anything.
    """
    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as ended:
        raise KeyboardInterrupt if ended.code == signal.SIGTERM else ended from None
    finally:
        answers = callable(kept) or kept is signal.SIG_IGN
        if answers and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, kept)


def _quieten() -> None:
    """Silence the paragraph that Ray prints for every worker that dies; the controller reports it in a line."""
    with suppress(Exception):  # not part of Ray's public interface
        from ray._private import worker

        worker.print_to_stdstream = lambda *_, **__: None


# ---------------------------------------------------------------------------------------------------------- actors


@dataclass(frozen=True, slots=True)
class Actor:
    """A worker's Ray actor, and the placement group of its GPUs if it has several."""

    handle: Any
    group: Any = None

    @classmethod
    def start(cls, spec: bytes, needs: Mapping[str, Any], kept: str | None) -> Actor:
        """Start a worker; with a name it outlives this process."""
        import ray
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from seedtune.engines.ray.worker import Worker

        options = {**needs, "max_restarts": 0, "max_task_retries": 0}
        outlives = {} if kept is None else {"name": kept, "lifetime": "detached"}
        group = None
        if needs["num_gpus"] > 1:
            bundle = {"CPU": needs["num_cpus"], "GPU": needs["num_gpus"], **needs.get("resources", {})}
            held = {name: amount for name, amount in bundle.items() if amount}
            group = placement_group([held], strategy="STRICT_PACK", **outlives)
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        if kept is not None:
            options |= {**outlives, "namespace": NAMESPACE}
        return cls(ray.remote(Worker).options(**options).remote(spec), group)

    def call(self, request: bytes) -> Any:
        """Send a request, and return the Ray reference of the reply."""
        return self.handle.call.remote(request)

    def end(self, pid: int | None = None, host: str | None = None) -> None:
        """Kill the worker, even a suspended one that answers no calls, and release its placement group."""
        import ray

        if ray.is_initialized():
            with suppress(Exception):
                ray.kill(self.handle, no_restart=True)
        if pid is not None and host == socket.gethostname() and _is_rays(pid):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if self.group is not None:
            with suppress(Exception):
                ray.util.remove_placement_group(self.group)


def named(run: str) -> dict[str, Actor]:
    """Return the workers of a run that outlived the process that started them, by name."""
    import ray

    found = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        name = actor["name"]
        if actor["namespace"] == NAMESPACE and name.startswith(f"{run} "):
            with suppress(ValueError):  # the worker has just ended
                found[name] = Actor(ray.get_actor(name, namespace=NAMESPACE), _group_of(name))
    return found


def _group_of(kept: str) -> Any:
    import ray

    with suppress(ValueError):
        return ray.util.get_placement_group(kept)
    return None


def _is_rays(pid: int) -> bool:
    """Return whether a process is a Ray worker: another container may have the same host name."""
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def message_of(error: BaseException) -> str:
    """Return Ray's message about a lost worker, in one line."""
    text = _BEFORE.sub("", " ".join(str(error).split()))
    return _AFTER.split(text)[0][:SHOWN]
