"""The extension of vLLM's workers (``worker_extension_cls``): one call for all commands."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from seedtune.engines.vllm import compat
from seedtune.engines.vllm.worker_state import WorkerState
from seedtune.errors import SeedtuneError

compat.keep_weights()  # vLLM imports this module before it loads the model


class WorkerExtension:
    """Methods that vLLM's worker class inherits."""

    def seedtune(self: Any, command: str, *arguments: Any) -> Any:
        """Call a method of the `WorkerState`, by its dotted name; "make_state" creates it.

        A seedtune error is returned: raised in another process it would lose its type.  All other errors stop vLLM.
        """
        try:
            if command != "make_state":
                return attrgetter(command)(self._seedtune)(*arguments)
            self._seedtune = None  # frees older weights before new ones are created
            self._seedtune = WorkerState(self, *arguments, before=vars(self).get("_seedtune_trained"))
            self._seedtune_trained = self._seedtune.shapes
            return self._seedtune.held()
        except SeedtuneError as error:
            return error
