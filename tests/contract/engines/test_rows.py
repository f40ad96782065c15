"""Jobs in which members hold prompts of their own: a row gives what it gives alone, in every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models import ATOL, Reference, forced_logits, greedy, job, load_engine, recorded_logits, save_family, text_prompts
from seedtune.config.config import Config
from seedtune.engines.base import Engine
from seedtune.engines.toy.engine import ToyEngine
from seedtune.errors import DataError
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Job, Member, Prompt, Rollout, Shift, Term

MEMBERS = (Member(2, 0, 1), UNPERTURBED, Member(2, 5, 1), Member(1, 9, -1))
PROMPTS = text_prompts("Hello", "Hello there", "x", "Hello there, y", "Hello the")
ROWS = ((0, 1), (0, 3), (2, 0), (2, 4), (2, 3), (3, 2))
SHIFT = Shift((Term(1, 9, -0.02), Term(2, 0, 0.03)))
Found = dict[tuple[Member, int, int], Rollout]


def toy(**noise: Any) -> Callable[[Path], Engine]:
    def make(_: Path) -> Engine:
        engine = ToyEngine(Config(model="base", toy={"size": 6}), noise=Noise(7, **noise))
        engine.load()
        return engine

    return make


FLIPOUT = {"perturbation": "flipout", "shared_noise": 2}
ENGINES: dict[str, Callable[[Path], Any]] = {
    "toy": toy(),
    "toy-gaussian": toy(perturbation="gaussian"),
    "lowrank": load_engine,
    "lowrank-few-slots": lambda folder: load_engine(folder, rank=2, max_rows=2, prefill_tokens=4),
    "flipout": lambda folder: load_engine(folder, noise=FLIPOUT, max_rows=2, prefill_tokens=4),
    "gaussian": lambda folder: load_engine(folder, noise={"perturbation": "gaussian"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=ENGINES.values(), ids=ENGINES)
def engine(request: pytest.FixtureRequest, folder: Path) -> Any:
    return request.param(folder)


@pytest.fixture(scope="module", params=["lowrank", "lowrank-few-slots", "flipout", "gaussian"])
def model(request: pytest.FixtureRequest, folder: Path) -> Any:
    """The engines that run a language model."""
    return ENGINES[request.param](folder)


def rollouts(engine: Engine, work: Job) -> Found:
    listed = list(engine.evaluate([work]))
    found = {(r.member, r.prompt, r.sample): r for r in listed}
    assert len(found) == len(listed)
    return found


def some(rows: Any = ROWS, *, shift: Shift | None = None, **sampling: Any) -> Job:
    return replace(job(PROMPTS, members=MEMBERS, **sampling), rows=rows, shift=shift)


@pytest.mark.parametrize("shift", [None, SHIFT], ids=["unperturbed", "shifted"])
def test_rows_give_what_they_give_among_all(engine: Engine, shift: Shift | None) -> None:
    full, found = rollouts(engine, some(None, shift=shift)), rollouts(engine, some(shift=shift))
    assert set(found) == {(MEMBERS[member], prompt, 0) for member, prompt in ROWS}
    assert found == {place: full[place] for place in found}


def test_rows_give_what_the_member_gives_alone(engine: Engine) -> None:
    found = rollouts(engine, some())
    for member, prompt in ROWS:
        alone = rollouts(engine, job(PROMPTS[prompt : prompt + 1], members=MEMBERS[member : member + 1]))
        (only,) = alone.values()
        assert found[MEMBERS[member], prompt, 0] == replace(only, prompt=prompt)


def test_rows_in_any_order_give_the_same(engine: Engine) -> None:
    assert rollouts(engine, some(ROWS[::-1])) == rollouts(engine, some())


def test_every_row_gets_all_samples(engine: Engine) -> None:
    sampling = {"samples": 3, "temperature": 1.0}
    full, found = rollouts(engine, some(None, **sampling)), rollouts(engine, some(**sampling))
    assert set(found) == {(MEMBERS[m], p, s) for m, p in ROWS for s in range(3)}
    assert found == {place: full[place] for place in found}


def test_a_job_without_rows_gives_nothing_and_leaves_the_engine_as_it_was(engine: Engine) -> None:
    before = rollouts(engine, some())
    assert rollouts(engine, some(())) == {}
    assert rollouts(engine, some()) == before


def test_logits_of_rows_with_shared_beginnings_are_those_of_the_materialised_member(model: Any, folder: Path) -> None:
    with recorded_logits() as logits:
        found = rollouts(model, some())
    reference = Reference(folder, model.weights.tensors, model.noise)
    for position, prompt in ROWS:
        alone = reference.set_member(MEMBERS[position], 0.05)
        ids = list(model.tokenizer.hf(PROMPTS[prompt].content)["input_ids"])
        tokens = list(found[MEMBERS[position], prompt, 0].token_ids)
        ours = torch.stack(logits[position, prompt, 0])
        torch.testing.assert_close(ours, forced_logits(alone, ids, tokens), atol=ATOL, rtol=0)
        assert tokens == greedy(alone, ids, 8)


def test_a_sample_may_be_asked_for_by_its_number(model: Any) -> None:
    all_three = rollouts(model, some(temperature=1.0, samples=3))
    for sample in range(3):
        numbered = tuple(replace(prompt, sample=sample) for prompt in PROMPTS)
        found = rollouts(model, replace(some(temperature=1.0), prompts=numbered))
        texts = {(m, p): rollout.text for (m, p, _), rollout in found.items()}
        assert texts == {(m, p): all_three[m, p, sample].text for m, p in texts}


def test_every_turn_has_draws_of_its_own_that_are_equal_for_every_member(model: Any) -> None:
    def texts(turn: int) -> dict[tuple[Member, int], str]:
        prompts = tuple(replace(prompt, turn=turn) for prompt in PROMPTS)
        work = replace(some(None, temperature=1.0, sigma=0.0), prompts=prompts)
        return {(m, p): rollout.text for (m, p, _), rollout in rollouts(model, work).items()}

    first, second = texts(0), texts(1)
    assert first != second == texts(1)
    for of_turn in (first, second):
        assert all(text == of_turn[UNPERTURBED, prompt] for (_, prompt), text in of_turn.items())


def test_a_later_turn_writes_into_the_room_that_is_left_and_a_first_one_is_refused(model: Any) -> None:
    long = "a" * (model.tokenizer.context_length - 3)
    prompts = (Prompt(0, long, turn=2), Prompt(1, long + "bcd", turn=1), Prompt(2, long + "bcdef", turn=1))
    found = rollouts(model, job(prompts, ignore_eos=True))
    assert [len(found[UNPERTURBED, place, 0].token_ids) for place in range(3)] == [3, 0, 0]
    assert all(rollout.finish == "length" for rollout in found.values())
    assert [found[UNPERTURBED, place, 0].prompt_tokens for place in range(3)] == [len(p.content) for p in prompts]
    with pytest.raises(DataError, match="exceeds the model's context"):
        rollouts(model, job((replace(prompts[0], turn=0),)))
