"""The extension of vLLM's workers (``worker_extension_cls``): one call, plain data in and out."""

from __future__ import annotations

from typing import Any

from seedtune.engines.vllm import compat
from seedtune.engines.vllm.worker_state import COMMANDS, WorkerState
from seedtune.errors import SeedtuneError

compat.keep_weights()  # vLLM imports this module before it loads the model


class WorkerExtension:
    """Methods that vLLM's worker class inherits."""

    def seedtune(self: Any, command: str, *arguments: Any) -> list[Any]:
        """Run a command: ["done", result], or ["error", kind, message] for an error that a user can cause.

        seedtune errors would lose their type on the way from another process; all other errors stop the engine.
        """
        try:
            if command == "make_state":
                self._seedtune = None  # frees older weights before new ones are created
                self._seedtune = WorkerState(self, *arguments, before=vars(self).get("_seedtune_trained"))
                self._seedtune_trained = self._seedtune.shapes
                return ["done", self._seedtune.held()]
            return ["done", COMMANDS[command](self._seedtune, *arguments)]
        except SeedtuneError as error:
            return ["error", type(error).__name__, str(error)]
