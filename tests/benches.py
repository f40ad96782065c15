"""Benchmarks as modules, most of them by path; the study of benchmarks/evidence is a package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    """A benchmark's module by its path."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def evidence(name: str) -> ModuleType:
    """A module of the study of benchmarks/evidence."""
    root = str(BENCHMARKS.parent)
    sys.path.insert(0, root)
    try:
        return importlib.import_module(f"benchmarks.evidence.{name}")
    finally:
        sys.path.remove(root)
