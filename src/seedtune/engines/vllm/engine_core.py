"""A running vLLM: its options, requests and steps, calls into its workers, and what becomes of its failures."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from seedtune import errors
from seedtune.engines.codec import Plain
from seedtune.engines.vllm import compat
from seedtune.errors import ConfigError, EngineError, SeedtuneError


class EngineCore:
    """vLLM's engine core; after a failure every call says so, and only `close` is left."""

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
        self._end = weakref.finalize(self, compat.stop, self._core)  # also if nobody closes it

    @property
    def failed(self) -> bool:
        """Whether it has stopped for good."""
        return self._failure is not None

    @property
    def context(self) -> int:
        """Tokens of a prompt and its completion at the most."""
        return compat.context_of(self._core)

    @contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """Turns what vLLM raises into an EngineError, after which this engine core is of no use."""
        if self._failure is not None:
            raise EngineError(self._failure)
        try:
            yield
        except SeedtuneError:
            raise
        except Exception as error:  # the boundary: vLLM raises whatever it likes
            self._failure = _stopped(doing, _said(error))
            raise EngineError(self._failure) from error
        except BaseException:  # Ctrl-C in the middle of a step: nobody knows what vLLM holds now
            self._failure = _stopped(doing, "it was interrupted.")
            raise

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What is done in here is done on every worker and to the end, or this engine core is of no use any more."""
        try:
            yield
        except SeedtuneError as error:
            self._failure = self._failure or _stopped("the weights were updated", str(error))
            raise

    def call(self, command: str, *arguments: Plain) -> list[Plain]:
        """Run a command on every worker: what each gives, by rank; the first error of ours is raised here."""
        with self._guarded(f"its workers were asked for {command!r}"):
            answers = self._core.collective_rpc("seedtune", args=(command, *arguments))
        for status, *told in answers:
            if status == "error":
                raise _error(*told)
        return [told for _, told in answers]

    def fresh(self) -> Iterator[str]:
        """Names for requests that nobody has had, once those that somebody gave up waiting for are gone."""
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
        """What every step gives, until none of the requests that are open now is left; what is left of them is aborted.

        Another listener's requests, submitted later, are its own, whenever this one is forgotten.
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
        """Forget requests."""
        own = [self._open.pop(name) for name in list(names) if name in self._open]
        if own and not self.failed:
            with self._guarded("a request was taken back"):
                compat.abort(self._core, own)

    def forget_prefixes(self) -> None:
        """Drop cached keys and values, which are of other weights, and requests that are in the middle of some."""
        self.abort(*self._open)
        with self._guarded("its prefix cache was emptied"):
            if not self._core.reset_prefix_cache():
                raise RuntimeError("requests are still running.")

    def close(self) -> None:
        """End the workers; a second time, nothing happens."""
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
"""What vLLM says of a rank that fails, whose own words it only prints."""


def _said(error: BaseException) -> str:
    """What the innermost cause says, in one line that ends with a stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3]) or type(error).__name__
    told = text if text.endswith((".", "!")) else f"{text}."
    return f"{told} The cause stands above, in what the rank has printed." if IN_A_RANK in told else told


def _shown(arguments: Mapping[str, Any]) -> str:
    names = ("model", "dtype", "tensor_parallel_size", "max_model_len", "kv_cache_memory_bytes")
    return ", ".join(f"{name}={arguments[name]}" for name in names if arguments.get(name) is not None)
