"""seedtune: fine-tune language models with evolution strategies.

No gradients, inference memory, any scalar reward.  Start with ``seedtune.Trainer`` and ``seedtune.Config``,
or with ``seedtune train`` on the command line.  Importing this module loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seedtune.types import __version__

if TYPE_CHECKING:
    from seedtune.config.config import Config
    from seedtune.errors import SeedtuneError
    from seedtune.evaluation.evaluate import Evaluation, evaluate
    from seedtune.evaluation.held_out import EvalConfig
    from seedtune.planning.plan import Forecast, plan_config
    from seedtune.planning.probe import Probe, probe_config
    from seedtune.run.artifacts.diff import diff_runs
    from seedtune.run.artifacts.export import Rights, export_run
    from seedtune.run.artifacts.pack import pack_run, unpack_run
    from seedtune.run.artifacts.verify import verify_run
    from seedtune.trainer import Callback, Trainer

__all__ = [
    "Callback",
    "Config",
    "EvalConfig",
    "Evaluation",
    "Forecast",
    "Probe",
    "Rights",
    "SeedtuneError",
    "Trainer",
    "__version__",
    "diff_runs",
    "evaluate",
    "export_run",
    "pack_run",
    "plan_config",
    "probe_config",
    "unpack_run",
    "verify_run",
]

_HOMES = {
    "Config": "seedtune.config.config",
    "EvalConfig": "seedtune.evaluation.held_out",
    "Evaluation": "seedtune.evaluation.evaluate",
    "evaluate": "seedtune.evaluation.evaluate",
    "SeedtuneError": "seedtune.errors",
    "Trainer": "seedtune.trainer",
    "Callback": "seedtune.trainer",
    "Rights": "seedtune.run.artifacts.export",
    "export_run": "seedtune.run.artifacts.export",
    "verify_run": "seedtune.run.artifacts.verify",
    "diff_runs": "seedtune.run.artifacts.diff",
    "pack_run": "seedtune.run.artifacts.pack",
    "Forecast": "seedtune.planning.plan",
    "plan_config": "seedtune.planning.plan",
    "Probe": "seedtune.planning.probe",
    "probe_config": "seedtune.planning.probe",
    "unpack_run": "seedtune.run.artifacts.pack",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'seedtune' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
