"""Which engines work here: each is imported in a process of its own, so that a broken library ends only that."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from seedtune.cli.doctor.findings import Finding
from seedtune.cli.doctor.installed_packages import requirements

SECONDS = 180.0
"""Longest wait for the import of an engine; a cold disk may take a minute for torch."""

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
found = {}
try:
"""
_END = """
    print("\\n" + json.dumps(found))
except BaseException as error:
    lines = str(error).splitlines()
    name = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    said = {"error": (lines or [""])[0], "type": type(error).__name__, "module": name}
    print("\\n" + json.dumps(said))
"""

_TORCH = """
    import torch
    from seedtune.engines.transformers import engine, product_choice
    cpu = torch.device("cpu")
    for name in ("bfloat16", "float32"):
        found[f"products for {name}"] = product_choice.resolve("auto", getattr(torch, name), cpu).line()
    cuda = torch.cuda.is_available()
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count() if cuda else 0)]
    found["GPUs of torch"] = ", ".join(f"{d.name} ({d.total_memory / 1e9:.0f} GB)" for d in devices) or "none"
"""

PROBES: dict[str, str] = {
    "toy": "    from seedtune.engines.toy import engine\n",
    "transformers": _TORCH,
    "vllm": "    from seedtune.engines.vllm import compat\n    found['vLLM'] = str(compat.require().__version__)\n",
    "ray": "    from seedtune.engines.ray import cluster\n    cluster.check()\n    import ray\n"
    "    from seedtune.engines.ray import engine\n",
}
"""Engine → indented Python that raises if it does not work here, and may put further facts into ``found``."""


def engines() -> Iterator[Finding]:
    """Yield whether each engine works, with the command that installs its missing package, and facts about torch."""
    with ThreadPoolExecutor(len(PROBES)) as threads:
        for name, found in zip(PROBES, threads.map(probe, PROBES.values()), strict=True):
            yield _check(name, found)
            if "error" not in found:
                yield from (Finding("engines", subject, str(value)) for subject, value in found.items())


def probe(code: str) -> Mapping[str, Any]:
    """Run indented code in a process of its own; return its facts, or ``error``, ``type`` and missing ``module``."""
    path = json.dumps([entry for entry in list[Any](sys.path) if isinstance(entry, str)])
    command = [sys.executable, "-P", "-c", _START + code + _END, path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"importing it took more than {SECONDS:.0f} s"}
    last = done.stdout.rstrip().rpartition("\n")[2]
    try:
        return dict(json.loads(last))
    except ValueError:
        return {"error": _death(done.returncode)}


def _death(code: int) -> str:
    names = {one.value: one.name for one in signal.Signals}
    how = f"was killed by {names.get(-code, -code)}" if code < 0 else f"ended with code {code}"
    return f"the process that imported it {how}"


def _check(engine: str, found: Mapping[str, Any]) -> Finding:
    error = found.get("error")
    if error is None:
        return Finding("engines", engine, "works", True)
    module = (found.get("module") or "").partition(".")[0]
    if module:
        return Finding("engines", engine, f"needs the package {module}, which is not installed", False, install(module))
    said, marker, command = str(error).partition("pip install")
    if marker:  # our own errors end with the command
        return Finding("engines", engine, said.partition(" Install ")[0].strip(), False, f"{marker}{command}")
    return Finding("engines", engine, f"{found.get('type', 'failed')}: {error}", False, _again(engine))


def install(module: str) -> str:
    """Return the command that installs the package of a module, in a version that does."""
    known = {one.package.lower().replace("-", "_"): one for one in requirements()}
    package = {"yaml": "pyyaml"}.get(module, module).lower()
    return known[package].install() if package in known else f"pip install {package}"


def _again(engine: str) -> str:
    """Return the command that installs an engine's main library again, which is there and does not import."""
    main = {"transformers": "torch", "vllm": "vllm", "ray": "ray"}.get(engine, "numba")
    return install(main).replace("pip install", "pip install --force-reinstall")
