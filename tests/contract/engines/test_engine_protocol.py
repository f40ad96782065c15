"""What every engine promises: a row in ENGINES is tested against the whole contract."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest

from seedtune.config.config import Config
from seedtune.engines.base import Engine
from seedtune.engines.toy.engine import ToyEngine
from seedtune.errors import SeedtuneError
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Decay, Job, Member, Prompt, Rollout, Sampling, Shift, Term, Update


def toy(dtype: str = "float32", **noise) -> Callable[[], Engine]:
    return lambda: ToyEngine(Config(model="base", dtype=dtype, toy={"size": 6}), noise=Noise(7, **noise))


ENGINES: dict[str, Callable[[], Engine]] = {
    "toy": toy(),
    "toy-rank3-bfloat16": toy("bfloat16", rank=3),
    "toy-subspaces-model-float16": toy("float16", rank=2, subspaces=3, weights_dtype="model"),
    "toy-gaussian-float16": toy("float16", perturbation="gaussian"),
    "toy-gaussian-model-bfloat16": toy("bfloat16", perturbation="gaussian", weights_dtype="model"),
    "toy-gaussian-subspaces": toy(perturbation="gaussian", subspaces=4),
    "toy-flipout-model-bfloat16": toy("bfloat16", perturbation="flipout", shared_noise=2, weights_dtype="model"),
    "toy-gaussian-frozen-model": toy(
        perturbation="gaussian",
        weights_dtype="model",
        trainable=("*.weight", "layers.1.*", "!layers.0.weight"),
    ),
}
"""One maker per engine: two calls give engines of the same base model and run seed, not yet loaded.

Each of two among perturbation, type, weights_dtype and subspaces meets each of the other in a toy engine.
"""

if importlib.util.find_spec("ray") is not None:
    import ray_workers

    ENGINES |= {"ray": ray_workers.maker(), "ray-gaussian": ray_workers.maker(perturbation="gaussian", subspaces=2)}

if importlib.util.find_spec("vllm") is not None:
    from serving import maker

    ENGINES |= {"vllm-gaussian": maker(perturbation="gaussian"), "vllm-lowrank": maker(perturbation="lowrank")}

MEMBERS = (Member(2, 0, 1), Member(2, 0, -1), UNPERTURBED, Member(2, 5, 1), Member(1, 9, -1))
DECAY = Decay(l2=0.1, l1=0.001)
PROMPTS = tuple(Prompt(index, f"Question {index}") for index in range(3))
UPDATE = Update(2, (Term(1, 9, -0.02), Term(2, 0, 0.03), Term(2, 5, 0.01)))
SHIFT = Shift(UPDATE.terms)


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def make(request) -> Callable[[], Engine]:
    return request.param


@pytest.fixture(scope="module", autouse=True)
def _vllm_ends():
    yield
    if "vllm-gaussian" in ENGINES:
        from serving import end_all

        end_all()


@pytest.fixture
def engine(make):
    made = make()
    made.load()
    yield made
    made.close()


def job(number: int = 0, members=MEMBERS, *, sigma: float = 0.05, samples: int = 1, shift: Shift | None = None) -> Job:
    return Job(number, sigma, tuple(members), PROMPTS, Sampling(max_tokens=8, samples=samples), shift)


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


def test_the_length_of_a_prompt_is_known_before_loading(make, engine):
    rollouts = answers(engine, job(members=(UNPERTURBED,)))
    own = make().tokenizer
    assert own.lengths(PROMPTS) == [rollouts[0, UNPERTURBED, p, 0].prompt_tokens for p in range(len(PROMPTS))]
    assert own.context_length == engine.tokenizer.context_length


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


def test_the_unperturbed_model_is_the_member_without_noise(engine):
    unperturbed = answers(engine, job(members=(UNPERTURBED,)))
    without_sigma = answers(engine, job(members=(UNPERTURBED,), sigma=0.0))
    assert unperturbed == without_sigma


def test_evaluating_leaves_the_current_weights_as_they_are(engine):
    before = engine.fingerprint()
    answers(engine, job())
    assert engine.fingerprint() == before


@pytest.mark.no_cover
def test_a_thousand_evaluations_of_random_members_leave_the_current_weights_as_they_are(request, engine):
    """A hundred on vLLM, which writes a member's weights for each."""
    before, count = engine.fingerprint(), 100 if "vllm" in request.node.callspec.id else 1000
    rng = np.random.default_rng(0)
    numbers = zip(*(rng.integers(0, limit, count).tolist() for limit in (2**32, 2**32, 2)), strict=True)
    members = [Member(generation, pair, 1 if sign else -1) for generation, pair, sign in numbers]
    prompt = PROMPTS[:1]
    jobs = [Job(i, 0.5, tuple(members[i : i + 50]), prompt, Sampling(max_tokens=1)) for i in range(0, count, 50)]
    assert len(list(engine.evaluate(jobs))) == count
    assert engine.fingerprint() == before


def test_a_member_answers_alike_whichever_members_were_evaluated_before(engine):
    alone = answers(engine, job(members=MEMBERS[:1]))
    answers(engine, job(members=[Member(3, pair, -1) for pair in range(20)], sigma=5.0))
    assert answers(engine, job(members=MEMBERS[:1])) == alone


def test_jobs_in_any_order_give_the_same_rollouts(engine):
    jobs = [job(0, MEMBERS[:2]), job(1, MEMBERS[2:4]), job(2, MEMBERS[4:])]
    straight = answers(engine, *jobs)
    assert answers(engine, *reversed(jobs)) == straight
    one_by_one = [answers(engine, one) for one in (jobs[1], jobs[2], jobs[0])]
    assert {key: r for part in one_by_one for key, r in part.items()} == straight


def test_an_update_moves_the_current_weights_the_same_way_everywhere(make):
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


def test_a_snapshot_read_back_has_the_same_weights(make, tmp_path):
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


def test_members_of_a_shifted_job_stand_where_an_update_would_take_them(make):
    shifted, moved = make(), make()
    for engine in (shifted, moved):
        engine.load()
        engine.apply(Update(1, (Term(1, 3, 0.1),)))
    moved.apply(UPDATE)
    assert answers(shifted, job(shift=SHIFT)) == answers(moved, job())


def test_a_shift_leaves_the_current_weights_and_later_jobs_as_they_are(engine):
    before, fingerprint = answers(engine, job()), engine.fingerprint()
    shifted = answers(engine, job(shift=SHIFT))
    assert engine.fingerprint() == fingerprint
    assert answers(engine, job()) == before
    assert all(shifted[0, member, 0, 0] != before[0, member, 0, 0] for member in MEMBERS)


def test_shifted_and_plain_jobs_in_any_order_give_the_same_rollouts(engine):
    other, some = Shift((Term(7, 1, -0.2),)), MEMBERS[:3]
    shifts = (None, SHIFT, other, None, SHIFT)
    jobs = [job(number, some, shift=shift) for number, shift in enumerate(shifts)]
    together = answers(engine, *jobs)
    one_by_one = [answers(engine, one) for one in reversed(jobs)]
    assert {key: r for part in one_by_one for key, r in part.items()} == together


def test_a_shift_is_from_where_the_weights_are_now(make):
    engine, fresh = make(), make()
    engine.load()
    fresh.load()
    before = answers(engine, job(shift=SHIFT))
    for one in (engine, fresh):
        one.apply(Update(3, tuple(Term(3, pair, 0.5) for pair in range(4))))
    after = answers(engine, job(shift=SHIFT))
    assert after == answers(fresh, job(shift=SHIFT)) != before


def test_a_shift_without_terms_is_none(engine):
    assert answers(engine, job(shift=Shift(()))) == answers(engine, job())


def test_the_length_of_a_shift_scales_its_terms(engine):
    length = engine.norm(SHIFT.terms)
    scaled = Shift(tuple(term._replace(weight=4.0 * term.weight) for term in SHIFT.terms), length)
    longer = Shift(SHIFT.terms, 2.0 * length)
    assert answers(engine, job(shift=scaled)) == answers(engine, job(shift=SHIFT))
    assert answers(engine, job(shift=longer)) != answers(engine, job(shift=SHIFT))


def test_a_shift_of_no_weight_stays_at_the_current_weights_whatever_its_length(engine):
    nowhere = Shift((Term(2, 0, 0.0), Term(2, 1, 0.0)), 3.0)
    assert answers(engine, job(shift=nowhere)) == answers(engine, job())


def test_the_drift_is_the_way_from_the_base_model(engine):
    assert engine.drift() == 0.0
    engine.apply(Update(1, (Term(1, 3, 1.0),)))
    there = engine.drift()
    assert there == pytest.approx(engine.norm((Term(1, 3, 1.0),)), rel=0.01)
    engine.apply(Update(2, (), Decay(l2=0.5)))
    assert engine.drift() == pytest.approx(0.5 * there, rel=0.01)
    engine.apply(Update(3, (), Decay(l2=1.0)))
    assert engine.drift() == 0.0


def test_the_norm_of_terms_grows_with_their_weights_and_is_none_for_none(engine):
    once, twice = (engine.norm(tuple(t._replace(weight=f * t.weight) for t in UPDATE.terms)) for f in (1, -2))
    assert twice == 2 * once > 0
    assert engine.norm(()) == 0.0


def test_updates_have_the_cosine_of_their_directions(engine):
    ahead, back = (tuple(t._replace(weight=f * t.weight) for t in UPDATE.terms) for f in (3, -0.5))
    assert engine.cosine(UPDATE.terms, ahead) == pytest.approx(1.0)
    assert engine.cosine(back, UPDATE.terms) == pytest.approx(-1.0)
    other = (Term(5, 0, 0.1), Term(2, 5, 0.01))
    assert abs(engine.cosine(UPDATE.terms, other)) < 0.9
    assert engine.cosine(UPDATE.terms, other) == engine.cosine(other, UPDATE.terms)
    assert engine.cosine(UPDATE.terms, ()) == 0.0


def test_measuring_leaves_the_current_weights_as_they_are(engine):
    engine.apply(UPDATE)
    before = engine.fingerprint()
    engine.norm(UPDATE.terms), engine.drift(), engine.cosine(UPDATE.terms, SHIFT.terms)
    assert engine.fingerprint() == before


def test_every_token_of_a_completion_has_a_log_probability(engine):
    own = [answers(engine, job(members=(UNPERTURBED,)))[0, UNPERTURBED, p, 0].token_ids for p in range(len(PROMPTS))]
    found = engine.logprobs(PROMPTS, own)
    assert [len(numbers) for numbers in found] == [len(ids) for ids in own]
    assert all(number < 0.0 for numbers in found for number in numbers)
    strange = [tuple(token + 1 for token in ids) for ids in own]
    assert sum(map(sum, engine.logprobs(PROMPTS, strange))) < sum(map(sum, found))
    assert engine.logprobs(PROMPTS[:1], [own[0]]) == found[:1]
    assert engine.logprobs(PROMPTS[:1], [()]) == [[]]
    assert engine.logprobs((), ()) == []


def test_log_probabilities_by_the_base_model_are_those_of_an_engine_that_was_not_moved(make):
    engine, fresh = make(), make()
    engine.load()
    fresh.load()
    said = answers(fresh, job(members=(UNPERTURBED,)))
    ids = [said[0, UNPERTURBED, prompt, 0].token_ids for prompt in range(2)]
    engine.apply(Update(1, (Term(1, 3, 0.5),)))
    before, fingerprint, own = answers(engine, job()), engine.fingerprint(), engine.logprobs(PROMPTS[:2], ids)
    assert engine.logprobs(PROMPTS[:2], ids, base=True) == fresh.logprobs(PROMPTS[:2], ids) != own
    assert answers(engine, job()) == before
    assert engine.logprobs(PROMPTS[:2], ids) == own
    assert engine.fingerprint() == fingerprint


def test_exporting_leaves_the_current_weights_as_they_are(engine, tmp_path):
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
