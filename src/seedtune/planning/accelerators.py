"""Accelerators by name: datasheet figures, and the duration of a decode step and a prefill computed from them.

    step of R rows      t = max( (W + K·R) / bandwidth,  2·P·R / FLOPs ) / efficiency,  at least LAUNCH a layer
    prefill of T tokens t = 2·P·T / FLOPs / efficiency

W bytes of the weights in use, K bytes of key-value cache per row, P parameters.  Datasheets give peaks that no program
reaches; the efficiency is an assumption (about half, which plain decode loops and large matrix products reach), and so
is the launch time: a model in transformers runs layer by layer from Python.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from seedtune.errors import ConfigError, first_line, suggest

EFFICIENCY = 0.5
"""Assumed share of a datasheet's bandwidth and FLOP/s."""

MEASURED_EFFICIENCY = 0.75
"""Assumed share of a measured copy's bandwidth and of a measured product's FLOP/s."""

_MEASURED = ".json"

LAUNCH = 0.8e-3
"""Assumed minimum seconds per layer if each of its operations is launched from Python."""

LARGEST = 1024
"""Maximum number of devices of one kind."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Peak figures of one device: memory bandwidth (bytes/s), dense 16-bit FLOP/s, and memory (bytes)."""

    name: str
    bandwidth: float
    flops: float
    memory: float | None = None
    efficiency: float = EFFICIENCY
    launch: float = LAUNCH

    def step(self, *, weights: float, cache: float, parameters: float, rows: float, layers: int) -> float:
        """Return the seconds of a decode step of ``rows`` rows that hold ``cache`` bytes together."""
        read, product = (weights + cache) / self.bandwidth, 2 * parameters * rows / self.flops
        return max(max(read, product) / self.efficiency, layers * self.launch)

    def prefill(self, *, parameters: float, tokens: float) -> float:
        """Return the seconds of processing ``tokens`` prompt tokens."""
        return 2 * parameters * tokens / self.flops / self.efficiency

    def stream(self, size: float) -> float:
        """Return the seconds to move ``size`` bytes through memory."""
        return size / self.bandwidth / self.efficiency


MACHINES = {
    name: Machine(name, bandwidth * 1e9, flops * 1e12, memory * 1e9)
    for name, bandwidth, flops, memory in (
        ("t4", 320, 65, 16),
        ("l4", 300, 121, 24),
        ("a10", 600, 125, 24),
        ("l40s", 864, 362, 48),
        ("rtx3090", 936, 71, 24),
        ("rtx4090", 1008, 165, 24),
        ("a100", 1555, 312, 40),
        ("a100-80gb", 2039, 312, 80),
        ("h100", 3350, 989, 80),
        ("h100-pcie", 2000, 756, 80),
        ("h200", 4800, 989, 141),
        ("b200", 8000, 2250, 180),
        ("mi300x", 5300, 1307, 192),
    )
}
"""Datasheet figures: memory bandwidth (GB/s), dense bfloat16 or float16 TFLOP/s, memory (GB); SXM by default."""

CPU = "cpu"
"""Name of this machine, which is measured."""


def machine_of(name: str) -> Machine:
    """Return a known device, or the one that a file of ``scripts/gpu-check`` measured; ConfigError if broken."""
    if not name.endswith(_MEASURED):
        return MACHINES[name]
    try:
        steps = json.loads(Path(name).read_text(encoding="utf-8"))["steps"]
        rates, device = steps["ceilings"]["figures"], steps["env"]["figures"]
        copy, product = (float(rates[key]["value"]) * 1e12 for key in ("copy TB/s", "bf16 product TFLOP/s"))
        memory = float(device["memory GB"]["value"]) * 1e9
        found = f"{device['device']['value']} as measured"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--devices: {name!r} is no file of scripts/gpu-check with the steps env and ceilings: {first_line(error)}"
        ) from error
    return Machine(found, copy, product, memory, efficiency=MEASURED_EFFICIENCY)


def parse_device(text: str) -> tuple[int, str]:
    """Parse ``8xh100`` as (8, "h100"); ConfigError with the nearest known name.

    A name ending in ``.json`` is a file, see `machine_of`.
    """
    file = re.fullmatch(r"(?:(\d+)\s*[x×]\s*)?(.+\.json)", text.strip())
    if file is not None:
        machine_of(file[2])
        return _counted(text, int(file[1] or 1)), file[2]
    match = re.fullmatch(r"(?:(\d+)\s*[x×]\s*)?([a-z0-9][a-z0-9\- ]*)", text.strip().lower())
    known = (CPU, *MACHINES)
    name = match[2].replace(" ", "") if match else text.strip().lower()
    if match is None or name not in known:
        raise ConfigError(f"--devices: {text!r} is not a known device.{suggest(name, known)} Known: {', '.join(known)}")
    count = _counted(text, int(match[1] or 1))
    if name == CPU and count > 1:
        raise ConfigError(f"--devices: {text!r} asks for {count} CPUs, but 'cpu' is this machine. Give cpu.")
    return count, name


def _counted(text: str, count: int) -> int:
    if not 1 <= count <= LARGEST:
        raise ConfigError(f"--devices: {text!r} asks for {count} devices. Give 1 to {LARGEST}.")
    return count
