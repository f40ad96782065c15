"""seedtune: fine-tune language models with evolution strategies.

No gradients, inference memory, any scalar reward.  Start with ``seedtune.ESTrainer`` and ``seedtune.ESConfig``,
or with ``seedtune train`` on the command line.  Importing this module loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seedtune.types import __version__ as __version__

if TYPE_CHECKING:
    from seedtune.config.config import ESConfig as ESConfig
    from seedtune.engines.base import Engine as Engine
    from seedtune.engines.transformers.gguf_file import to_gguf as to_gguf
    from seedtune.errors import SeedtuneError as SeedtuneError
    from seedtune.evaluation.evaluate import Evaluation as Evaluation
    from seedtune.evaluation.evaluate import evaluate as evaluate
    from seedtune.evaluation.held_out import EvalConfig as EvalConfig
    from seedtune.planning.plan import Forecast as Forecast
    from seedtune.planning.plan import plan_config as plan_config
    from seedtune.planning.probe import Probe as Probe
    from seedtune.planning.probe import probe_config as probe_config
    from seedtune.run.artifacts.diff import diff_runs as diff_runs
    from seedtune.run.artifacts.export import export_run as export_run
    from seedtune.run.artifacts.model_card import Rights as Rights
    from seedtune.run.artifacts.pack import apply_pack as apply_pack
    from seedtune.run.artifacts.pack import pack_run as pack_run
    from seedtune.run.artifacts.verify import verify_run as verify_run
    from seedtune.run.callbacks.base import Callback as Callback
    from seedtune.run.callbacks.base import TrainerControl as TrainerControl
    from seedtune.run.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from seedtune.strategies.base import Feedback as Feedback
    from seedtune.strategies.base import update_of as update_of
    from seedtune.trainer import ESTrainer as ESTrainer
    from seedtune.types import Job as Job
    from seedtune.types import Prompt as Prompt
    from seedtune.types import Rollout as Rollout
    from seedtune.types import Sampling as Sampling

_EXPORTS = {
    "config.config": ("ESConfig",),
    "engines.base": ("Engine",),
    "engines.transformers.gguf_file": ("to_gguf",),
    "errors": ("SeedtuneError",),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "evaluation.held_out": ("EvalConfig",),
    "planning.plan": ("Forecast", "plan_config"),
    "planning.probe": ("Probe", "probe_config"),
    "run.artifacts.diff": ("diff_runs",),
    "run.artifacts.export": ("export_run",),
    "run.artifacts.model_card": ("Rights",),
    "run.artifacts.pack": ("apply_pack", "pack_run"),
    "run.artifacts.verify": ("verify_run",),
    "run.callbacks.base": ("Callback", "TrainerControl"),
    "run.callbacks.early_stopping": ("EarlyStopping",),
    "strategies.base": ("Feedback", "update_of"),
    "trainer": ("ESTrainer",),
    "types": ("Job", "Prompt", "Rollout", "Sampling"),
}
_HOMES = {name: f"seedtune.{module}" for module, names in _EXPORTS.items() for name in names}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'seedtune' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
