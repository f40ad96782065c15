"""The fleet engine: the engine protocol over workers on Ray.

Members go out as ids, answers come back, weights stay where they are: every worker draws its members and applies the
updates itself.  An update costs the driver nothing; a worker hears of it with its next job.
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

from seedtune.config.config import Config
from seedtune.engines import compact_codec, snapshots
from seedtune.engines.base import Engine, EngineInfo, EngineTimes, Finished
from seedtune.engines.codec import Plain
from seedtune.engines.ray import cluster, protocol, worker_spec
from seedtune.engines.ray.controller import Answer, Errand, Foreman
from seedtune.engines.ray.scheduler import Dispatcher, Limits
from seedtune.engines.ray.statistics import Span
from seedtune.engines.ray.status_file import Board
from seedtune.engines.ray.update_log import History
from seedtune.engines.ray.worker_pool import Crew, Hand
from seedtune.engines.recorded_arithmetic import Entry
from seedtune.errors import ConfigError, EngineError, StorageError
from seedtune.numerics.noise import Noise
from seedtune.types import Job, Likelihood, Prompt, Rollout, Term, Update

AGREEING = 3
"""How often workers are asked what they hold, and rebuilt, before the run stops."""

Found = TypeVar("Found", Rollout, Likelihood)


class FleetEngine:
    """Any number of workers, each with an engine of its own; see the section ``fleet`` of the configuration."""

    def __init__(self, config: Config, *, noise: Noise) -> None:
        cluster.check()
        self.config, self.noise = config, noise
        root = Path(config.output_dir)
        fleet = config.fleet
        self.history = History(partial(snapshots.listing, root / "snapshots"))
        self.desk = Dispatcher(Limits(fleet.retries, fleet.patience, fleet.first_job_timeout))
        self.foreman = Foreman(fleet, desk=self.desk, history=self.history, board=Board(root))
        self._reader: Engine | None = None
        self._streaming: dict[int, int] = {}
        self._end = weakref.finalize(self, self.foreman.close)  # also if nobody closes it

    # ------------------------------------------------------------------------------------------ loading

    def load(self, snapshot: Path | None = None) -> EngineInfo:
        """Start the workers unless they run, and have them load; those that come later do so when they come."""
        self._open()
        foreman, settings = self.foreman, self.config.fleet
        self.history.begin(snapshot)
        foreman.refused = None
        while len(foreman.here()) < settings.min_workers:
            foreman.turn()
            if foreman.refused is not None:
                raise foreman.refused
        assert foreman.info is not None
        kinds = " + ".join(f"{count} × {kind}" for kind, count in settings.kinds.items())
        device = f"{foreman.info.device}, fleet of {kinds}"
        return replace(foreman.info, model=self.config.model, device=device, arithmetic=self._arithmetic())

    def _arithmetic(self) -> Entry:
        """How the workers compute; of several kinds, those that have come by now."""
        known = self.foreman.agreement.known
        (first, *others) = self.config.fleet.kinds
        return {"workers": {kind: dict(known[kind]) for kind in sorted(known)}} if others else known[first]

    def _open(self) -> None:
        if self.foreman.crew is not None:
            return
        self.context_length()  # a model that is not there is an error here, before any process starts
        self.foreman.ray.connect()
        atexit.register(self._end)  # before Ray's own, which was registered when it was imported
        self.foreman.board.clear()
        gpus = self.foreman.ray.gpus()
        worker_spec.check(self.config, gpus)
        self.foreman.crew = self._crew(Crew, gpus)
        if self.config.fleet.keep:
            self.foreman.crew.adopt(time.monotonic())

    def _crew(self, make: type[Crew], gpus: float) -> Crew:
        """Workers of all kinds, where Ray has so many GPUs."""
        kinds = self.config.fleet.kinds
        told = {kind: worker_spec.spec_of(self.config, self.noise, kind) for kind in kinds}
        needs = {kind: worker_spec.needs_of(self.config, kind, gpus) for kind in kinds}
        return make(self.config.fleet, told, needs, run=str(Path(self.config.output_dir).resolve()).replace("/", "|"))

    @property
    def reader(self) -> Engine:
        """An engine of the first kind that is never loaded: it reads prompts."""
        if self._reader is None:
            from seedtune import engines

            kind = next(iter(self.config.fleet.kinds))
            section: dict[str, Any] = getattr(self.config, kind).model_dump()
            if kind == "transformers":
                section["device"] = "cpu"
            self._reader = engines.create(self.config.replace(engine=kind, **{kind: section}))
        return self._reader

    def context_length(self) -> int | None:
        return self.reader.context_length()

    def prompt_lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return self.reader.prompt_lengths(prompts)

    # ------------------------------------------------------------------------------------------ members

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        """Every job's rollouts as they finish; none of a job that failed too often."""
        return self._all(jobs, "evaluate", protocol.rollouts_from)

    def likelihoods(self, jobs: Iterable[Job]) -> Iterator[Likelihood]:
        """Every job's likelihoods as they are found."""
        return self._all(jobs, "likelihoods", protocol.likelihoods_from)

    def _all(self, jobs: Iterable[Job], operation: str, hear: Callable[..., list[Found]]) -> Iterator[Found]:
        numbers = [self.foreman.submit(self._errand(job, operation, hear)) for job in jobs]
        failed: list[str] = []
        for _, answer in self.foreman.collect(numbers):
            if answer.why is None:
                yield from _value(answer)
            else:
                failed.append(answer.why)
        if failed and len(failed) == len(numbers):
            raise EngineError(
                f"every job failed {self.config.fleet.retries + 1} times; the last time: {failed[-1]} Everything up to "
                "the last complete generation is safe: seedtune resume goes on from there."
            )

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, for `finished`; see `Streaming`."""
        for job in jobs:
            self._streaming[self.foreman.submit(self._errand(job, "evaluate", protocol.rollouts_from))] = job.id

    def finished(self) -> Finished | None:
        """The next job that is done, of those that were submitted."""
        while self._streaming:
            for number, job in self._streaming.items():
                answer = self.foreman.take(number)
                if answer is not None:
                    del self._streaming[number]
                    return Finished(job, () if answer.why is not None else tuple(_value(answer)))
            self.foreman.turn()
        return None

    def starving(self) -> bool:
        """Whether a worker has nothing to do."""
        return self.foreman.starving()

    def _errand(self, job: Job, operation: str, hear: Callable[..., list[Found]]) -> Errand:
        def tell(hand: Hand) -> Plain:
            return protocol.job(job, hand.known, self.foreman.figures.traffic)

        def heard(data: Plain) -> list[Found]:
            return hear(job, data, self.foreman.figures.traffic)

        cost = float(len(job.pairs) * job.sampling.samples * max(1, job.sampling.max_tokens))
        return Errand(operation, tell, heard, cost)

    # ------------------------------------------------------------------------------------------ the centre

    def apply(self, *updates: Update) -> None:
        """Remember updates: every worker applies those that it misses before its next piece of work."""
        self.history.add(updates)

    def _ask(self, operation: str, told: Plain | Callable[[Hand], Plain], only: str | None = None) -> Any:
        """One worker's answer, whoever has time (or ``only`` that one's)."""
        tell = told if callable(told) else lambda _: told
        number = self.foreman.submit(Errand(operation, tell, lambda data: data, only=only))
        (answer,) = (answer for _, answer in self.foreman.collect([number]))
        return _value(answer)

    def norm(self, terms: Sequence[Term]) -> float:
        found: float = self._ask("norm", compact_codec.terms(terms))
        return found

    def drift(self) -> float:
        found: float = self._ask("drift", None)
        return found

    def cosine(self, one: Sequence[Term], other: Sequence[Term]) -> float:
        def tell(hand: Hand) -> Plain:
            """By number what the worker has applied itself."""
            numbers = [(terms, self.history.number_of(terms)) for terms in (one, other)]
            return [compact_codec.terms(t) if n is None or n < hand.began else n for t, n in numbers]

        found: float = self._ask("cosine", tell)
        return found

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], *, base: bool = False
    ) -> list[list[float]]:
        told = [protocol.prompts(prompts), [list(tokens) for tokens in completions], base]
        found: list[list[float]] = self._ask("logprobs", told)
        return found

    def fingerprint(self) -> str:
        """The centre's fingerprint, by all workers that are there; those that hold another one are rebuilt."""
        known = self.history.prints.get(self.history.position)
        if known is None:
            known = self._agreed()
            self.history.prints[self.history.position] = known
        return known

    def _agreed(self) -> str:
        """What more than half of the workers hold; where there is no such majority, all are rebuilt and asked again."""
        tries = 0
        while tries < AGREEING:
            found = self._everyone()
            tries += bool(found)  # where nobody was left to answer, others are on their way
            prints = sorted(found.values())
            most = max(prints, key=prints.count, default=None)
            majority = most is not None and 2 * prints.count(most) > len(prints)
            crew, now = self.foreman.crew, time.monotonic()
            assert crew is not None
            for name, held in found.items():
                if name in crew.hands and not (majority and held == most):
                    self.foreman.quarantine(crew.hands[name], held, most if majority else None, now)
            if majority:
                assert most is not None
                return most
        raise EngineError(
            "the workers hold different weights, also after they were rebuilt: a machine among them miscomputes. "
            "'seedtune fleet status' and metrics.jsonl name them: take that machine away, then seedtune resume."
        )

    def _everyone(self) -> dict[str, str]:
        """The fingerprints of all workers that are there, by name; who is much slower than the first is lost."""
        foreman = self.foreman
        while not foreman.here():
            foreman.turn()
        asked = {}
        idle = [hand for hand in foreman.here() if hand.call is None]
        for hand in idle or foreman.here():
            errand = Errand("fingerprint", lambda _: None, lambda data: data, only=hand.name)
            asked[foreman.submit(errand)] = hand.name
        found: dict[str, str] = {}
        deadline: float | None = None
        while asked and (deadline is None or time.monotonic() < deadline):
            for number in list(asked):
                answer = foreman.take(number)
                if answer is not None:
                    name = asked.pop(number)
                    if answer.why is None:
                        found[name] = _value(answer).hex()
                        deadline = deadline or time.monotonic() + self.config.fleet.patience
            if asked:
                foreman.turn()
        foreman.give_up(asked)
        return found

    def snapshot(self, path: Path) -> None:
        """Have a worker on this machine write the centre, or any if there is none here (on a shared disk)."""
        self._write("snapshot", str(path.resolve()), path)

    def export(self, path: Path, dtype: str | None = None) -> None:
        """Have a worker write a model."""
        self._write("export", [str(path.resolve()), dtype], path)

    def _write(self, operation: str, told: Plain, path: Path) -> None:
        for left in reversed(range(1 + self.config.fleet.retries)):
            try:
                self._ask(operation, told, only=self.foreman.near().name)
                break
            except EngineError:  # it was lost meanwhile: another
                if not left:
                    raise
        if not path.is_dir() or not any(path.iterdir()):
            raise StorageError(
                f"a worker wrote {path} where this machine does not see it. Put output_dir on a disk that the workers "
                "and this machine share."
            )

    # ------------------------------------------------------------------------------------------ the fleet

    @property
    def spans(self) -> list[Span]:
        """Every piece of work that was done, in order."""
        return list(self.foreman.figures.spans)

    def scale(self, workers: int | dict[str, int]) -> None:
        """From now on so many workers; a number is for a fleet of one kind."""
        kinds = list(self.config.fleet.kinds)
        wished = {kinds[0]: workers} if isinstance(workers, int) else workers
        if (isinstance(workers, int) and len(kinds) > 1) or not wished.keys() <= {*kinds}:
            raise ConfigError(f"scale({workers!r}): there are workers of {', '.join(kinds)}. Say how many of which.")
        if self.foreman.crew is None:
            raise ConfigError(
                f"scale({workers!r}) is for a fleet that runs: load the engine first, or set fleet.workers."
            )
        self.foreman.scale(wished)

    def take_times(self) -> EngineTimes:
        foreman = self.foreman
        workers = 0 if foreman.crew is None else len(foreman.crew.enrolled)
        taken = foreman.figures.take(workers)
        if foreman.crew is not None:
            taken.notes, foreman.crew.fresh_notes = foreman.crew.fresh_notes, []
        return taken

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        self.foreman.close()


def _value(answer: Answer) -> Any:
    """What an errand gave; EngineError if nobody could do it, or the worker's own error."""
    if answer.error is not None:
        raise answer.error
    if answer.why is not None:
        raise EngineError(answer.why)
    return answer.value
