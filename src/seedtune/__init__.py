"""seedtune: fine-tune language models with evolution strategies.

No gradients, inference memory, any scalar reward.  Start with ``seedtune.Trainer`` and ``seedtune.Config``,
or with ``seedtune train`` on the command line.  Importing this module loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seedtune.config import Config
    from seedtune.errors import SeedtuneError
    from seedtune.trainer import Callback, Trainer

__version__ = "0.1.0"
__all__ = ["Callback", "Config", "SeedtuneError", "Trainer", "__version__"]

_HOMES = {
    "Config": "seedtune.config",
    "SeedtuneError": "seedtune.errors",
    "Trainer": "seedtune.trainer",
    "Callback": "seedtune.trainer",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when they are first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'seedtune' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
