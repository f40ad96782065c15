"""What every engine promises: a row in ENGINES is tested against the whole contract."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from seedtune.engines.base import Engine, Noise
from seedtune.engines.toy import ToyEngine
from seedtune.errors import SeedtuneError
from seedtune.settings import ToySettings
from seedtune.types import CENTRE, Decay, Job, Member, Prompt, Rollout, Sampling, Term, Update


def toy(dtype: str = "float32", **noise) -> Callable[[], Engine]:
    return lambda: ToyEngine("base", noise=Noise(7, **noise), settings=ToySettings(size=6, dtype=dtype))


ENGINES: dict[str, Callable[[], Engine]] = {
    "toy": toy(),
    "toy-rank3": toy(rank=3),
    "toy-rank3-bfloat16": toy("bfloat16", rank=3),
    "toy-lowrank-none-bfloat16": toy("bfloat16", master="none"),
    "toy-lowrank-none-float16": toy("float16", master="none"),
    "toy-gaussian": toy(perturbation="gaussian"),
    "toy-gaussian-bfloat16": toy("bfloat16", perturbation="gaussian"),
    "toy-gaussian-float16": toy("float16", perturbation="gaussian"),
    "toy-gaussian-none": toy(perturbation="gaussian", master="none"),
    "toy-gaussian-none-bfloat16": toy("bfloat16", perturbation="gaussian", master="none"),
    "toy-gaussian-none-float16": toy("float16", perturbation="gaussian", master="none"),
    "toy-subspaces": toy(rank=2, subspaces=3),
    "toy-gaussian-subspaces": toy("bfloat16", perturbation="gaussian", subspaces=4),
    "toy-frozen": toy(perturbation="gaussian", trainable=("*.weight", "layers.1.*"), freeze=("layers.0.weight",)),
}
"""One maker per engine: two calls give engines of the same base model and run seed, not yet loaded."""

MEMBERS = (Member(2, 0, 1), Member(2, 0, -1), CENTRE, Member(2, 5, 1), Member(1, 9, -1))
DECAY = Decay(l2=0.1, l1=0.001)
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


def test_a_thousand_evaluations_of_random_members_leave_the_centre_as_it_is(engine):
    before = engine.fingerprint()
    rng = np.random.default_rng(0)
    numbers = zip(*(rng.integers(0, limit, 1000).tolist() for limit in (2**32, 2**32, 2)), strict=True)
    members = [Member(generation, pair, 1 if sign else -1) for generation, pair, sign in numbers]
    prompt = PROMPTS[:1]
    jobs = [Job(i, 0.5, tuple(members[i : i + 50]), prompt, Sampling(max_tokens=8)) for i in range(0, 1000, 50)]
    assert len(list(engine.evaluate(jobs))) == 1000
    assert engine.fingerprint() == before


def test_a_member_answers_alike_whoever_was_evaluated_before(engine):
    alone = answers(engine, job(members=MEMBERS[:1]))
    answers(engine, job(members=[Member(3, pair, -1) for pair in range(20)], sigma=5.0))
    assert answers(engine, job(members=MEMBERS[:1])) == alone


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


def test_updates_together_give_the_bits_they_give_in_turn(make):
    together, in_turn = make(), make()
    updates = [UPDATE, Update(3, ()), Update(4, (Term(4, 1, 0.5), Term(4, 2, -0.01)), DECAY), Update(5, (), DECAY)]
    for engine in (together, in_turn):
        engine.load()
    together.apply(*updates)
    for update in updates:
        in_turn.apply(update)
    assert together.fingerprint() == in_turn.fingerprint()


def test_a_whole_decay_goes_back_to_the_base_model(make):
    engine, fresh = make(), make()
    engine.load()
    fresh.load()
    engine.apply(UPDATE)
    engine.apply(Update(3, (), Decay(l2=1.0)))
    assert engine.fingerprint() == fresh.fingerprint()


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
