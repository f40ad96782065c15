"""What every engine promises: a row in ENGINES is tested against the whole contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from seedtune.config import ToySettings
from seedtune.engines.base import Engine, Noise
from seedtune.engines.toy import ToyEngine
from seedtune.errors import SeedtuneError
from seedtune.types import CENTRE, Job, Member, Prompt, Rollout, Sampling, Term, Update

ENGINES: dict[str, Callable[[], Engine]] = {
    "toy": lambda: ToyEngine("base", noise=Noise(7), settings=ToySettings(size=6)),
    "toy-rank3": lambda: ToyEngine("base", noise=Noise(7, rank=3), settings=ToySettings(size=6)),
}
"""One maker per engine: two calls give engines of the same base model and run seed, not yet loaded."""

MEMBERS = (Member(2, 0, 1), Member(2, 0, -1), CENTRE, Member(2, 5, 1), Member(1, 9, -1))
PROMPTS = tuple(Prompt(index, f"Question {index}") for index in range(3))
UPDATE = Update(2, (Term(1, 9, -0.02), Term(2, 0, 0.03), Term(2, 5, 0.01)))


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def make(request) -> Callable[[], Engine]:
    return request.param


@pytest.fixture
def engine(make):
    made = make()
    made.load()
    yield made
    made.close()


def job(number: int = 0, members=MEMBERS, *, sigma: float = 0.05, samples: int = 1) -> Job:
    return Job(number, sigma, tuple(members), PROMPTS, Sampling(max_tokens=8, samples=samples))


def answers(engine: Engine, *jobs: Job) -> dict[tuple, Rollout]:
    """Rollouts by (job, member, prompt, sample), each there once."""
    rollouts = list(engine.evaluate(jobs))
    found = {(r.job, r.member, r.prompt, r.sample): r for r in rollouts}
    assert len(found) == len(rollouts)
    return found


def test_loading_says_what_was_loaded(make):
    engine = make()
    info = engine.load()
    assert len(info.base_fingerprint) == 32
    assert 0 < info.coverage.perturbed <= info.coverage.total
    assert info == make().load()


def test_every_member_answers_every_prompt_once(engine):
    found = answers(engine, job(3, samples=2))
    places = {(3, m, p, s) for m in MEMBERS for p in range(len(PROMPTS)) for s in range(2)}
    assert set(found) == places
    assert all(r.prompt_tokens > 0 and r.finish in ("stop", "length") for r in found.values())


def test_members_answer_differently(engine):
    found = answers(engine, job())
    texts = {tuple(found[0, member, p, 0].text for p in range(len(PROMPTS))) for member in MEMBERS}
    assert len(texts) == len(MEMBERS)


def test_evaluating_twice_gives_what_evaluating_once_gives(engine):
    assert answers(engine, job()) == answers(engine, job())


def test_the_centre_is_the_member_without_noise(engine):
    centre = answers(engine, job(members=(CENTRE,)))
    unperturbed = answers(engine, job(members=(CENTRE,), sigma=0.0))
    assert centre == unperturbed


def test_evaluating_leaves_the_centre_as_it_is(engine):
    before = engine.fingerprint()
    answers(engine, job())
    assert engine.fingerprint() == before


def test_jobs_in_any_order_give_the_same_rollouts(engine):
    jobs = [job(0, MEMBERS[:2]), job(1, MEMBERS[2:4]), job(2, MEMBERS[4:])]
    straight = answers(engine, *jobs)
    assert answers(engine, *reversed(jobs)) == straight
    one_by_one = [answers(engine, one) for one in (jobs[1], jobs[2], jobs[0])]
    assert {key: r for part in one_by_one for key, r in part.items()} == straight


def test_an_update_moves_the_centre_the_same_way_everywhere(make):
    first, second = make(), make()
    base = first.load()
    second.load()
    list(second.evaluate([job()]))
    for engine in (first, second):
        engine.apply(UPDATE)
    assert first.fingerprint() == second.fingerprint()
    fresh = make()
    assert fresh.load() == base
    assert fresh.fingerprint() != first.fingerprint()
    assert answers(first, job()) == answers(second, job()) != answers(fresh, job())


def test_an_update_without_terms_changes_nothing(engine):
    before = engine.fingerprint()
    engine.apply(Update(0, ()))
    assert engine.fingerprint() == before


def test_a_snapshot_read_back_is_the_same_centre(make, tmp_path):
    first = make()
    base = first.load()
    first.apply(UPDATE)
    first.snapshot(tmp_path)
    second = make()
    assert second.load(tmp_path) == base
    assert second.fingerprint() == first.fingerprint()
    for engine in (first, second):
        engine.apply(Update(3, (Term(3, 1, 0.5),)))
    assert second.fingerprint() == first.fingerprint()
    assert answers(second, job()) == answers(first, job())


def test_loading_again_starts_from_the_base_model(engine, make):
    engine.apply(UPDATE)
    engine.load()
    fresh = make()
    fresh.load()
    assert engine.fingerprint() == fresh.fingerprint()


@pytest.mark.parametrize("content", [b"", b"x" * 100, None], ids=["empty", "garbage", "missing"])
def test_a_broken_snapshot_is_an_error_of_ours_and_the_engine_can_load_again(make, tmp_path, content):
    engine = make()
    info = engine.load()
    engine.snapshot(tmp_path)
    for file in tmp_path.iterdir():
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
    with pytest.raises(SeedtuneError, match="Delete the snapshot"):
        engine.load(tmp_path)
    assert engine.load() == info


def test_exporting_leaves_the_centre_as_it_is(engine, tmp_path):
    before = engine.fingerprint()
    engine.export(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert engine.fingerprint() == before


def test_times_are_counted_since_they_were_last_taken(engine):
    engine.take_times()
    found = answers(engine, job())
    times = engine.take_times()
    assert times.generated_tokens == sum(len(r.token_ids) for r in found.values())
    assert engine.take_times().generated_tokens == 0
