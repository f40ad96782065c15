"""What a worker answers: read, checked, and errors made errors again."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from seedtune import errors
from seedtune.engines.base import EngineTimes
from seedtune.engines.codec import Plain
from seedtune.engines.fleet import wire
from seedtune.engines.fleet.worker import BEHIND, UNKNOWN
from seedtune.errors import EngineError, SeedtuneError


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: ``done``, or an error of a ``kind`` with its ``message``."""

    done: Plain
    kind: str | None
    message: str
    epoch: int
    position: int
    synced: float
    worked: float
    times: EngineTimes

    @property
    def behind(self) -> bool:
        """Whether the worker was not where the request took it to be."""
        return self.kind == BEHIND

    @property
    def broken(self) -> bool:
        """Whether the engine failed, so that this worker cannot be trusted any more; another may do better."""
        return self.kind in (UNKNOWN, EngineError.__name__)

    def error(self) -> SeedtuneError:
        """The error, as it was raised in the worker."""
        assert self.kind is not None
        found: type[SeedtuneError] = vars(errors).get(self.kind, EngineError)
        made = found.__new__(found)  # MissingExtraError composes its message itself, and has composed it already
        Exception.__init__(made, self.message)
        return made


def read(raw: bytes) -> Reply:
    """A reply from bytes; EngineError if it is none."""
    data = wire.unpack(raw)
    try:
        done, told, epoch, position, raw_times = data
        kind, message = (None, "") if told is None else told
        times, synced, worked = wire.times_from(raw_times)
        return Reply(done, kind, str(message), int(epoch), int(position), synced, worked, times)
    except (TypeError, ValueError, struct.error) as error:
        raise EngineError(f"an answer that is none ({type(error).__name__}: {error})") from error
