"""A running vLLM: its options, requests and steps, calls into its workers, and the handling of its failures."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

from seedtune.engines.vllm import compat
from seedtune.engines.vllm.sampling_params import GenerationRequest
from seedtune.errors import ConfigError, EngineError, SeedtuneError


class EngineCore:
    """vLLM's engine core; after a failure every call raises EngineError, and only `close` still works.

    Raises ConfigError if vLLM does not start with these arguments.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._failure: str | None = None
        self._open: dict[str, str] = {}
        self._dropped: set[str] = set()
        self._names = map(str, count())
        try:
            self._core: Any = compat.start(arguments)
        except SeedtuneError:
            raise
        except Exception as error:
            raise ConfigError(
                f"vLLM does not start with {_shown(arguments)}: {_said(error)} Its options are in the section vllm."
            ) from error
        self._end = weakref.finalize(self, compat.stop, self._core)  # in case the caller never closes it

    @property
    def failed(self) -> bool:
        """Whether it has stopped for good."""
        return self._failure is not None

    @property
    def context(self) -> int:
        """Maximum number of tokens of prompt plus completion."""
        return int(self._core.model_config.max_model_len)

    @contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """Turn exceptions of vLLM into an EngineError, after which this engine core is unusable."""
        if self._failure is not None:
            raise EngineError(self._failure)
        try:
            yield
        except SeedtuneError:
            raise
        except Exception as error:  # the boundary: vLLM may raise any exception
            self._failure = _stopped(doing, _said(error))
            raise EngineError(self._failure) from error
        except BaseException:  # Ctrl-C in the middle of a step: vLLM's state is unknown
            self._failure = _stopped(doing, "it was interrupted.")
            raise

    def call(self, command: str, *arguments: Any, whole: bool = False) -> list[Any]:
        """Run a command on every worker and return the results by rank; the first seedtune error is raised here.

        A command that must be done as a ``whole``, by all workers, makes this engine core unusable if it fails.
        """
        with self._guarded(f"its workers were asked for {command!r}"):
            answers: list[Any] = self._core.collective_rpc("seedtune", args=(command, *arguments))
        for error in answers:
            if isinstance(error, SeedtuneError):
                if whole:
                    self._failure = _stopped("the weights were updated", str(error))
                raise error
        return answers

    def outputs(self, requests: Mapping[int, GenerationRequest]) -> Iterator[tuple[int, Any]]:
        """Yield (key, output) of every step until all requests are finished; abort the rest on early exit.

        All earlier requests are aborted first.  Raises EngineError if vLLM fails, or if another call has aborted these.
        """
        from vllm import SamplingParams

        self.abort_all()
        keys = dict(zip(self._names, requests, strict=False))
        try:
            for name, key in keys.items():
                request = requests[key]
                with self._guarded("it took a request"):
                    prompt, params = {"prompt_token_ids": list(request.ids)}, SamplingParams(**request.params)
                    self._open[name] = self._core.add_request(name, prompt, params, lora_request=request.lora)
            while not self._open.keys().isdisjoint(keys):
                with self._guarded("it generated"):
                    stepped = self._core.step()
                for output in stepped:
                    if output.request_id in self._open and output.request_id in keys:
                        if output.finished:
                            del self._open[output.request_id]
                        yield keys[output.request_id], output
            if not self._dropped.isdisjoint(keys):
                raise EngineError("another call of this engine took these requests back. Finish one before the next.")
        finally:
            self._dropped -= keys.keys()
            self.abort(*keys)

    def abort_all(self) -> None:
        """Abort all open requests, for whose outputs a caller may still wait."""
        self._dropped |= self._open.keys()
        self.abort(*self._open)

    def abort(self, *names: str) -> None:
        """Abort requests."""
        own = [self._open.pop(name) for name in names if name in self._open]
        if own and not self.failed:
            with self._guarded("a request was taken back"):
                self._core.abort_request(own, internal=True)

    def forget_prefixes(self) -> None:
        """Drop cached keys and values, which belong to other weights, and the requests that use them."""
        self.abort(*self._open)
        with self._guarded("its prefix cache was emptied"):
            if not self._core.reset_prefix_cache():
                raise RuntimeError("requests are still running.")

    def close(self) -> None:
        """End the workers; a second call does nothing."""
        self._failure = self._failure or "this vLLM was closed: load the engine again."
        self._core = None
        self._end()


def _stopped(doing: str, why: str) -> str:
    return (
        f"vLLM stopped while {doing}: {why} The ledger has everything up to the last complete generation: seedtune "
        "resume goes on from there."
    )


IN_A_RANK = "background process"
"""vLLM's message for a failed rank, whose own message it only prints."""


def _said(error: BaseException) -> str:
    """Return the message of the innermost cause, in one line that ends with a full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3]) or type(error).__name__
    sentence = text if text.endswith((".", "!")) else f"{text}."
    return f"{sentence} The cause stands above, in what the rank has printed." if IN_A_RANK in sentence else sentence


def _shown(arguments: Mapping[str, Any]) -> str:
    names = ("model", "dtype", "tensor_parallel_size", "max_model_len", "kv_cache_memory_bytes")
    return ", ".join(f"{name}={arguments[name]}" for name in names if arguments.get(name) is not None)
