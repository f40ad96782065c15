"""The Ray engine: the engine protocol over workers on Ray.

Members go out as ids, results come back, and weights never travel: every worker draws its members and applies the
updates itself.  An update costs the driver nothing; a worker receives it with its next job.
"""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from seedtune import engines
from seedtune.config.config import Config
from seedtune.engines import compact_codec, snapshots
from seedtune.engines.base import EngineInfo, EngineTimes, Finished
from seedtune.engines.codec import Plain
from seedtune.engines.ray import cluster, protocol, worker_spec
from seedtune.engines.ray.controller import Controller, Request, RequestResult
from seedtune.engines.ray.scheduler import Limits, Scheduler
from seedtune.engines.ray.statistics import Span
from seedtune.engines.ray.status_file import StatusFile
from seedtune.engines.ray.update_log import UpdateLog
from seedtune.engines.ray.worker_pool import WorkerHandle, WorkerPool
from seedtune.engines.recorded_arithmetic import Entry
from seedtune.errors import ConfigError, EngineError, StorageError
from seedtune.numerics.noise import Noise
from seedtune.types import Job, Likelihood, Prompt, Rollout, Term, Update

AGREEING = 3
"""How often workers are asked for their fingerprints, and rebuilt, before the run stops."""

Found = TypeVar("Found", Rollout, Likelihood)


class RayEngine:
    """Any number of workers, each with an engine of its own; see the section ``ray`` of the configuration."""

    def __init__(self, config: Config, *, noise: Noise) -> None:
        cluster.check()
        self.config, self.noise = config, noise
        self.tokenizer = engines.tokenizer(config)
        root = Path(config.output_dir)
        settings = config.ray
        self.update_log = UpdateLog(partial(snapshots.listing, root / "snapshots"))
        self.scheduler = Scheduler(Limits(settings.retries, settings.straggler_timeout, settings.start_timeout))
        self.controller = Controller(
            settings, scheduler=self.scheduler, update_log=self.update_log, status_file=StatusFile(root)
        )
        self._streaming: dict[int, int] = {}
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
        assert controller.info is not None
        kinds = " + ".join(f"{count} × {kind}" for kind, count in settings.kinds.items())
        device = f"{controller.info.device}, Ray workers: {kinds}"
        return replace(controller.info, model=self.config.model, device=device, arithmetic=self._arithmetic())

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
        self.controller.status_file.clear()
        gpus = self.controller.ray.gpus()
        worker_spec.check(self.config, gpus)
        self.controller.pool = self._make_pool(WorkerPool, gpus)
        if self.config.ray.detached:
            self.controller.pool.adopt(time.monotonic())

    def _make_pool(self, make: type[WorkerPool], gpus: float) -> WorkerPool:
        """Make a pool for workers of all kinds, on a Ray cluster with ``gpus`` GPUs."""
        kinds = self.config.ray.kinds
        told = {kind: worker_spec.spec_of(self.config, self.noise, kind) for kind in kinds}
        needs = {kind: worker_spec.needs_of(self.config, kind, gpus) for kind in kinds}
        return make(self.config.ray, told, needs, run=str(Path(self.config.output_dir).resolve()).replace("/", "|"))

    # ------------------------------------------------------------------------------------------ members

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        """Yield every job's rollouts as they finish; none for a job that failed too often."""
        return self._all(jobs, "evaluate", protocol.rollouts_from)

    def likelihoods(self, jobs: Iterable[Job]) -> Iterator[Likelihood]:
        """Yield every job's likelihoods as they finish."""
        return self._all(jobs, "likelihoods", protocol.likelihoods_from)

    def _all(self, jobs: Iterable[Job], operation: str, hear: Callable[..., list[Found]]) -> Iterator[Found]:
        numbers = [self.controller.submit(self._request(job, operation, hear)) for job in jobs]
        failed: list[str] = []
        for _, answer in self.controller.collect(numbers):
            if answer.why is None:
                yield from _value(answer)
            else:
                failed.append(answer.why)
        if failed and len(failed) == len(numbers):
            raise EngineError(
                f"every job failed {self.config.ray.retries + 1} times; the last time: {failed[-1]} Everything up to "
                "the last complete generation is safe: seedtune resume goes on from there."
            )

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs with ids unique in a run, for `finished`; each uses the weights current when a worker receives it.

        Do not mix submitted jobs and those of `evaluate`.
        """
        for job in jobs:
            self._streaming[self.controller.submit(self._request(job, "evaluate", protocol.rollouts_from))] = job.id

    def finished(self) -> Finished | None:
        """Wait for the next finished job among the submitted ones; None if none is open."""
        while self._streaming:
            for number, job in self._streaming.items():
                answer = self.controller.take(number)
                if answer is not None:
                    del self._streaming[number]
                    return Finished(job, () if answer.why is not None else tuple(_value(answer)))
            self.controller.turn()
        return None

    def starving(self) -> bool:
        """Return whether the queue is empty and a worker is idle."""
        return self.controller.starving()

    def _request(self, job: Job, operation: str, hear: Callable[..., list[Found]]) -> Request:
        def tell(worker: WorkerHandle) -> Plain:
            return protocol.job(job, worker.known, self.controller.statistics.traffic)

        def heard(data: Plain) -> list[Found]:
            return hear(job, data, self.controller.statistics.traffic)

        cost = float(len(job.pairs) * job.sampling.samples * max(1, job.sampling.max_tokens))
        return Request(operation, tell, heard, cost)

    # ------------------------------------------------------------------------------------------ the weights

    def apply(self, *updates: Update) -> None:
        """Record updates: every worker applies those it misses before its next request."""
        self.update_log.add(updates)

    def _ask(self, operation: str, told: Plain | Callable[[WorkerHandle], Plain], only: str | None = None) -> Any:
        """Return one worker's result, of any idle worker (or of ``only``)."""
        tell = told if callable(told) else lambda _: told
        number = self.controller.submit(Request(operation, tell, lambda data: data, only=only))
        (answer,) = (answer for _, answer in self.controller.collect([number]))
        return _value(answer)

    def norm(self, terms: Sequence[Term]) -> float:
        found: float = self._ask("norm", compact_codec.terms(terms))
        return found

    def drift(self) -> float:
        found: float = self._ask("drift", None)
        return found

    def cosine(self, one: Sequence[Term], other: Sequence[Term]) -> float:
        def tell(worker: WorkerHandle) -> Plain:
            """Replace terms by a number if the worker has applied them itself."""
            numbers = [(terms, self.update_log.number_of(terms)) for terms in (one, other)]
            return [compact_codec.terms(t) if n is None or n < worker.began else n for t, n in numbers]

        found: float = self._ask("cosine", tell)
        return found

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], *, base: bool = False
    ) -> list[list[float]]:
        told = [protocol.prompts(prompts), [list(tokens) for tokens in completions], base]
        found: list[list[float]] = self._ask("logprobs", told)
        return found

    def fingerprint(self) -> str:
        """Return the weights' fingerprint, checked on all workers; rebuild workers with another fingerprint."""
        known = self.update_log.prints.get(self.update_log.position)
        if known is None:
            known = self._agreed()
            self.update_log.prints[self.update_log.position] = known
        return known

    def _agreed(self) -> str:
        """Return the majority's fingerprint; without a majority, rebuild all workers and ask again."""
        tries = 0
        while tries < AGREEING:
            found = self._everyone()
            tries += bool(found)  # if no worker was left to answer, replacements are on their way
            prints = sorted(found.values())
            most = max(prints, key=prints.count, default=None)
            majority = most is not None and 2 * prints.count(most) > len(prints)
            pool, now = self.controller.pool, time.monotonic()
            assert pool is not None
            for name, held in found.items():
                if name in pool.workers and not (majority and held == most):
                    self.controller.quarantine(pool.workers[name], held, most if majority else None, now)
            if majority:
                assert most is not None
                return most
        raise EngineError(
            "the workers hold different weights, also after they were rebuilt: a machine among them miscomputes. "
            "'seedtune ray status' and metrics.jsonl name them: take that machine away, then seedtune resume."
        )

    def _everyone(self) -> dict[str, str]:
        """Return the fingerprints of all workers by name; workers much slower than the first are given up."""
        controller = self.controller
        while not controller.here():
            controller.turn()
        asked = {}
        idle = [worker for worker in controller.here() if worker.call is None]
        for worker in idle or controller.here():
            request = Request("fingerprint", lambda _: None, lambda data: data, only=worker.name)
            asked[controller.submit(request)] = worker.name
        found: dict[str, str] = {}
        deadline: float | None = None
        while asked and (deadline is None or time.monotonic() < deadline):
            for number in list(asked):
                answer = controller.take(number)
                if answer is not None:
                    name = asked.pop(number)
                    if answer.why is None:
                        found[name] = _value(answer).hex()
                        deadline = deadline or time.monotonic() + self.config.ray.straggler_timeout
            if asked:
                controller.turn()
        controller.give_up(asked)
        return found

    def snapshot(self, path: Path) -> None:
        """Have a worker on this machine write the weights, or any worker if there is none here (on a shared disk)."""
        self._write("snapshot", str(path.resolve()), path)

    def export(self, path: Path, dtype: str | None = None) -> None:
        """Have a worker write a model."""
        self._write("export", [str(path.resolve()), dtype], path)

    def _write(self, operation: str, told: Plain, path: Path) -> None:
        for left in reversed(range(1 + self.config.ray.retries)):
            try:
                self._ask(operation, told, only=self.controller.near().name)
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
        return list(self.controller.statistics.spans)

    def scale(self, workers: int | dict[str, int]) -> None:
        """Set the number of workers; a plain number sets it for the only kind."""
        kinds = list(self.config.ray.kinds)
        requested = {kinds[0]: workers} if isinstance(workers, int) else workers
        if (isinstance(workers, int) and len(kinds) > 1) or not requested.keys() <= {*kinds}:
            raise ConfigError(f"scale({workers!r}): there are workers of {', '.join(kinds)}. Say how many of which.")
        if self.controller.pool is None:
            raise ConfigError(f"scale({workers!r}) is for workers that run: load the engine first, or set ray.workers.")
        self.controller.scale(requested)

    def take_times(self) -> EngineTimes:
        controller = self.controller
        workers = 0 if controller.pool is None else len(controller.pool.enrolled)
        taken = controller.statistics.take(workers)
        if controller.pool is not None:
            taken.notes, controller.pool.fresh_notes = controller.pool.fresh_notes, []
        return taken

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        self.controller.close()


def _value(answer: RequestResult) -> Any:
    """Return the value of a result; EngineError if no worker could compute it, or the worker's own error."""
    if answer.error is not None:
        raise answer.error
    if answer.why is not None:
        raise EngineError(answer.why)
    return answer.value
