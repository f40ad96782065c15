"""A running vLLM: its options, requests and steps, calls into its workers, and the handling of its failures."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from seedtune import errors
from seedtune.engines.vllm import compat
from seedtune.errors import ConfigError, EngineError, SeedtuneError


class EngineCore:
    """vLLM's engine core; after a failure every call raises an error, and only `close` still works."""

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
        return compat.context_of(self._core)

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

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Complete the body on every worker, or make this engine core unusable."""
        try:
            yield
        except SeedtuneError as error:
            self._failure = self._failure or _stopped("the weights were updated", str(error))
            raise

    def call(self, command: str, *arguments: Any) -> list[Any]:
        """Run a command on every worker and return the results by rank; the first seedtune error is raised here."""
        with self._guarded(f"its workers were asked for {command!r}"):
            answers = self._core.collective_rpc("seedtune", args=(command, *arguments))
        for status, *told in answers:
            if status == "error":
                raise _error(*told)
        return [told for _, told in answers]

    def fresh(self) -> Iterator[str]:
        """Return unused request names, after aborting all abandoned requests."""
        self._dropped |= self._open.keys()
        self.abort(*self._open)
        return self._names

    def submit(self, name: str, ids: Sequence[int], params: Mapping[str, Any], adapter: Any = None) -> None:
        """Add a request of token ids."""
        from vllm import SamplingParams

        with self._guarded("it took a request"):
            prompt = {"prompt_token_ids": list(ids)}
            own = self._core.add_request(name, prompt, SamplingParams(**params), lora_request=adapter)
            self._open[name] = own

    def outputs(self) -> Iterator[Any]:
        """Yield the outputs of every step until all requests open now are finished; abort the rest on early exit.

        Requests of another iterator, submitted later, are not affected when this one is dropped.
        """
        mine = set(self._open)
        try:
            while not mine.isdisjoint(self._open):
                with self._guarded("it generated"):
                    stepped = self._core.step()
                for output in stepped:
                    if output.request_id in mine & self._open.keys():
                        if output.finished:
                            del self._open[output.request_id]
                        yield output
            if not mine.isdisjoint(self._dropped):
                raise EngineError("another call of this engine took these requests back. Finish one before the next.")
        finally:
            self._dropped -= mine
            self.abort(*mine)

    def abort(self, *names: str) -> None:
        """Abort requests."""
        own = [self._open.pop(name) for name in list(names) if name in self._open]
        if own and not self.failed:
            with self._guarded("a request was taken back"):
                compat.abort(self._core, own)

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


def _error(kind: str, message: str) -> SeedtuneError:
    found: type[SeedtuneError] = vars(errors)[kind]
    # An error that composes its message itself (MissingExtraError) has composed it already.
    made = found.__new__(found)
    Exception.__init__(made, message)
    return made


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
    told = text if text.endswith((".", "!")) else f"{text}."
    return f"{told} The cause stands above, in what the rank has printed." if IN_A_RANK in told else told


def _shown(arguments: Mapping[str, Any]) -> str:
    names = ("model", "dtype", "tensor_parallel_size", "max_model_len", "kv_cache_memory_bytes")
    return ", ".join(f"{name}={arguments[name]}" for name in names if arguments.get(name) is not None)
