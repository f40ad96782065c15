"""Connect to Ray: a private cluster on this machine, as closed as Ray allows, or an existing one."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from seedtune.config.sections import RaySettings
from seedtune.errors import ConfigError, MissingExtraError, first_line

log = logging.getLogger("seedtune")

INSTALL = "pip install 'ray>=2.50'"
NAMESPACE = "seedtune"

OURS = {
    # Without it Ray looks for an address reachable from other hosts, and listens on all interfaces.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment of a cluster started here, unless the user has set it.  Ray reads it at import."""

ALWAYS = {"RAY_ENABLE_AUTO_CONNECT": "0"}
"""Environment for any cluster: a call after shutdown would otherwise start another Ray."""

PATIENCE = 10.0
"""Seconds to wait for a cluster to accept a connection."""

SHOWN = 300
"""Maximum characters quoted from Ray's messages."""

OBJECTS = 80 << 20
"""Bytes of Ray's object store: requests and replies are small, and do not use it."""


def check() -> None:
    """Raise MissingExtraError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("engine=ray", INSTALL)


def require() -> ModuleType:
    """Return the module ``ray``; MissingExtraError if it is not installed."""
    check()
    import ray

    found: ModuleType = ray
    return found


_users: dict[str, int] = {}
"""Number of Ray engines in this process that share the Ray started by one of them."""


@dataclass(slots=True)
class Cluster:
    """A connection to Ray, made on demand."""

    settings: RaySettings
    own: bool = False
    """Whether Ray was started here and ends with this process."""

    def connect(self) -> None:
        """Start Ray, or join an existing cluster; ConfigError if it cannot be reached."""
        self._prepare()
        ray = require()
        address = self.settings.address
        if ray.is_initialized():
            self.own = _users.get("own", 0) > 0
            _users["own"] = _users.get("own", 0) + self.own
            if address is not None and not self.own:
                log.warning("Ray runs in this process already: ray.address=%r is not asked", address)
            return
        self._knock(address)
        how: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "configure_logging": False}
        if address is None:
            self.own = True
            how |= {
                "address": "local",
                "include_dashboard": False,
                "num_cpus": 1,  # workers of a private Ray reserve none, and Ray starts an idle process for each
                "object_store_memory": OBJECTS,
            }
        else:
            how["address"] = address
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            ray.init(**how)
        except Exception as error:  # the boundary: Ray may raise any exception
            raise ConfigError(f"{self._unreachable()}: {first_line(error)}") from error
        _users["own"] = int(self.own)
        _quieten()

    def _prepare(self) -> None:
        for name, value in {**ALWAYS, **({} if self.settings.address else OURS)}.items():
            os.environ.setdefault(name, value)

    def _knock(self, address: str | None) -> None:
        """Raise ConfigError if HOST:PORT does not accept a connection, where Ray would retry for minutes."""
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
        return f"ray.address={address!r} cannot be reached (leave it out to start Ray on this machine)"

    def reconnect(self) -> None:
        """Connect again from the beginning, after Ray itself is gone."""
        ray = require()
        with suppress(Exception):
            ray.shutdown()
        self.connect()

    def alive(self) -> bool:
        """Return whether a node of the cluster is alive."""
        ray = require()
        try:
            return any(node["Alive"] for node in ray.nodes())
        except Exception:  # noqa: BLE001 - whatever Ray says, it is not there
            return False

    def gpus(self) -> float:
        """Return the number of GPUs in the cluster."""
        found: float = require().cluster_resources().get("GPU", 0.0)
        return found

    def close(self) -> None:
        """Shut down the Ray that was started here."""
        if self.own:
            self.own = False
            _users["own"] -= 1
            if not _users["own"]:
                require().shutdown()


def _quieten() -> None:
    """Silence the paragraph that Ray prints for every worker that dies; the controller reports it in a line."""
    with suppress(Exception):  # not part of Ray's public interface
        from ray._private import worker

        worker.print_to_stdstream = lambda *_, **__: None


def end(actor: Any, pid: int | None, host: str | None) -> None:
    """Kill a worker, even a suspended one that answers no calls."""
    ray = require()
    if ray.is_initialized():
        with suppress(Exception):
            ray.kill(actor, no_restart=True)
    if pid is not None and host == socket.gethostname() and _is_rays(pid):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def named(run: str) -> list[tuple[str, Any]]:
    """Return the workers of a run that outlived the process that started them, with their names."""
    ray, found = require(), list[tuple[str, Any]]()
    for one in ray.util.list_named_actors(all_namespaces=True):
        if one["namespace"] == NAMESPACE and one["name"].startswith(f"{run} "):
            with suppress(ValueError):  # the worker has just ended
                found.append((one["name"], ray.get_actor(one["name"], namespace=NAMESPACE)))
    return found


def grouped(how: dict[str, Any], kept: str | None) -> tuple[Any, Any]:
    """Return a placement group with all GPUs of a worker on one node, and the strategy that puts the worker there."""
    require()
    from ray.util import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundle = {"CPU": how["num_cpus"], "GPU": how["num_gpus"], **how.get("resources", {})}
    outlives = {} if kept is None else {"name": kept, "lifetime": "detached"}
    held = {name: amount for name, amount in bundle.items() if amount}
    group = placement_group([held], strategy="STRICT_PACK", **outlives)
    return group, PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=0)


def group_of(kept: str) -> Any:
    """Return the placement group of an adopted worker, if it has one."""
    require()
    from ray.util import get_placement_group

    try:
        return get_placement_group(kept)
    except ValueError:
        return None


def ungroup(group: Any) -> None:
    """Release a placement group's resources."""
    require()
    from ray.util import remove_placement_group

    with suppress(Exception):
        remove_placement_group(group)


def _is_rays(pid: int) -> bool:
    """Return whether a process is a Ray worker: another container may have the same host name."""
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def said(error: BaseException) -> str:
    """Return Ray's message about a lost worker, in one line."""
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
