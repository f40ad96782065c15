"""The vLLM engine against the transformers engine, in float32: the same members, completions and weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

pytest.importorskip("vllm", reason="needs vLLM", exc_type=ImportError)

from models import answers, job, load_engine, save_model, text_prompts
from seedtune.config.config import Config
from seedtune.engines.base import Engine
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.engines.vllm.engine import VllmEngine
from seedtune.errors import ConfigError, EngineError
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Decay, Likelihood, Member, Prompt, Shift, Term, Update
from serving import SERVED, end_all, longrope, save_served, serve

GAUSSIAN, LOWRANK = {"perturbation": "gaussian"}, {"perturbation": "lowrank"}
MODES = {"gaussian": GAUSSIAN, "lowrank": LOWRANK}
MEMBERS = (Member(1, 0, 1), Member(1, 0, -1), Member(1, 4, 1), UNPERTURBED)
PROMPTS = text_prompts("Hello there", "x", "The quick brown fox jumps", "1 + 1 =")
UPDATES = [
    Update(g, (Term(g, 0, 0.01 * g), Term(g, 4, -0.02), Term(0, 7, 0.01)), Decay(l2=0.1) if g == 3 else None)
    for g in range(1, 6)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    yield cache(lambda family: save_served(family, tmp_path_factory.mktemp(family)))
    end_all()


@pytest.fixture(params=MODES.values(), ids=MODES)
def noise(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


GIVEN = tuple(Prompt(i, text, answers=(" Bob", "y", "-0.25")) for i, text in enumerate(("Hello there", "x")))
LONGEST = Prompt(7, "a" * 60, answers=("b" * 4,))
"""As long as the context with its answer."""


def assert_as_likely(ours: Engine, theirs: Engine, *more: Prompt) -> dict[tuple[Member, int, int], Likelihood]:
    """What members of ours give to `GIVEN` answers, which is what they give in the other within 1e-4 in log p."""
    work = job((*GIVEN, *more), members=MEMBERS)
    found, expected = ({(x.member, x.prompt, x.answer): x for x in e.likelihoods([work])} for e in (ours, theirs))
    assert found.keys() == expected.keys()
    for place, one in found.items():
        assert replace(one, logprobs=()) == replace(expected[place], logprobs=())
        assert one.logprobs == pytest.approx(expected[place].logprobs, abs=1e-4)
    return found


# ------------------------------------------------------------------------------------------- members


ELSEWHERE = ("llama", "qwen2-untied")
"""Families that the tests below run: a tied head is no other in llama than in qwen2."""


@pytest.mark.parametrize(
    ("mode", "family"),
    [(m, f) for m in MODES for f in SERVED if f not in ELSEWHERE and (m, f) != ("lowrank", "qwen3")],
)
def test_members_write_what_they_write_in_transformers_before_and_after_five_generations(
    mode: str, family: str, folder: Callable[[str], Path]
) -> None:
    """Adapters are of linear layers, of which qwen3 has no others than gemma3."""
    noise = MODES[mode]
    ours, theirs = serve(folder(family), noise), load_engine(folder(family), noise=noise)
    work = job(PROMPTS, members=MEMBERS, max_tokens=10)
    assert answers(ours, work) == answers(theirs, work)
    before = assert_as_likely(ours, theirs)
    assert len({before[member, 0, 0].logprobs for member in MEMBERS}) == len(MEMBERS)
    assert ours.fingerprint() == theirs.fingerprint()
    for update in UPDATES:
        ours.apply(update)
        theirs.apply(update)
        assert ours.fingerprint() == theirs.fingerprint()
    assert answers(ours, work) == answers(theirs, work)
    after = assert_as_likely(ours, theirs)
    assert all(after[place].logprobs != before[place].logprobs for place in after)


@pytest.mark.parametrize("perturbation", MODES)
def test_a_checkpoint_in_many_files_of_another_precision_is_the_same_model(
    perturbation: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """16-bit shards of the one family that the test above leaves out, answered in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder("qwen2-untied"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder("qwen2-untied") / name, tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    noise, plain = MODES[perturbation], {"dtype": "float32"}
    ours, theirs = serve(tmp_path, noise, **plain), load_engine(tmp_path, noise=noise, **plain)
    work = job(PROMPTS, members=MEMBERS, max_tokens=10)
    assert answers(ours, work) == answers(theirs, work)
    assert_as_likely(ours, theirs)
    for engine in (ours, theirs):
        engine.apply(*UPDATES)
    assert ours.fingerprint() == theirs.fingerprint()
    assert answers(ours, work) == answers(theirs, work)
    assert_as_likely(ours, theirs)


def test_rows_of_longrope_are_turned_by_the_angles_of_their_own_length(tmp_path: Path) -> None:
    """vLLM would use those of long rows for all, if its limit allowed long rows."""
    save_model(longrope(40), tmp_path)
    with pytest.raises(ConfigError, match=r"vllm\.max_model_len=41: with more than the 40 tokens .* Use 40 or less"):
        VllmEngine(Config(model=str(tmp_path), vllm={"max_model_len": 41}), noise=Noise(7)).load()
    ours, theirs = serve(tmp_path, GAUSSIAN), load_engine(tmp_path, noise=GAUSSIAN)
    assert ours.tokenizer.context_length == theirs.tokenizer.context_length == 40
    work = job(PROMPTS, members=MEMBERS, max_tokens=10)
    assert answers(ours, work) == answers(theirs, work)


# ------------------------------------------------------------------------------------------- requests


@pytest.fixture(scope="module")
def pair(folder: Callable[[str], Path]) -> Callable[[str], tuple[VllmEngine, TransformersEngine]]:
    """(vLLM, transformers) of one model, for tests that do not change the current weights."""
    return cache(lambda mode: (serve(folder("llama"), MODES[mode]), load_engine(folder("llama"), noise=MODES[mode])))


@pytest.fixture(params=MODES)
def both(request: pytest.FixtureRequest, pair: Any) -> tuple[VllmEngine, TransformersEngine]:
    return pair(request.param)


ASKED = {
    "sampled": {"temperature": 0.8, "top_p": 0.9, "samples": 2, "seed": 3},
    "warm": {"temperature": 1.5, "ignore_eos": True},
    "stop-strings": {"stop": ("a", "7", "Q"), "max_tokens": 16},
    "stop-tokens": {"stop_token_ids": (40, 60, 80), "max_tokens": 16, "stop": ("<unk>", "7")},
    "stop-tokens-sampled": {"stop_token_ids": tuple(range(70, 99)), "temperature": 1.0, "ignore_eos": True},
    "stop-strings-sampled": {"stop": ("e",), "temperature": 1.0, "samples": 3, "ignore_eos": True},
    "to-the-end": {"ignore_eos": True, "max_tokens": 30},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_completions_stop_and_are_drawn_as_in_transformers(both: Any, asked: dict[str, Any]) -> None:
    found = answers(both[0], job(PROMPTS, members=MEMBERS, **asked))
    assert found == answers(both[1], job(PROMPTS, members=MEMBERS, **asked))
    assert {r.finish for r in found.values()} >= ({"stop"} if "stop" in str(asked) else {"length"})


def test_an_end_token_ends_a_completion_and_belongs_to_it(folder: Callable[[str], Path], pair: Any) -> None:
    ours, theirs = pair("gaussian")
    free = answers(theirs, job(PROMPTS[2:3], ignore_eos=True, max_tokens=20))[UNPERTURBED, 0, 0].token_ids
    last = next(token for token in free[3:] if token not in free[:3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "_base_model", replace(ours._base_model, eos=frozenset({last})))
        ended = answers(ours, job(PROMPTS[2:3], max_tokens=20))[UNPERTURBED, 0, 0]
    assert (ended.finish, ended.token_ids) == ("stop", free[: free.index(last) + 1])


def test_prompts_have_limits_of_their_own_and_rows_can_be_chosen(both: Any) -> None:
    limited = text_prompts(*(p.content for p in PROMPTS), limits=[1, 8, 3, None])
    work = replace(job(limited, members=MEMBERS, ignore_eos=True), rows=((0, 2), (3, 0), (1, 3), (1, 0)))
    assert answers(both[0], work) == answers(both[1], work)


def test_a_turn_without_room_writes_nothing(both: Any) -> None:
    prompts = (Prompt(0, "y" * 64, turn=1), Prompt(1, "z" * 60, turn=1))
    found = answers(both[0], job(prompts, ignore_eos=True))
    assert [len(found[UNPERTURBED, p, 0].token_ids) for p in range(2)] == [0, 4]
    assert found == answers(both[1], job(prompts, ignore_eos=True))


def test_jobs_of_one_wave_share_their_batches_and_answer_as_each_alone(both: Any) -> None:
    jobs = [replace(job(PROMPTS, members=MEMBERS[i:], max_tokens=5), id=i, sigma=0.05 * (i + 1)) for i in range(3)]
    together = {(r.job, r.member, r.prompt): r for r in both[0].evaluate(jobs)}
    alone = {(r.job, r.member, r.prompt): r for one in reversed(jobs) for r in both[1].evaluate([one])}
    assert together == alone


def test_members_that_exceed_the_slots_take_turns(folder: Callable[[str], Path], pair: Any) -> None:
    few = serve(folder("llama"), LOWRANK, max_loras=2)
    work = job(PROMPTS, members=[*MEMBERS, *(Member(9, pair, -1) for pair in range(5))], max_tokens=6)
    assert answers(few, work) == answers(pair("lowrank")[1], work)


def test_results_come_while_others_are_still_written(pair: Any) -> None:
    ours, _ = pair("lowrank")
    work = job(text_prompts("short", "long", limits=[2, 30]), members=MEMBERS, ignore_eos=True, max_tokens=30)
    order = [(rollout.prompt, rollout.member) for rollout in ours.evaluate([work])]
    assert [prompt for prompt, _ in order] == [0] * 4 + [1] * 4


def test_a_caller_that_stops_listening_leaves_nothing_behind(both: Any) -> None:
    work = job(PROMPTS, members=MEMBERS, ignore_eos=True, max_tokens=20)
    left = both[0].evaluate([work])
    next(left)
    assert answers(both[0], work) == answers(both[1], work)


@pytest.mark.parametrize("stop", [(), ("a",)], ids=["whole", "streamed"])
def test_a_completion_that_vllm_gives_up_is_an_error_not_a_missing_rollout(pair: Any, stop: tuple[str, ...]) -> None:
    ours, _ = pair("gaussian")
    outputs = ours._core.outputs

    def given_up(requests: Any) -> Iterator[tuple[int, Any]]:
        for key, output in outputs(requests):
            output.outputs[0].finish_reason = "abort"
            yield key, output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours._core, "outputs", given_up)
        with pytest.raises(EngineError, match=r"gave a completion up \(abort\)\. The ledger"):
            answers(ours, job(PROMPTS[:1], stop=stop))
    assert answers(ours, job(PROMPTS[:1], stop=stop)).keys() == {(UNPERTURBED, 0, 0)}


def test_another_member_can_be_asked_while_an_old_listener_is_forgotten(both: Any) -> None:
    work, other = (job(PROMPTS, members=members, ignore_eos=True, max_tokens=20) for members in (MEMBERS, MEMBERS[2:]))
    left = both[0].evaluate([work])
    next(left)
    going = both[0].evaluate([other])
    first = next(going)
    left.close()
    found = {(r.member, r.prompt, r.sample): r for r in [first, *going]}
    assert found == answers(both[1], other)


# ------------------------------------------------------------------------------------------- reference answers


def test_reference_answers_are_as_likely_as_in_transformers(both: Any) -> None:
    assert_as_likely(*both, LONGEST)


def test_log_probabilities_of_the_base_model_survive_an_update(folder: Callable[[str], Path], noise: Any) -> None:
    ours, theirs = serve(folder("llama"), noise), load_engine(folder("llama"), noise=noise)
    ids = [[40, 41, 42], [], [50]]
    first = ours.logprobs(PROMPTS[:3], ids)
    for engine in (ours, theirs):
        engine.apply(UPDATES[0])
    for base in (True, False, True):
        found, expected = ours.logprobs(PROMPTS[:3], ids, base=base), theirs.logprobs(PROMPTS[:3], ids, base=base)
        assert [len(numbers) for numbers in found] == [3, 0, 1]
        assert all(a == pytest.approx(b, abs=1e-4) for a, b in zip(found, expected, strict=True))
        assert (found == first) is base
    assert ours.fingerprint() == theirs.fingerprint()


# ------------------------------------------------------------------------------------------- the weights


@pytest.mark.no_cover
def test_a_hundred_evaluated_members_leave_the_current_weights_as_they_are(both: Any) -> None:
    ours, _ = both
    before = ours.fingerprint(), answers(ours, job(PROMPTS[:1]))
    members = tuple(Member(2, pair, sign) for pair in range(50) for sign in (1, -1))
    assert len(list(ours.evaluate([job(PROMPTS[:1], members=members, max_tokens=2)]))) == 100
    assert (ours.fingerprint(), answers(ours, job(PROMPTS[:1]))) == before


def test_shifted_members_stand_where_they_stand_in_transformers(both: Any) -> None:
    for shift in (Shift(UPDATES[0].terms), None, Shift(UPDATES[1].terms, 3.0), Shift(())):
        work = replace(job(PROMPTS, members=MEMBERS), shift=shift)
        assert answers(both[0], work) == answers(both[1], work)


def test_lengths_and_angles_of_updates_are_those_of_transformers(both: Any) -> None:
    one, other = UPDATES[0].terms, UPDATES[1].terms
    assert both[0].norm(one) == both[1].norm(one)
    assert both[0].cosine(one, other) == pytest.approx(both[1].cosine(one, other), abs=0.02)


PRECISIONS = {
    "weights_dtype-model": ({"weights_dtype": "model"}, "bfloat16"),
    "bfloat16": ({}, "bfloat16"),
    "rank3-subspaces-frozen": (
        {"rank": 3, "subspaces": 2, "trainable": ("*.mlp.*", "*_proj.weight", "!*.v_proj.*")},
        "float32",
    ),
}
CROSSED = [("lowrank", "weights_dtype-model"), ("lowrank", "bfloat16"), *((m, "rank3-subspaces-frozen") for m in MODES)]
"""`integration/engines/vllm/test_ranks` has gaussian with the model's precision."""


@pytest.mark.parametrize(("mode", "precision"), CROSSED)
def test_every_precision_and_selection_gives_the_weights_of_transformers(
    mode: str, precision: str, tmp_path: Path
) -> None:
    noise, (settings, dtype) = MODES[mode], PRECISIONS[precision]
    rank = settings.get("rank", 1) if noise is LOWRANK else 1
    noise = {**noise, **settings, "rank": rank}
    folder = save_served("qwen2", tmp_path / "model", dtype=getattr(torch, dtype))
    rest = {name: value for name, value in noise.items() if name != "rank"}
    ours, theirs = serve(folder, noise, dtype=dtype), load_engine(folder, rank=rank, noise=rest)
    for update in UPDATES:
        ours.apply(update)
        theirs.apply(update)
    assert ours.fingerprint() == theirs.fingerprint()
    if dtype == "float32":
        assert answers(ours, job(PROMPTS, members=MEMBERS)) == answers(theirs, job(PROMPTS, members=MEMBERS))
    theirs.snapshot(tmp_path)
    ours.load(tmp_path)
    assert ours.fingerprint() == theirs.fingerprint()
    ours.snapshot(tmp_path)
    theirs.load(tmp_path)
    assert ours.fingerprint() == theirs.fingerprint()
    ours._core.close()


def test_an_exported_model_answers_in_transformers_and_vllm_as_the_current_model_did(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    noise = LOWRANK
    ours = serve(folder("qwen3"), noise)
    ours.apply(*UPDATES)
    said = answers(ours, job(PROMPTS, max_tokens=12))
    ours.export(tmp_path)
    assert {*AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()} == {
        *AutoModelForCausalLM.from_pretrained(folder("qwen3")).state_dict()
    }
    again = serve(tmp_path, noise)
    for engine in (again, load_engine(tmp_path, noise=noise)):
        assert answers(engine, job(PROMPTS, max_tokens=12)) == said
    again._core.close()
