"""The Ray engine: the engine protocol over workers on Ray.

Members go out as ids, results come back, and weights never travel: every worker draws its members and applies the
updates itself.  An update costs the driver nothing; a worker receives it with its next job.
"""

from __future__ import annotations

import atexit
import math
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from seedtune import engines
from seedtune.config.config import Config
from seedtune.engines.base import Engine, EngineInfo, EngineTimes, Finished
from seedtune.engines.codec import TermColumns
from seedtune.engines.ray import protocol, status_file, worker_spec
from seedtune.engines.ray.controller import Controller
from seedtune.engines.ray.protocol import JobMessage
from seedtune.engines.ray.scheduler import Request
from seedtune.engines.ray.statistics import Span
from seedtune.engines.ray.worker_pool import WorkerHandle, WorkerPool
from seedtune.engines.recorded_arithmetic import Entry
from seedtune.errors import ConfigError, EngineError, StorageError
from seedtune.numerics.noise import Noise
from seedtune.types import Job, Likelihood, Prompt, Rollout, Term, Update

AGREEING = 3
"""How often workers are asked for their fingerprints, and rebuilt, before the run stops."""


class RayEngine(Engine):
    """Any number of workers, each with an engine of its own; see the section ``ray`` of the configuration."""

    def __init__(self, config: Config, *, noise: Noise) -> None:
        self.config, self.noise = config, noise
        self.tokenizer = engines.tokenizer(config)
        self.controller = Controller(config.ray, Path(config.output_dir))
        self.update_log = self.controller.update_log
        self._streaming: dict[Request, int] = {}
        self._end = weakref.finalize(self, self.controller.close)  # in case the caller never closes it

    # ------------------------------------------------------------------------------------------ loading

    def load(self, snapshot: Path | None = None) -> EngineInfo:
        """Start the workers unless they run, and have them load; workers that join later load when they join."""
        self._open()
        controller, settings = self.controller, self.config.ray
        self.update_log.begin(snapshot)
        controller.refused = None
        while len(controller.here()) < settings.min_workers:
            controller.turn()
            if controller.refused is not None:
                raise controller.refused
        first = controller.agreement.info
        assert first is not None
        kinds = " + ".join(f"{count} × {kind}" for kind, count in settings.kinds.items())
        device = f"{first.device}, Ray workers: {kinds}"
        return replace(first, model=self.config.model, device=device, arithmetic=self._arithmetic())

    def _arithmetic(self) -> Entry:
        """Return the workers' arithmetic; with several kinds, of those that have enrolled so far."""
        known = self.controller.agreement.known
        (first, *others) = self.config.ray.kinds
        return {"workers": {kind: dict(known[kind]) for kind in sorted(known)}} if others else known[first]

    def _open(self) -> None:
        if self.controller.pool is not None:
            return
        _ = self.tokenizer.context_length  # raise for a missing model here, before any process starts
        self.controller.ray.connect()
        atexit.register(self._end)  # runs before Ray's own handler, which was registered when Ray was imported
        status_file.clear(self.controller.root)
        gpus = self.controller.ray.gpus()
        worker_spec.check(self.config, gpus)
        self.controller.pool = WorkerPool(self.config, self.noise, gpus)
        if self.config.ray.detached:
            self.controller.pool.adopt(time.monotonic())

    # ------------------------------------------------------------------------------------------ members

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        """Yield every job's rollouts as they finish; none for a job that failed too often."""
        return self._all([self._request("evaluate", Rollout, job) for job in jobs])

    def likelihoods(self, jobs: Iterable[Job]) -> Iterator[Likelihood]:
        """Yield every job's likelihoods as they finish."""
        return self._all([self._request("likelihoods", Likelihood, job) for job in jobs])

    def _request(self, operation: str, kind: type[Any], job: Job) -> Request:
        cost = float(len(job.pairs) * job.sampling.samples * max(1, job.sampling.max_tokens))
        read = partial(self._read, job, kind)
        return Request(cost, operation=operation, arguments=partial(self._message, job), read=read)

    def _message(self, job: Job, worker: WorkerHandle) -> dict[str, JobMessage]:
        message = JobMessage.of(job, worker.sent_texts)
        self.controller.statistics.bytes_prompts += sum(map(len, message.texts))
        return {"job": message}

    def _read(self, job: Job, kind: type[Any], packed: bytes) -> list[Any]:
        self.controller.statistics.members += len(job.members)
        self.controller.statistics.bytes_completions += len(packed)
        return protocol.unpack(packed, kind, job)

    def _all(self, requests: Sequence[Request]) -> Iterator[Any]:
        failed: list[EngineError] = []
        for request in self.controller.finished(map(self.controller.submit, requests)):
            if isinstance(request.error, EngineError):
                failed.append(request.error)
            else:
                yield from request.result()
        if failed and len(failed) == len(requests):
            raise EngineError(
                f"every job failed {self.config.ray.retries + 1} times; the last time: {failed[-1]} Everything up to "
                "the last complete generation is safe: seedtune resume goes on from there."
            )

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs with ids unique in a run, for `finished`; each uses the weights current when a worker receives it.

        Do not mix submitted jobs and those of `evaluate`.
        """
        for job in jobs:
            self._streaming[self.controller.submit(self._request("evaluate", Rollout, job))] = job.id

    def finished(self) -> Finished | None:
        """Wait for the next finished job among the submitted ones; None if none is open."""
        while self._streaming:
            for request in self._streaming:
                if request.done:
                    given_up = isinstance(request.error, EngineError)
                    return Finished(self._streaming.pop(request), () if given_up else tuple(request.result()))
            self.controller.turn()
        return None

    def starving(self) -> bool:
        """Return whether the queue is empty and a worker is idle."""
        return self.controller.starving()

    # ------------------------------------------------------------------------------------------ the weights

    def apply(self, *updates: Update) -> None:
        """Record updates: every worker applies those it misses before its next request."""
        self.update_log.add(updates)

    def _ask(self, operation: str, *, only: str | None = None, **arguments: Any) -> Any:
        """Return the result of one worker: of any that is idle, or of ``only``."""
        return self._result(Request(only=only, operation=operation, arguments=lambda _: arguments))

    def _result(self, request: Request) -> Any:
        (finished,) = self.controller.finished([self.controller.submit(request)])
        return finished.result()

    def norm(self, terms: Sequence[Term]) -> float:
        found: float = self._ask("norm", terms=TermColumns.of(terms))
        return found

    def drift(self) -> float:
        found: float = self._ask("drift")
        return found

    def cosine(self, one: Sequence[Term], other: Sequence[Term]) -> float:
        def short(terms: Sequence[Term], worker: WorkerHandle) -> int | TermColumns:
            """Replace terms by a number if the worker has applied them itself."""
            number = self.update_log.number_of(terms)
            return TermColumns.of(terms) if number is None or number < worker.began else number

        def arguments(worker: WorkerHandle) -> dict[str, int | TermColumns]:
            return {"one": short(one, worker), "other": short(other, worker)}

        found: float = self._result(Request(operation="cosine", arguments=arguments))
        return found

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], *, base: bool = False
    ) -> list[list[float]]:
        found: list[list[float]] = self._ask("logprobs", prompts=prompts, completions=completions, base=base)
        return found

    def fingerprint(self) -> str:
        """Return the weights' fingerprint, checked on all workers; rebuild workers with another fingerprint."""
        known, position = self.update_log.fingerprints, self.update_log.position
        if position not in known:
            known[position] = self._agreed()
        return known[position]

    def _agreed(self) -> str:
        """Return the majority's fingerprint; without a majority, rebuild all workers and ask again."""
        tries = 0
        while tries < AGREEING:
            found = self._everyone()
            tries += bool(found)  # if no worker was left to answer, replacements are on their way
            prints = sorted(found.values())
            most = max(prints, key=prints.count, default="")
            majority = most if 2 * prints.count(most) > len(prints) else None
            for worker in [worker for worker in self.controller.here() if worker.name in found]:
                if found[worker.name] != majority:
                    self.controller.quarantine(worker, found[worker.name], majority)
            if majority is not None:
                return majority
        raise EngineError(
            "the workers hold different weights, also after they were rebuilt: a machine among them miscomputes. "
            "'seedtune ray status' and metrics.jsonl name them: take that machine away, then seedtune resume."
        )

    def _everyone(self) -> dict[str, str]:
        """Return the fingerprints of all workers by name; workers much slower than the first are given up.

        Idle workers are asked, or busy ones if none is idle; if no answer comes in time, those that are idle by then.
        """
        controller, timeout = self.controller, self.config.ray.straggler_timeout
        requests: dict[str, Request] = {}
        asked, deadline = math.inf, math.inf
        while not requests or (not all(r.done for r in requests.values()) and time.monotonic() < deadline):
            if not requests or (deadline == math.inf and time.monotonic() > asked + max(1.0, timeout)):
                idle = [worker for worker in controller.here() if worker.call is None]
                for worker in idle or ([] if requests else controller.here()):
                    if worker.name not in requests:
                        requests[worker.name] = controller.submit(Request(only=worker.name, operation="fingerprint"))
                        asked = time.monotonic()
            if deadline == math.inf and any(r.done and r.error is None for r in requests.values()):
                deadline = time.monotonic() + timeout
            controller.turn()
        finished = {name: r for name, r in requests.items() if r.done and not isinstance(r.error, EngineError)}
        controller.give_up(request for request in requests.values() if not request.done)
        return {name: request.result() for name, request in finished.items()}

    def snapshot(self, path: Path) -> None:
        """Have a worker on this machine write the weights, or any worker if there is none here (on a shared disk)."""
        self._write("snapshot", path)

    def export(self, path: Path, dtype: str | None = None) -> None:
        """Have a worker write a model."""
        self._write("export", path, dtype=dtype)

    def _write(self, operation: str, path: Path, **arguments: Any) -> None:
        for left in reversed(range(1 + self.config.ray.retries)):
            try:
                self._ask(operation, path=path.resolve(), only=self.controller.near().name, **arguments)
                break
            except EngineError:  # the worker was lost meanwhile: try another
                if not left:
                    raise
        if not path.is_dir() or not any(path.iterdir()):
            raise StorageError(
                f"a worker wrote {path} where this machine does not see it. Put output_dir on a disk that the workers "
                "and this machine share."
            )

    # ------------------------------------------------------------------------------------------ the workers

    @property
    def spans(self) -> list[Span]:
        """Return every finished piece of work, in order."""
        return list(self.controller.spans)

    def scale(self, workers: int | dict[str, int]) -> None:
        """Set the number of workers; a plain number sets it for the only kind.

        Raises ConfigError for an unknown kind, for a plain number if there are several, and before `load`.
        """
        kinds = list(self.config.ray.kinds)
        requested = {kinds[0]: workers} if isinstance(workers, int) else workers
        if (isinstance(workers, int) and len(kinds) > 1) or not requested.keys() <= {*kinds}:
            raise ConfigError(f"scale({workers!r}): there are workers of {', '.join(kinds)}. Say how many of which.")
        if self.controller.pool is None:
            raise ConfigError(f"scale({workers!r}) is for workers that run: load the engine first, or set ray.workers.")
        self.controller.scale(requested)

    def take_times(self) -> EngineTimes:
        return self.controller.take_times()

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        self.controller.close()
