"""What the transformers engine promises beyond right logits: stops, draws, updates, files and errors."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from models import (
    CHAT_TEMPLATE,
    FAMILIES,
    Reference,
    answers,
    forced_logits,
    greedy,
    job,
    load_engine,
    numpy_weights,
    recorded_logits,
    save_family,
    text_prompts,
)
from seedtune.engines.transformers.decoding import sampling
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.errors import StorageError
from seedtune.numerics import noise
from seedtune.types import UNPERTURBED, Member, Prompt, Sampling, Term, Update

MEMBERS = (Member(1, 0, 1), Member(1, 0, -1), Member(1, 4, 1), UNPERTURBED)
PROMPTS = text_prompts("Hello there", "x", "The quick brown fox jumps", "1 + 1 =")
UPDATE = Update(1, (Term(1, 0, 0.02), Term(1, 4, -0.03), Term(0, 7, 0.01)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    """Shared by tests that do not change the current weights."""
    return load_engine(folder)


def _unperturbed_text(engine: TransformersEngine, prompt: Prompt, **sampling: Any) -> Any:
    return answers(engine, job([prompt], **sampling))[UNPERTURBED, 0, 0]


# --------------------------------------------------------------------------------------------- rows and stops


@pytest.mark.parametrize("max_rows", [256, 3, 1])
def test_rows_that_finish_early_leave_and_do_not_change_the_others(folder: Path, max_rows: int) -> None:
    engine = load_engine(folder, max_rows=max_rows)
    limits = [1, 8, 3, 5]
    short = text_prompts(*(p.content for p in PROMPTS), limits=limits)
    cut = answers(engine, job(short, members=MEMBERS))
    full = answers(engine, job(PROMPTS, members=MEMBERS, ignore_eos=True))
    for (member, prompt, sample), rollout in cut.items():
        expected = full[member, prompt, sample].token_ids[: limits[prompt]]
        assert rollout.token_ids == expected[: len(rollout.token_ids)]
        if rollout.finish == "length":
            assert len(rollout.token_ids) == limits[prompt]


def test_rollouts_do_not_depend_on_who_else_is_in_the_batch(engine: TransformersEngine) -> None:
    together = answers(engine, job(PROMPTS, members=MEMBERS))
    for member in MEMBERS:
        alone = answers(engine, job(PROMPTS, members=[member]))
        assert all(together[key].token_ids == rollout.token_ids for key, rollout in alone.items())


def test_a_stop_token_ends_the_completion_and_is_not_part_of_its_text(engine: TransformersEngine) -> None:
    free = _unperturbed_text(engine, PROMPTS[0], ignore_eos=True)
    token = free.token_ids[3]
    first = free.token_ids.index(token)
    stopped = _unperturbed_text(engine, PROMPTS[0], stop_token_ids=(token,), ignore_eos=True)
    assert (stopped.finish, stopped.token_ids) == ("stop", free.token_ids[: first + 1])
    assert stopped.text == engine.tokenizer.decode(list(free.token_ids[:first]))


def test_a_stop_string_ends_the_completion_and_is_not_part_of_it(engine: TransformersEngine) -> None:
    free = _unperturbed_text(engine, PROMPTS[0], ignore_eos=True)
    stop = free.text[3:5]
    stopped = _unperturbed_text(engine, PROMPTS[0], stop=("never there", stop), ignore_eos=True)
    assert stopped.finish == "stop"
    assert stopped.text == free.text.split(stop)[0]
    assert stopped.token_ids == free.token_ids[: len(stopped.text) + len(stop)]


def test_an_end_token_of_the_generation_config_ends_the_completion(tmp_path: Path) -> None:
    folder = save_family("llama", tmp_path)
    free = _unperturbed_text(load_engine(folder), PROMPTS[0], ignore_eos=True)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [free.token_ids[3], 2]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    engine = load_engine(folder)
    ended = _unperturbed_text(engine, PROMPTS[0])
    first = free.token_ids.index(free.token_ids[3]) + 1
    assert (ended.finish, ended.token_ids) == ("stop", free.token_ids[:first])
    assert list(ended.token_ids) == greedy(Reference(folder, [], engine.noise).model, _ids(engine, 0), 8)
    ignored = _unperturbed_text(engine, PROMPTS[0], ignore_eos=True)
    assert (ignored.finish, ignored.token_ids) == ("length", free.token_ids)


def test_chat_messages_go_through_the_models_own_template(engine: TransformersEngine) -> None:
    chat = Prompt(0, ({"role": "user", "content": "Hi"},))
    plain = Prompt(0, "user: Hi\nassistant:")
    assert _unperturbed_text(engine, chat).token_ids == _unperturbed_text(engine, plain).token_ids
    bare = Prompt(0, chat.content, template_kwargs={"add_generation_prompt": False})
    assert _unperturbed_text(engine, bare).prompt_tokens < _unperturbed_text(engine, chat).prompt_tokens


@pytest.mark.parametrize("family", ["llama", "llama-head8"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_member_whose_weights_overflow_spoils_no_other(family: str, temperature: float, tmp_path: Path) -> None:
    engine = load_engine(save_family(family, tmp_path), max_rows=2, prefill_tokens=1)
    sampling = {"temperature": temperature, "ignore_eos": True}
    with recorded_logits() as logits:
        found = answers(engine, job(PROMPTS[1:3], members=[MEMBERS[0], UNPERTURBED], sigma=1e37, **sampling))
    assert torch.stack(logits[0, 0, 0]).isnan().any()
    alone = answers(load_engine(tmp_path), job(PROMPTS[1:3], **sampling))
    assert all(found[key].token_ids == rollout.token_ids for key, rollout in alone.items())


def _ids(engine: TransformersEngine, prompt: int) -> list[int]:
    return list(engine.tokenizer.hf(PROMPTS[prompt].content)["input_ids"])


# --------------------------------------------------------------------------------------------------- sampling


def test_every_member_gets_the_same_draws(engine: TransformersEngine) -> None:
    sampling = {"temperature": 1.0, "samples": 3}
    same = answers(engine, job(PROMPTS, members=MEMBERS, sigma=0.0, **sampling))
    for (_, prompt, sample), rollout in same.items():
        assert rollout.token_ids == same[UNPERTURBED, prompt, sample].token_ids
    for prompt in range(len(PROMPTS)):
        assert len({same[UNPERTURBED, prompt, sample].token_ids for sample in range(3)}) > 1


def test_draws_are_reproducible_and_change_with_seed_and_generation(engine: TransformersEngine) -> None:
    def texts(**address: int) -> list[str]:
        found = answers(engine, job(PROMPTS, temperature=1.0, **address))
        return [found[UNPERTURBED, prompt, 0].text for prompt in range(len(PROMPTS))]

    assert texts() == texts()
    assert texts() != texts(seed=1)
    assert texts() != texts(generation=1)


def test_equal_prompts_with_different_ids_get_different_draws(engine: TransformersEngine) -> None:
    twins = (Prompt(3, "Hello"), Prompt(4, "Hello"), Prompt(3, "Hello"))
    found = answers(engine, job(twins, temperature=1.0))
    first, second, third = (found[UNPERTURBED, position, 0].token_ids for position in range(3))
    assert first == third != second


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.6)])
def test_sampling_follows_the_tempered_and_truncated_distribution(
    engine: TransformersEngine, temperature: float, top_p: float
) -> None:
    count = 3000
    work = job(PROMPTS[:1], max_tokens=1, samples=count, temperature=temperature, top_p=top_p)
    with recorded_logits() as logits:
        drawn = Counter(rollout.token_ids[0] for rollout in answers(engine, work).values())
    mass, order = (logits[0, 0, 0][0].double() / temperature).softmax(-1).sort(descending=True)
    kept = mass.cumsum(0) - mass < top_p
    mass = mass[kept] / mass[kept].sum()
    assert set(drawn) <= set(order[kept].tolist())
    seen = torch.tensor([drawn[token] / count for token in order[kept].tolist()], dtype=torch.float64)
    expected_distance = float((mass * (1 - mass) / count).sqrt().sum()) * 0.4  # mean of Σ|seen − mass|/2
    assert float((seen - mass).abs().sum()) / 2 < 1.5 * expected_distance


def test_choosing_from_bad_logits_gives_a_token_of_the_vocabulary() -> None:
    logits = torch.full((2, 5), torch.nan)
    for temperature in (0.0, 1.0):
        tokens = sampling.choose(logits, Sampling(1, temperature=temperature), torch.tensor([0.0, 0.9])).tolist()
        assert all(0 <= token < 5 for token in tokens)


# ------------------------------------------------------------------------------------ evaluating and updating


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_evaluating_a_job_twice_gives_the_same_rollouts_in_the_same_order(
    folder: Path, temperature: float, dtype: str
) -> None:
    engine = load_engine(folder, dtype=dtype, max_rows=5)
    work = job(PROMPTS, members=MEMBERS, temperature=temperature, samples=2)
    first = list(engine.evaluate([work]))
    list(engine.evaluate([job(PROMPTS, members=[Member(9, 9, 1)], sigma=0.5)]))
    assert list(engine.evaluate([work])) == first


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("family", ["llama-untied", "gpt2"])
def test_an_update_has_the_bits_of_the_numpy_reference(family: str, rank: int, tmp_path: Path) -> None:
    engine = load_engine(save_family(family, tmp_path), rank=rank)
    expected = {name: _updated(array, name, rank) for name, array in numpy_weights(engine).items()}
    before = engine.fingerprint()
    engine.apply(UPDATE)
    assert engine.fingerprint() != before
    for name, array in numpy_weights(engine).items():
        assert np.array_equal(array.view(np.uint32), expected[name].view(np.uint32)), name


def _updated(theta: np.ndarray, name: str, rank: int) -> np.ndarray:
    """θ + Σₚ Σₖ (wₚ aₚᵢₖ) bₚⱼₖ in float32, every product and every sum rounded, in that order."""
    total = np.zeros_like(theta)
    for term in UPDATE.terms:
        address = noise.Address(noise.key(7, name), generation=term.generation, pair=term.pair)
        a, b = noise.factors(address, theta.shape, rank=rank)
        weight = np.float32(term.weight / np.sqrt(rank))
        for k in range(rank):
            total += (weight * a[:, k])[:, None] * b[:, k][None, :]
    return theta + total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_next_evaluation_uses_the_updated_weights(folder: Path, tmp_path: Path, dtype: str) -> None:
    engine, work = load_engine(folder, dtype=dtype), job(PROMPTS, members=MEMBERS)
    before = answers(engine, work)
    engine.apply(UPDATE)
    after = answers(engine, work)
    assert after != before
    engine.snapshot(tmp_path)
    again = load_engine(folder, dtype=dtype)
    again.load(tmp_path)
    assert answers(again, work) == after


def test_an_update_without_terms_changes_nothing(folder: Path) -> None:
    engine = load_engine(folder)
    before = engine.fingerprint()
    engine.apply(Update(3, ()))
    assert engine.fingerprint() == before


# ---------------------------------------------------------------------------------------- snapshots and files


def test_a_snapshot_restores_the_fingerprint_and_the_answers(folder: Path, tmp_path: Path) -> None:
    engine = load_engine(folder)
    engine.apply(UPDATE)
    engine.snapshot(tmp_path)
    again = load_engine(folder)
    assert again.fingerprint() != engine.fingerprint()
    info = again.load(tmp_path)
    assert again.fingerprint() == engine.fingerprint()
    assert info.base_fingerprint == engine.load().base_fingerprint
    work = job(PROMPTS, members=MEMBERS)
    engine.weights.restore(tmp_path)
    engine.perturbation.sync()
    assert answers(again, work) == answers(engine, work)


def test_a_snapshot_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    load_engine(save_family("llama-untied", tmp_path / "other")).snapshot(tmp_path)
    with pytest.raises(StorageError, match="does not hold this model's tensors"):
        load_engine(folder).load(tmp_path)


@pytest.mark.parametrize("family", ["llama", "llama-untied", "gpt2", "mixtral"])
@pytest.mark.parametrize("checkpoint", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_an_export_is_the_rounded_weights_under_hugging_face_names(
    family: str, checkpoint: torch.dtype, tmp_path: Path
) -> None:
    base = save_family(family, tmp_path / "base", dtype=checkpoint)
    engine = load_engine(base, dtype="float32")
    engine.apply(UPDATE)
    engine.export(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    original = dict(AutoModelForCausalLM.from_pretrained(base, dtype="auto").named_parameters())
    assert _stored_names(tmp_path / "out") == _stored_names(base)
    weights = numpy_weights(engine)
    for name, parameter in model.named_parameters():
        tensor = weights.get(name)
        expected = original[name] if tensor is None else torch.from_numpy(tensor).to(checkpoint)
        assert parameter.dtype == checkpoint
        assert torch.equal(parameter, expected), name


def _stored_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_an_exported_model_gives_the_engines_greedy_answers(folder: Path, tmp_path: Path) -> None:
    engine = load_engine(folder)
    before = answers(engine, job(PROMPTS))
    engine.apply(UPDATE)
    engine.export(tmp_path)
    found = answers(engine, job(PROMPTS))
    assert found != before
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    for prompt in PROMPTS:
        ids = list(tokenizer(prompt.content)["input_ids"])
        assert list(found[UNPERTURBED, prompt.id, 0].token_ids) == greedy(model, ids, 8)
    assert load_engine(tmp_path).fingerprint() == engine.fingerprint()


# --------------------------------------------------------------------------------------------------- coverage


def test_coverage_counts_linear_weights_over_all_parameters(engine: TransformersEngine) -> None:
    hidden, inner, query, kv, vocabulary = 32, 48, 64, 32, FAMILIES["llama"]().vocab_size
    linear = 2 * (2 * hidden * query + 2 * hidden * kv + 3 * hidden * inner)
    rest = vocabulary * hidden + (2 * 2 + 1) * hidden
    coverage = engine.perturbation.coverage
    assert (coverage.perturbed, coverage.total) == (linear, linear + rest)
    assert coverage.fraction == linear / (linear + rest)


def test_coverage_names_what_is_left_as_it_is_and_why(engine: TransformersEngine, tmp_path: Path) -> None:
    listed = dict(engine.perturbation.coverage.unperturbed)
    assert listed == {
        "lm_head.weight": "output head tied to the input embeddings",
        "model.embed_tokens.weight": "embedding",
        "model.layers.*.input_layernorm.weight": "bias or norm (one-dimensional)",
        "model.layers.*.post_attention_layernorm.weight": "bias or norm (one-dimensional)",
        "model.norm.weight": "bias or norm (one-dimensional)",
    }
    untied = load_engine(save_family("llama-untied", tmp_path))
    assert "lm_head.weight" not in dict(untied.perturbation.coverage.unperturbed)
    assert "lm_head.weight" in untied.weights.tensors


# -------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("family", ["llama", "llama-head8", "llama-untied", "qwen2", "gpt2", "gemma3"])
def test_bfloat16_logits_are_near_float32(family: str, tmp_path: Path) -> None:
    """Within a tenth of the logits' standard deviation, at every step of every member."""
    engine = load_engine(save_family(family, tmp_path), dtype="bfloat16", rank=2)
    with recorded_logits() as logits:
        found = answers(engine, job(PROMPTS, members=MEMBERS, sigma=0.02))
    reference = Reference(tmp_path, engine.weights.tensors, engine.noise)
    for position, member in enumerate(MEMBERS):
        alone = reference.set_member(member, 0.02)
        for prompt in PROMPTS:
            exact = forced_logits(alone, _ids(engine, prompt.id), found[member, prompt.id, 0].token_ids)
            ours = torch.stack(logits[position, prompt.id, 0])
            assert (ours - exact).square().mean().sqrt() < 0.1 * exact.std()


def test_rotary_frequencies_stay_exact_in_bfloat16(folder: Path) -> None:
    exact = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq
    live = load_engine(folder, dtype="bfloat16").model.model.rotary_emb.inv_freq
    assert torch.equal(live.cpu(), exact)


@pytest.mark.parametrize("family", ["llama", "llama-head8"])
def test_the_precision_of_the_checkpoint_does_not_leak_into_a_small_first_job(family: str, tmp_path: Path) -> None:
    engine = load_engine(save_family(family, tmp_path, dtype=torch.bfloat16), dtype="float32")
    with recorded_logits() as logits:
        tokens = _unperturbed_text(engine, PROMPTS[1]).token_ids
    exact = forced_logits(Reference(tmp_path, [], engine.noise).model, _ids(engine, 1), tokens)
    torch.testing.assert_close(torch.stack(logits[0, 0, 0]), exact, atol=1e-4, rtol=0)
