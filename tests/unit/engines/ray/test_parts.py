"""The parts of the Ray engine by themselves: the queue, the wire and the update log."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from seedtune.config.sections import RaySettings
from seedtune.engines.base import EngineInfo
from seedtune.engines.codec import CompactUpdate, TermColumns, decode, encode
from seedtune.engines.ray import protocol
from seedtune.engines.ray.agreement import Agreement
from seedtune.engines.ray.protocol import JobMessage, Reply, SentTexts
from seedtune.engines.ray.scheduler import HEDGE_SECONDS, Request, Scheduler
from seedtune.engines.ray.update_log import UpdateLog
from seedtune.engines.snapshots import Snapshot
from seedtune.errors import DataError, EngineError, MissingExtraError
from seedtune.types import (
    UNPERTURBED,
    Coverage,
    Decay,
    Job,
    Member,
    Prompt,
    Rollout,
    Sampling,
    Shift,
    Term,
    TokenCount,
    Update,
)

MEMBERS = (Member(3, 0, 1), Member(3, 0, -1), UNPERTURBED, Member(1, 7, 1))
PROMPTS = tuple(Prompt(i, f"Question {i}", {"thinking": False}, max_tokens=4 if i else None) for i in range(3))
TERMS = (Term(3, 0, 0.1), Term(3, 1, -0.25), Term(3, 2, 1e-300))


def job(**changes) -> Job:
    options = {"tokens": False, **changes}
    return Job(5, 0.05, MEMBERS, PROMPTS, Sampling(8, samples=2, stop=("END",)), **options)


def rollout(of: Job, member: int, prompt: int, sample: int, *, tokens: bool = True) -> Rollout:
    text = f"Ünïcode {member} {prompt} {sample}"
    ids = tuple(range(prompt + 1)) if tokens else ()
    count = None if tokens else TokenCount(prompt + 1, bool(prompt))
    finish = "length" if sample else "stop"
    return Rollout(of.id, of.members[member], prompt, sample, text, ids, 10 + prompt, finish, counted=count)


# ------------------------------------------------------------------------------------------------ queue


class Numbers(Scheduler):
    """A scheduler whose requests are shown by their numbers, in the order in which they were added from 0."""

    def __init__(self, **limits: float) -> None:
        super().__init__(RaySettings(**limits))

    def add(self, cost: float, **options) -> int:
        return super().add(Request(cost, **options)).number

    def next(self, worker: str, now: float, others: int) -> int | None:
        return number(super().next(worker, now, others))

    def finish(self, worker: str, now: float) -> int | None:
        return number(super().finish(worker, now))

    def fail(self, worker: str, why: str = "it is gone") -> int | None:
        return number(super().fail(worker, why))


def number(request: Request | None) -> int | None:
    return None if request is None else request.number


scheduler = Numbers


def test_the_largest_task_goes_first_and_equal_ones_in_order():
    queue = scheduler()
    for cost in (1.0, 5.0, 3.0, 5.0):
        queue.add(cost)
    assert [queue.next(worker, 0.0, 3) for worker in "abcd"] == [1, 3, 2, 0]
    assert queue.next("e", 0.0, 4) is None


def test_a_failed_task_goes_to_another_worker_and_is_given_up_after_so_many_tries():
    queue = scheduler(retries=2)
    queue.add(1.0)
    assert queue.next("a", 0.0, 1) == 0
    assert queue.fail("a") is None
    assert queue.next("a", 0.0, 1) is None, "who failed it does not get it while another is there"
    assert queue.next("b", 0.0, 1) == 0
    assert queue.fail("b") is None
    assert queue.next("a", 0.0, 0) == 0, "alone it does"
    assert queue.fail("a") == 0
    assert not queue.open


def test_an_overdue_task_is_given_to_an_idle_worker_too_and_the_first_answer_counts():
    queue = scheduler()
    queue.add(1.0)
    queue.next("a", 0.0, 1)
    assert queue.finish("a", 1.0) == 0
    queue.add(1.0)
    queue.next("a", 10.0, 1)
    assert queue.next("b", 10.0 + 1.9 * HEDGE_SECONDS, 1) is None
    assert queue.next("b", 12.5, 1) == 1
    assert queue.next("c", 13.0, 2) is None, "two are enough"
    assert queue.finish("b", 13.5) == 1
    assert queue.finish("a", 20.0) is None, "a late duplicate"


def test_a_worker_that_is_lost_beside_another_at_the_same_task_leaves_it_to_that_one():
    queue = scheduler()
    queue.add(1.0)
    queue.pace = 1.0
    queue.next("a", 0.0, 1)
    queue.next("b", 5.0, 1)
    assert queue.fail("a") is None
    assert queue.next("c", 5.1, 2) is None
    assert queue.finish("b", 6.0) == 0


def test_a_task_for_one_worker_waits_for_that_one():
    queue = scheduler()
    queue.add(9.0, only="b")
    queue.add(1.0)
    assert queue.next("a", 0.0, 1) == 1
    assert queue.next("b", 0.0, 1) == 0


def test_patience_follows_what_jobs_took_so_far():
    queue = scheduler(straggler_timeout=5.0, start_timeout=100.0)
    queue.add(2.0)
    queue.next("a", 0.0, 0)
    assert queue.hopeless(99.0) == []
    assert queue.hopeless(101.0) == ["a"]
    queue.finish("a", 4.0)  # two seconds a unit
    queue.add(2.0)
    queue.next("a", 10.0, 0)
    assert queue.hopeless(10.0 + 39.0) == []
    assert queue.hopeless(10.0 + 41.0) == ["a"]


def test_what_takes_long_by_its_nature_gets_more_time_after_failures():
    queue = scheduler(straggler_timeout=5.0)
    queue.pace = 1.0
    queue.add(1.0)
    for limit in (10.0, 20.0, 40.0):
        queue.next("a", 0.0, 0)
        assert queue.hopeless(limit - 0.1) == []
        assert queue.hopeless(limit + 0.1) == ["a"]
        queue.fail("a")


def test_one_slow_job_makes_the_queue_patient_with_the_next():
    queue = scheduler(straggler_timeout=1.0)
    for seconds in (1.0, 30.0, 1.0, 1.0):
        queue.add(1.0)
        queue.next("a", 0.0, 0)
        queue.finish("a", seconds)
    queue.add(1.0)
    queue.next("a", 0.0, 0)
    assert queue.hopeless(85.0) == []
    assert queue.hopeless(91.0) == ["a"]


def test_work_without_a_cost_is_never_given_to_two():
    queue = scheduler()
    queue.pace = 1.0
    queue.add(0.0)
    queue.next("a", 0.0, 1)
    assert queue.next("b", 1000.0, 1) is None


def test_a_request_is_not_given_up_while_a_worker_runs_it():
    queue = scheduler(retries=0)
    queue.pace = 1.0
    queue.add(1.0)
    queue.next("a", 0.0, 1)
    queue.next("b", 5.0, 1)
    assert queue.fail("b") is None
    assert queue.finish("a", 6.0) == 0


def test_a_task_that_two_hang_at_again_and_again_is_given_up():
    queue, tries = scheduler(retries=2), 0
    queue.pace = 1.0
    queue.add(1.0)
    while queue.open:
        queue.next(f"a{tries}", 100.0 * tries, 9)
        queue.next(f"b{tries}", 100.0 * tries + 50.0, 9)
        queue.fail(f"a{tries}")
        tries += 1
    assert tries == 6


# ------------------------------------------------------------------------------------------------- wire


def send(sent: Job, known: SentTexts, cached: list[bytes]) -> Job:
    return decode(encode(JobMessage.of(sent, known)), JobMessage).job(cached)


@pytest.mark.parametrize("rows", [None, ((0, 2), (3, 2), (1, 1))], ids=["all", "some"])
@pytest.mark.parametrize("shift", [None, Shift(TERMS, 0.5)], ids=["unperturbed", "shifted"])
def test_a_job_arrives_as_it_was_sent(rows, shift):
    sent, known, cached = job(rows=rows, shift=shift), SentTexts(), []
    for _ in range(2):
        arrived = send(sent, known, cached)
        asked = [(arrived.members[m], arrived.prompts[p]) for m, p in arrived.pairs]
        assert asked == [(sent.members[m], sent.prompts[p]) for m, p in sent.pairs]
        assert (arrived.id, arrived.sigma, arrived.sampling, arrived.shift) == (5, 0.05, sent.sampling, shift)


def test_a_question_travels_once_to_every_worker():
    known = SentTexts()
    first, second = (len(encode(JobMessage.of(job(), known))) for _ in range(2))
    assert second < first / 2
    other = JobMessage.of(job(rows=((0, 0),)), known)
    assert not any(b"Question" in text for text in other.texts), "of a question in other words the prompts are known"


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("rows", [None, ((0, 2), (3, 2), (1, 1))], ids=["all", "some"])
def test_rollouts_arrive_as_they_were_sent(tokens, rows):
    sent = job(tokens=tokens, rows=rows)
    there = send(sent, SentTexts(), [])
    found = [rollout(there, m, p, s, tokens=tokens) for m, p in reversed(there.pairs) for s in range(2)][1:]
    arrived = protocol.unpack(protocol.pack(found), Rollout, sent)
    assert len(arrived) == len(found)
    texts = {(r.member, there.prompts[r.prompt].id, r.sample): r for r in found}
    for one in arrived:
        twin = texts[one.member, sent.prompts[one.prompt].id, one.sample]
        assert (one.text, one.prompt_tokens, one.finish) == (twin.text, twin.prompt_tokens, twin.finish)
        assert (one.token_ids, one.counted) == (twin.token_ids, twin.counted)


def test_a_rollout_costs_little_more_than_its_text():
    of = job()
    found = [rollout(of, m, p, s, tokens=False) for m, p in of.pairs for s in range(2)]
    texts = zlib.compress(encode([one.text for one in found]))
    assert len(protocol.pack(found)) < len(texts) + 16 * len(found)


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"no message", encode({"a": 1})[:-1], encode({"a": 1})])
def test_what_is_no_message_is_an_error(garbage):
    with pytest.raises(protocol.MALFORMED):
        decode(garbage, Reply)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        zlib.compress(b""),
        zlib.compress(encode(None)),
        zlib.compress(encode([{"text": "x"}])),
        protocol.pack([rollout(job(), 0, 2, 0)])[:-1],
        protocol.pack([replace(rollout(job(), 0, 2, 0), prompt=3)]),
        protocol.pack([replace(rollout(job(), 0, 2, 0), finish="never")]),
    ],
)
def test_what_are_no_rollouts_is_an_error(garbage):
    with pytest.raises(protocol.MALFORMED):
        protocol.unpack(garbage, Rollout, job())


@pytest.mark.parametrize(
    ("raised", "arrived"),
    [
        (DataError("no prompt"), DataError("no prompt")),
        (MissingExtraError("vLLM", "pip install vllm"), MissingExtraError("vLLM", "pip install vllm")),
        (EngineError("out of memory"), EngineError("out of memory")),
        (ZeroDivisionError("by zero"), EngineError("ZeroDivisionError: by zero")),
    ],
)
def test_an_error_arrives_as_it_was_raised(raised, arrived):
    reply = decode(encode(Reply(None, type(raised).__name__, str(raised), 0, 0, 0.0, 0.0)), Reply)
    assert (type(reply.error), str(reply.error)) == (type(arrived), str(arrived))


@pytest.mark.parametrize(
    "update",
    [
        Update(3, TERMS),
        Update(4, ()),
        Update(3, (Term(1, 5, 0.5), Term(3, 0, -0.0)), Decay(0.1, 0.2)),
    ],
    ids=["plain", "empty", "decay"],
)
def test_updates_arrive_bit_for_bit(update):
    assert repr(decode(encode(CompactUpdate.of(update)), CompactUpdate).update()) == repr(update)


def test_an_update_costs_eight_bytes_for_every_noise_sample():
    terms = tuple(Term(1000, pair, 0.1 * pair + 0.01) for pair in range(512))
    assert len(encode(CompactUpdate.of(Update(1000, terms)))) < 8 * 512 + 32


def test_what_a_worker_remembers_is_bounded(monkeypatch):
    monkeypatch.setattr(protocol, "TEXTS", 1000)
    known, cached = SentTexts(), []
    for number in range(3 * protocol.TEXTS):
        sent = Job(number, 0.1, (UNPERTURBED,), (Prompt(number, f"Question {number}"),), Sampling(4))
        assert send(sent, known, cached).prompts == sent.prompts
        assert len(cached) == len(known.numbers) <= protocol.TEXTS + 2
    assert known.size == sum(map(len, cached))


# ----------------------------------------------------------------------------------------------- history


def test_a_worker_is_sent_what_it_misses_and_no_more():
    past = UpdateLog(lambda: ())
    past.begin(None)
    past.add([Update(g, (Term(g, 0, 1.0),)) for g in range(5)])
    assert past.sync(0, 3) == (0, None, 3, past.updates[3:])
    assert past.sync(0, 5) == (0, None, 5, [])
    assert past.sync(-1, 0) == (0, (None, None), 0, past.updates)
    past.begin(None)
    assert past.sync(0, 5) == (1, (None, None), 0, []), "another epoch begins from the base model"


def test_a_new_worker_begins_from_the_newest_snapshot_that_is_of_this_run():
    kept = [Snapshot(Path("c"), 9, "x"), Snapshot(Path("b"), 4, "four"), Snapshot(Path("a"), 2, "two")]
    past = UpdateLog(lambda: kept)
    past.begin(None)
    past.add([Update(g, ()) for g in range(6)])
    past.fingerprints |= {2: "two", 4: "four", 6: "six"}
    assert past.sync(-1, 0) == (0, ("b", "four"), 4, past.updates[4:])
    assert past.sync(-1, 0, snapshots=False)[1:3] == ((None, None), 0)
    past.fingerprints[4] = "another"
    assert past.sync(-1, 0)[1:3] == (("a", "two"), 2)


def test_updates_of_late_are_known_by_number():
    past = UpdateLog(lambda: ())
    past.begin(None)
    past.add([Update(g, (Term(g, 0, 1.0 + g),)) for g in range(4)])
    assert past.number_of((Term(2, 0, 3.0),)) == 2
    assert past.number_of((Term(2, 0, 3.5),)) is None


def test_terms_of_unequal_columns_are_refused():
    columns = TermColumns.of([Term(3, 0, 0.5), Term(3, 4, -0.5)])
    assert columns.terms() == (Term(3, 0, 0.5), Term(3, 4, -0.5))
    for damaged in (columns._replace(pairs=5), columns._replace(pairs=[0]), columns._replace(weights=bytes(8))):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            damaged.terms()


def test_a_worker_that_reads_text_otherwise_is_refused():
    info = EngineInfo("m", "0", "float32", "cpu", Coverage(1, 1, ()), tokenizer_fingerprint="a")
    agreement = Agreement()
    assert agreement.objection("toy", info) is None
    assert agreement.objection("toy", info) is None
    objection = agreement.objection("toy", replace(info, tokenizer_fingerprint="b"))
    assert objection == (
        "its tokenizer or chat template reads text otherwise (b) than the others' (a): give all workers the same files "
        "of the model"
    )
