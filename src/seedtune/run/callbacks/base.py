"""The events of a run, and the control flow that callbacks have as in transformers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

from seedtune.engines.base import EngineInfo
from seedtune.errors import ConfigError, suggest


@dataclass(slots=True)
class TrainerControl:
    """What callbacks ask of the trainer, as in transformers: it acts after the current generation.

    A callback sets a flag of ``trainer.control``, or returns a control of its own.
    """

    should_training_stop: bool = False
    """End the run here, with an evaluation, a snapshot and the report; it may be resumed."""

    should_evaluate: bool = False
    """Evaluate the held-out prompts now."""

    should_save: bool = False
    """Save a snapshot of the current weights now."""

    def add(self, asked: object) -> None:
        """Set the flags that are set in another control; anything else that a callback returns means nothing."""
        for flag in fields(self) if isinstance(asked, TrainerControl) else ():
            setattr(self, flag.name, getattr(self, flag.name) or getattr(asked, flag.name))


class Callback(Protocol):
    """Receives the events of a run; may print, log, and ask for what `TrainerControl` has.

    Events without a method are not reported.  An exception ends `ESTrainer.train`, which can be resumed.  Callbacks
    cannot change the ledger, only where it ends.
    """

    def on_start(self, trainer: Any, info: EngineInfo, first: int) -> TrainerControl | None:
        """Called with the ESTrainer once the model is loaded; ``first`` generations are complete already."""

    def on_generation(self, metrics: dict[str, Any]) -> TrainerControl | None:
        """Called after each generation."""

    def on_evaluate(self, metrics: dict[str, Any]) -> TrainerControl | None:
        """Called after each held-out evaluation."""

    def on_completions(self, generation: int, rows: list[dict[str, Any]]) -> TrainerControl | None:
        """Called before `on_generation` with all completions of the generation, with ``log_completions`` only."""

    def on_end(self, trainer: Any) -> None:
        """Called with the ESTrainer after the last generation, or after a stop."""


def check_events(callback: Any) -> None:
    """Raise ConfigError for an object without a method for any event, or with a misspelt one."""
    known = [name for name in vars(Callback) if name.startswith("on_")]
    missing = [name for name in known if not callable(getattr(callback, name, None))]
    handled = [name for name in dir(callback) if name.startswith("on_") and callable(getattr(callback, name, None))]
    handles_none = len(missing) == len(known)
    unknown = next((name for name in handled if name not in known and (handles_none or suggest(name, missing))), None)
    if not handles_none and unknown is None and not isinstance(callback, type):
        return
    why = "is a class: give an instance" if isinstance(callback, type) else "has no method for an event"
    raise ConfigError(
        f"the callback {callback!r} {why if unknown is None else f'waits for {unknown}, which is no event'}."
        f"{suggest(unknown or '', known)} The events are {', '.join(known)}."
    )
