"""Reference answers under perturbed members: every engine, and exactness against materialised Hugging Face models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from models import ATOL, CHAT_TEMPLATE, Reference, forced_logits, job, load_engine, save_family
from seedtune.config.config import Config
from seedtune.engines.base import Engine
from seedtune.engines.toy.engine import ToyEngine
from seedtune.errors import DataError
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Job, Likelihood, Member, Prompt, Shift, Term, Update

MEMBERS = (Member(3, 0, 1), Member(3, 0, -1), UNPERTURBED, Member(2, 9, 1))
PROMPTS = (
    Prompt(0, "Hello there", answers=(" Bob", " Bobby", "y")),
    Prompt(1, "x", answers=tuple(f"{sign}0.{digit}" for sign in ("", "-") for digit in range(10))),
    Prompt(2, "Hello therein", answers=(" Bob", " Bob")),
)
"""Among the second one's answers are those that the toy engine may give."""
TERMS = (Term(1, 9, -0.2), Term(2, 0, 0.3))
Found = dict[tuple[Member, int, int], Likelihood]
GAUSSIAN = {"perturbation": "gaussian"}


def toy(**noise: Any) -> Callable[..., Engine]:
    def make(_: Any) -> Engine:
        engine = ToyEngine(Config(model="base", toy={"size": 6}), noise=Noise(7, **noise))
        engine.load()
        return engine

    return make


ENGINES: dict[str, Callable[..., Any]] = {
    "toy": toy(),
    "toy-gaussian": toy(perturbation="gaussian"),
    "llama": lambda folder: load_engine(folder("llama")),
    "llama-small-passes": lambda folder: load_engine(folder("llama"), rank=2, prefill_tokens=20, max_rows=2),
    "gpt2": lambda folder: load_engine(folder("gpt2"), rank=2),
    "gemma3": lambda folder: load_engine(folder("gemma3")),
    "mixtral": lambda folder: load_engine(folder("mixtral")),
    "flipout-llama": lambda folder: load_engine(folder("llama"), noise={"perturbation": "flipout"}, prefill_tokens=20),
    "gaussian-llama": lambda folder: load_engine(folder("llama"), noise=GAUSSIAN),
    "gaussian-gpt2": lambda folder: load_engine(folder("gpt2"), noise=GAUSSIAN),
}
MODELS = {"llama": "llama", "llama-small-passes": "llama", "gpt2": "gpt2", "gemma3": "gemma3", "mixtral": "mixtral"}
MODELS |= {"flipout-llama": "llama", "gaussian-llama": "llama", "gaussian-gpt2": "gpt2"}
"""Engines that run a language model, and its family."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: save_family(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="module")
def loaded(folder: Callable[[str], Path]) -> Callable[[str], Any]:
    """Engines by name, whose current weights no test changes."""
    return cache(lambda name: ENGINES[name](folder))


@pytest.fixture(scope="module")
def usual(loaded: Callable[[str], Any]) -> Callable[[str], Found]:
    """What each engine finds for the usual job, asked once."""
    return cache(lambda name: likelihoods(loaded(name), asked()))


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def engine(name: str, loaded: Callable[[str], Any]) -> Any:
    return loaded(name)


@pytest.fixture
def found(name: str, usual: Callable[[str], Found]) -> Found:
    return usual(name)


def asked(members: Any = MEMBERS, **more: Any) -> Job:
    return replace(job(PROMPTS, members=members), **more)


def likelihoods(engine: Engine, *jobs: Job) -> Found:
    listed = list(engine.likelihoods(jobs))
    found = {(one.member, one.prompt, one.answer): one for one in listed}
    assert len(found) == len(listed)
    return found


def assert_close(found: Found, expected: Found) -> None:
    """The same answers, and log-probabilities that differ by the order of sums at the most."""
    assert set(found) == set(expected)
    for place, one in found.items():
        assert replace(one, logprobs=()) == replace(expected[place], logprobs=())
        assert one.logprobs == pytest.approx(expected[place].logprobs, abs=ATOL / 10)


def test_every_member_is_asked_for_every_answer_once(found: Found) -> None:
    assert set(found) == {(m, p, a) for m in MEMBERS for p in range(3) for a in range(len(PROMPTS[p].answers))}
    assert all(len(one.logprobs) == len(one.token_ids) > 0 for one in found.values())
    assert all(number < 0.0 for one in found.values() for number in one.logprobs)
    assert all(one.prompt_tokens == len(PROMPTS[one.prompt].content) for one in found.values())


def test_equal_answers_are_equally_likely(found: Found) -> None:
    assert all(found[member, 2, 0].logprobs == found[member, 2, 1].logprobs for member in MEMBERS)


def test_a_member_alone_finds_what_it_finds_among_others(engine: Any, found: Found) -> None:
    for member in MEMBERS:
        alone = likelihoods(engine, asked((member,)))
        assert_close(alone, {place: found[place] for place in alone})


def test_rows_find_what_they_find_among_all(engine: Any, found: Found) -> None:
    some = likelihoods(engine, asked(rows=((0, 2), (3, 0))))
    assert {(member, prompt) for member, prompt, _ in some} == {(MEMBERS[0], 2), (MEMBERS[3], 0)}
    assert_close(some, {place: found[place] for place in some})


def test_twice_is_once_and_the_current_weights_stay_as_they_are(engine: Any, found: Found) -> None:
    before = engine.fingerprint()
    assert likelihoods(engine, asked()) == found
    assert engine.fingerprint() == before


def test_members_of_a_shifted_job_stand_where_an_update_would_take_them(
    name: str, engine: Any, found: Found, folder: Callable[[str], Path]
) -> None:
    moved = ENGINES[name](folder)
    moved.apply(Update(2, TERMS))
    shifted = likelihoods(engine, asked(shift=Shift(TERMS)))
    assert shifted == likelihoods(moved, asked())
    assert found != shifted


def test_the_current_model_finds_what_log_probabilities_of_token_ids_say(engine: Any) -> None:
    found = likelihoods(engine, asked((UNPERTURBED,)))
    ids = [found[UNPERTURBED, prompt, 0].token_ids for prompt in range(3)]
    expected = engine.logprobs(PROMPTS, ids)
    for prompt in range(3):
        assert found[UNPERTURBED, prompt, 0].logprobs == pytest.approx(expected[prompt], abs=ATOL / 10)


@pytest.mark.parametrize("answers", [(), ("a", "")])
def test_a_prompt_without_answers_or_with_an_empty_one_is_named(engine: Any, answers: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="prompt 7 has the answers"):
        likelihoods(engine, replace(asked(), prompts=(Prompt(7, "Hello", answers=answers),)))


@pytest.mark.parametrize("name", MODELS)
def test_every_member_is_the_materialised_model(
    name: str, engine: Any, found: Found, folder: Callable[[str], Path]
) -> None:
    """log softmax of plain Hugging Face with W + s·σ·E in its weights, float32, within ATOL."""
    reference = Reference(folder(MODELS[name]), engine.weights.tensors, engine.noise)
    for member in MEMBERS:
        alone = reference.set_member(member, 0.05)
        for prompt in PROMPTS:
            ids = list(engine.tokenizer.hf(prompt.content)["input_ids"])
            for number, answer in list(enumerate(prompt.answers))[:: 4 if prompt.id == 1 else 1]:
                tokens = list(engine.tokenizer.hf(answer, add_special_tokens=False)["input_ids"])
                logs = forced_logits(alone, ids, tokens).log_softmax(-1)
                expected = logs.gather(1, torch.tensor(tokens)[:, None])[:, 0]
                ours = torch.tensor(found[member, prompt.id, number].logprobs)
                torch.testing.assert_close(ours, expected, atol=ATOL, rtol=0)


def test_members_differ(engine: Any) -> None:
    found = likelihoods(engine, replace(asked(), sigma=0.5))
    mine = [tuple(found[member, 1, answer].logprobs for answer in range(20)) for member in MEMBERS]
    assert len(set(mine)) > 1


def test_chat_prompts_go_through_the_template(loaded: Callable[[str], Any]) -> None:
    engine = loaded("llama")
    assert engine.tokenizer.hf.chat_template == CHAT_TEMPLATE
    chat = Prompt(0, ({"role": "user", "content": "Hi"},), answers=(" yes",))
    plain = Prompt(0, "user: Hi\nassistant:", answers=(" yes",))
    assert likelihoods(engine, asked(prompts=(chat,))) == likelihoods(engine, asked(prompts=(plain,)))


def test_an_answer_that_does_not_fit_the_context_is_named(loaded: Callable[[str], Any]) -> None:
    engine = loaded("llama")
    prompt = Prompt(4, "a" * 60, answers=("b", "c" * 10))
    with pytest.raises(DataError, match="prompt 4 has 60 tokens; with an answer of 10"):
        likelihoods(engine, asked(prompts=(prompt,)))
