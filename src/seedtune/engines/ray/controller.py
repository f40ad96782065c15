"""The life of a fleet: who is there, what is to do, what came back.  `turn` is one round of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from seedtune.config.sections import FleetSettings
from seedtune.engines.base import EngineInfo
from seedtune.engines.codec import Plain
from seedtune.engines.ray import cluster, protocol
from seedtune.engines.ray.agreement import Agreement
from seedtune.engines.ray.protocol import Known, Reply, read
from seedtune.engines.ray.scheduler import Dispatcher
from seedtune.engines.ray.statistics import Figures, Span
from seedtune.engines.ray.status_file import Board
from seedtune.engines.ray.update_log import History
from seedtune.engines.ray.worker_pool import Crew, Hand
from seedtune.errors import EngineError, SeedtuneError, StorageError

TICK = 0.25
"""Seconds that a round waits for a reply at the most."""

TRIES = 3
"""Workers that fail to start, one after the other, before a run that never had one stops."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What a task is: an operation of workers, what a worker is told with it, and how its answer is read."""

    operation: str
    tell: Callable[[Hand], Plain]
    hear: Callable[[Plain], Any]
    cost: float = 0.0
    only: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an errand: a ``value``, an ``error`` of the user's, or ``why`` nobody could do it."""

    value: Any = None
    error: SeedtuneError | None = None
    why: str | None = None


class Foreman:
    """Hands out errands, brings workers to where the centre is, and goes on when they are lost."""

    def __init__(self, settings: FleetSettings, *, desk: Dispatcher, history: History, board: Board) -> None:
        self.settings, self.desk, self.history, self.board = settings, desk, history, board
        self.figures = Figures()
        self.crew: Crew | None = None
        self.ray = cluster.Cluster(settings)
        self.info: EngineInfo | None = None
        self.agreement = Agreement()
        self.refused: SeedtuneError | None = None
        """Why a worker could not load, if that is for the user to mend."""

        self._errands: dict[int, Errand] = {}
        self._personal: dict[int, str] = {}
        self._done: dict[int, Answer] = {}
        self._numbers = count()
        self._alone: float | None = None
        self._looked = 0.0

    @property
    def _crew(self) -> Crew:
        assert self.crew is not None, "load comes first"
        return self.crew

    # ------------------------------------------------------------------------------------- errands

    def submit(self, errand: Errand) -> int:
        """Queue an errand; its number."""
        number = next(self._numbers)
        self._errands[number] = errand
        if errand.only is not None:
            self._personal[number] = errand.only
        self.desk.add(number, errand.cost, only=errand.only)
        return number

    def collect(self, numbers: Iterable[int]) -> Iterator[tuple[int, Answer]]:
        """What becomes of errands, as they are done; those that nobody waits for any more are dropped."""
        waiting = set(numbers)
        try:
            while waiting:
                for number in sorted(waiting & self._done.keys()):
                    waiting.discard(number)
                    yield number, self._done.pop(number)
                if waiting:
                    self.turn()
        finally:
            for number in waiting:
                self.drop(number)

    def take(self, number: int) -> Answer | None:
        """What became of an errand, if it is done."""
        return self._done.pop(number, None)

    def drop(self, number: int) -> None:
        """Nobody waits for an errand any more."""
        self.desk.drop(number)
        self._errands.pop(number, None)
        self._done.pop(number, None)

    def _answer(self, number: int, answer: Answer) -> None:
        if self._errands.pop(number, None) is not None:
            self._done[number] = answer

    # --------------------------------------------------------------------------------------- a round

    def turn(self) -> None:
        """Look after the workers, give the idle ones something to do, and take what comes back."""
        self._hear(0.0)  # first, so that nobody is judged by how long this process was busy itself
        now = time.monotonic()
        self._watch(now)
        self._crew.tend(now)
        self._forget_the_gone()
        self._hand_out(now)
        self._hear(TICK)

    def _hear(self, seconds: float) -> None:
        if seconds or any(hand.call is not None for hand in self._crew.hands.values()):
            for hand, raw in self._crew.wait(seconds):
                self._take(hand, raw, time.monotonic())

    def _forget_the_gone(self) -> None:
        """Errands that were for workers which are not there any more are answered."""
        for number, name in list(self._personal.items()):
            if number not in self._errands:
                del self._personal[number]
            elif name not in self._crew.hands:
                self.desk.drop(number)
                self._answer(number, Answer(why=f"worker {name} is gone"))

    def starving(self) -> bool:
        """Whether a worker has nothing to do."""
        enrolled = self._crew.enrolled
        return self.desk.queued == 0 and any(hand.call is None for hand in enrolled)

    def _hand_out(self, now: float) -> None:
        enrolled = self.here()
        # Who was heard last is the least likely to hang.
        for hand in sorted(self._crew.idle(), key=lambda hand: -hand.heard):
            if hand not in enrolled:
                self._send(hand, "enrol", None, now)
            elif len(enrolled) >= self.settings.min_workers:
                number = self.desk.next(hand.name, now, len(enrolled) - 1)
                if number is not None:
                    errand = self._errands[number]
                    self._send(hand, errand.operation, errand.tell(hand), now)

    def here(self) -> list[Hand]:
        """Hands whose workers hold a centre of this epoch."""
        return [hand for hand in self._crew.enrolled if hand.epoch == self.history.epoch]

    def _send(self, hand: Hand, operation: str, told: Plain, now: float) -> None:
        sync = self.history.sync(hand.epoch, hand.position, snapshots=not hand.plain)
        request = protocol.pack([operation, told, sync])
        self.figures.traffic.sent += len(request)
        self._crew.send(hand, request, now)

    # ----------------------------------------------------------------------------------------- replies

    def _take(self, hand: Hand, raw: bytes | Exception, now: float) -> None:
        if isinstance(raw, Exception):
            self._lose(hand, cluster.said(raw), now)
            return
        self.figures.traffic.received += len(raw)
        hand.heard = now
        try:
            reply = read(raw)
        except EngineError as error:
            self._lose(hand, f"it gave {error}", now)
            return
        hand.epoch, hand.position = reply.epoch, reply.position
        if reply.kind is not None:
            hand.known = Known()  # nobody knows how much of the request was heard
        if reply.behind:
            self.desk.release(hand.name)
        elif reply.broken:
            self._lose(hand, reply.message, now)
        elif hand.name in self.desk.running:
            self._finish(hand, reply, now)
        else:
            self._enrol(hand, reply, now)

    def _finish(self, hand: Hand, reply: Reply, now: float) -> None:
        """A worker is done with an errand."""
        run = self.desk.running[hand.name]
        errand = self._errands.get(run.number)
        answer = Answer(error=reply.error()) if reply.kind is not None else Answer()
        if errand is not None and reply.kind is None:
            try:
                answer = Answer(errand.hear(reply.done))
            except EngineError as error:
                self._lose(hand, f"it gave {error}", now)
                return
        hand.jobs, hand.busy = hand.jobs + 1, hand.busy + now - hand.sent
        kind = "late" if errand is None else errand.operation
        place = (hand.name, run.number, run.cost, kind, hand.sent, now)
        self.figures.add(Span(*place, reply.synced, reply.worked, reply.position), reply)
        if run.cost:
            self._crew.settle(hand)
        number = self.desk.finish(hand.name, now)
        if number is None:
            self.figures.late += 1
        else:
            self._answer(number, answer)

    def _enrol(self, hand: Hand, reply: Reply, now: float) -> None:
        """A worker has loaded; or could not, and then the user may have to do something."""
        if reply.kind is not None:
            self._refuse(hand, reply, now)
            return
        try:
            hand.pid, hand.host, about = reply.done
            info = protocol.info_from(about)
        except (TypeError, ValueError, KeyError) as error:
            self._lose(hand, f"it enrolled with an answer that is none ({error}): has it the same seedtune?", now)
            return
        hand.enrolled, hand.began = True, reply.position
        if self.info is None:
            self.info = info
        objection = self.agreement.objection(hand.kind, info.arithmetic)
        if objection is not None:
            self._lose(hand, objection, now)
            return
        self._crew.compute_by(hand.kind, self.agreement.products(hand.kind))
        mine, its = ((one.base_fingerprint, one.centre) for one in (self.info, info))
        if mine != its:
            told = f"it holds a base model {its[0]} with a centre of {its[1]}, the others {mine[0]} with {mine[1]}"
            self._lose(hand, f"{told}: give all workers the same model and precision", now)

    def _refuse(self, hand: Hand, reply: Reply, now: float) -> None:
        error = reply.error()
        by_snapshot = isinstance(error, StorageError) and not hand.plain and self.history.folder is None
        if by_snapshot:
            hand.plain = True  # once more, from the base model
            return
        self.refused = self.agreement.explained(hand.name, hand.kind, error)
        self._lose(hand, str(self.refused), now)

    # ------------------------------------------------------------------------------------------- losses

    def _lose(self, hand: Hand, why: str, now: float) -> None:
        """A worker is gone or of no use: its work goes to others."""
        run = self.desk.running.get(hand.name)
        given_up = self.desk.fail(hand.name)
        self._crew.lose(hand, why, now)
        self.figures.lost += 1
        if given_up is not None:
            self.figures.given_up += 1
            self._crew.note(f"a job failed {self.settings.retries + 1} times and is given up; the last time: {why}")
            self._answer(given_up, Answer(why=why))
        elif run is not None and run.number in self._errands:
            self.figures.retried += 1

    def quarantine(self, hand: Hand, held: str, right: str | None, now: float) -> None:
        """A worker's centre is not what the others' is: it is named and rebuilt."""
        told = f"its weights have fingerprint {held}"
        self._lose(hand, f"{told}, those of most workers {right}" if right else f"{told}, another worker's differ", now)

    def give_up(self, asked: dict[int, str]) -> None:
        """Workers that are at an errand of their own for too long are lost; those that are at a job are left alone."""
        for number, name in asked.items():
            run, hand = self.desk.running.get(name), self._crew.hands.get(name)
            self.drop(number)
            if hand is not None and run is not None and run.number == number:
                self._lose(hand, "it did not answer in time", time.monotonic())

    def near(self) -> Hand:
        """A hand on this machine, or another if there is none here."""
        while not self.here():
            self.turn()
        mine = socket.gethostname()
        return next((hand for hand in self.here() if hand.host == mine), self.here()[0])

    def _watch(self, now: float) -> None:
        """Who hangs, what somebody wishes, and whether anybody is left."""
        hands = self._crew.hands
        for name in self.desk.hopeless(now):
            if name in hands:
                run = self.desk.running[name]
                self._lose(hands[name], f"no answer for {now - run.since:.0f} s", now)
            else:
                self.desk.fail(name)
        for hand in list(hands.values()):
            starting = hand.call is not None and hand.name not in self.desk.running
            if starting and now - hand.sent > self.settings.start_timeout:
                self._lose(hand, f"it did not start in {self.settings.start_timeout:g} s", now)
        if self.board.due(now):
            self._look(now)
        self._check_alone(now)

    def _look(self, now: float) -> None:
        wished = self.board.wish()
        if wished:
            self.scale(wished)
        self.board.show(self.status(now))

    def scale(self, wished: dict[str, int]) -> None:
        """From now on so many workers of each kind that there is, within the limits of the settings."""
        crew, settings = self._crew, self.settings
        target = {**crew.target, **{kind: max(0, n) for kind, n in wished.items() if kind in crew.target}}
        most = settings.max_workers
        if sum(target.values()) < settings.min_workers or (most is not None and sum(target.values()) > most):
            limits = f"min_workers={settings.min_workers}, max_workers={most}"
            crew.note(f"asked for {target}, which is not within {limits}: nothing changes")
            return
        crew.note(f"workers: {crew.target} → {target}")
        crew.target = target

    def _check_alone(self, now: float) -> None:
        """EngineError when the workers that the run needs do not come."""
        crew, enough = self._crew, len(self._crew.enrolled) >= self.settings.min_workers
        if enough:
            self._alone = None
            return
        self._alone = now if self._alone is None else self._alone
        waited, last = now - self._alone, (crew.notes[-1] if crew.notes else "none has started yet")
        if self.info is None and crew.lost >= TRIES:
            raise EngineError(f"no worker can start: {last}")
        if waited > self.settings.start_timeout:
            raise EngineError(
                f"fewer than fleet.min_workers={self.settings.min_workers} workers for {waited:.0f} s ({last}). "
                "Everything up to the last complete generation is safe: seedtune resume goes on from there."
            )
        if waited > 5.0 and not crew.enrolled and now - self._looked > 5.0:
            self._looked = now
            if not self.ray.alive():
                self._reconnect()

    def _reconnect(self) -> None:
        """Ray itself is gone, and all workers with it."""
        crew = self._crew
        crew.note("Ray is gone: starting again")
        for hand in list(crew.hands.values()):
            self.desk.fail(hand.name)
            crew.hands.pop(hand.name)
        self.ray.reconnect()

    # ------------------------------------------------------------------------------------------- telling

    def status(self, now: float) -> dict[str, Any]:
        """How the fleet is, as plain data."""
        crew = self._crew
        return {
            "time": time.time(),
            "target": crew.target,
            "limits": [self.settings.min_workers, self.settings.max_workers],
            "position": self.history.position,
            "queued": self.desk.queued,
            "open": len(self.desk.tasks),
            "lost": crew.lost,
            "workers": [self._shown(hand, now) for hand in crew.hands.values()],
            "notes": list(crew.notes),
        }

    def _shown(self, hand: Hand, now: float) -> dict[str, Any]:
        run = self.desk.running.get(hand.name)
        state = "starting" if not hand.enrolled else "idle" if hand.call is None else "working"
        return {
            "name": hand.name,
            "kind": hand.kind,
            "state": state,
            "host": hand.host,
            "pid": hand.pid,
            "position": hand.position,
            "jobs": hand.jobs,
            "busy": round(hand.busy / max(1e-9, now - hand.since), 3),
            "at_it": None if run is None else round(now - run.since, 1),
        }

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        if self.crew is not None:
            self.crew.close()
            self.crew = None
            self.board.clear()
        self.ray.close()
