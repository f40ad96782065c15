"""Tiny random models for tests, as folders, and the plain Hugging Face truth about one member."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from seedtune.config.config import Config
from seedtune.engines.transformers.decoding.decoder import Decoder, DecodeSequence
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.engines.transformers.members.weight_format import as_tensor, as_weights
from seedtune.numerics import noise
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Job, Member, Prompt, Rollout, Sampling

DEVICE = os.environ.get("SEEDTUNE_TEST_DEVICE", "cpu")
"""Where tests run the transformers engine, unless they are about one device."""
on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="about code that only runs on the CPU")
ATOL = 1e-4 if DEVICE == "cpu" else 1e-3
"""How far float32 logits may be from plain Hugging Face on the CPU."""

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = tuple(chr(code) for code in range(32, 127))
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
PAD, BOS, EOS = 0, 1, 2
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

_TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_HEADS16 = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
_HEADS8 = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


def _phi3(**more: Any) -> Any:
    sizes = {**_TINY, "num_attention_heads": 2, "num_key_value_heads": 1}
    return hf.Phi3Config(**sizes, sliding_window=None, tie_word_embeddings=False, **more)


LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [8.0 + i for i in range(8)]}
ORIGINAL = 40
"""Context of the first training of the family with longrope."""


def _opt() -> Any:
    sizes = {key: _TINY[key] for key in _TINY if key != "intermediate_size"}
    return hf.OPTConfig(**sizes, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32)


def _neox() -> Any:
    return hf.GPTNeoXConfig(**_TINY, num_attention_heads=2, tie_word_embeddings=False)


def _mixtral() -> Any:
    return hf.MixtralConfig(**_TINY, **_HEADS16, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False)


def _deepseek() -> Any:
    """Latent attention: keys and values of different widths, expanded behind the cache."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    latent = {"kv_lora_rank": 24, "q_lora_rank": 16, "v_head_dim": 32, "first_k_dense_replace": 1}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    return hf.DeepseekV3Config(**_TINY, **heads, **latent, **experts, moe_intermediate_size=16)


def _qwen2_moe(**more: Any) -> Any:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return hf.Qwen2MoeConfig(**_TINY, **heads, **experts, shared_expert_intermediate_size=24, **more)


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**_TINY, **_HEADS16, tie_word_embeddings=True),
    "llama-head8": lambda: hf.LlamaConfig(**_TINY, **_HEADS8, tie_word_embeddings=True),
    "llama-untied": lambda: hf.LlamaConfig(**_TINY, **_HEADS16, tie_word_embeddings=False),
    "qwen2": lambda: hf.Qwen2Config(**_TINY, num_attention_heads=2, num_key_value_heads=1),
    "qwen3": lambda: hf.Qwen3Config(**_TINY, **_HEADS16),
    "gemma2": lambda: hf.Gemma2Config(
        **_TINY, **_HEADS16, **_MIXED, sliding_window=5, attn_logit_softcapping=2.0, query_pre_attn_scalar=16
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **_TINY, **_HEADS8, **_MIXED, sliding_window=5, query_pre_attn_scalar=8, tie_word_embeddings=True
    ),
    "mistral": lambda: hf.MistralConfig(**_TINY, **_HEADS16, sliding_window=6, tie_word_embeddings=False),
    "phi3": _phi3,
    "gpt2": lambda: hf.GPT2Config(**_GPT2),
    "opt": _opt,
    "gpt-neox": _neox,
    "mixtral": _mixtral,
    "deepseek-v3": _deepseek,
    "qwen2-moe": _qwen2_moe,
}
"""Family → configuration: two layers, heads of 16 (the compiled decode kernel) or of 8 (torch operations)."""

ROPES: dict[str, Callable[[], Any]] = {
    "longrope": lambda: _phi3(rope_scaling=LONGROPE, original_max_position_embeddings=ORIGINAL),
    "dynamic": lambda: hf.LlamaConfig(**_TINY, **_HEADS16, rope_scaling={"rope_type": "dynamic", "factor": 4.0}),
}
"""Rotary angles that in transformers depend on the longest row of a pass."""


UNSUPPORTED: dict[str, Callable[[], Any]] = {
    "window-by-mask": lambda: _qwen2_moe(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "chunked-attention": lambda: hf.Llama4TextConfig(
        **_TINY,
        **_HEADS16,
        intermediate_size_mlp=48,
        num_local_experts=2,
        interleave_moe_layer_step=2,
        attention_chunk_size=4,
        layer_types=["chunked_attention", "full_attention"],
    ),
    "convolution": lambda: hf.Lfm2Config(
        **_TINY, num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention"]
    ),
    "state-space": lambda: hf.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=EOS
    ),
    "recurrence": lambda: hf.RecurrentGemmaConfig(
        **{**_TINY, "num_hidden_layers": 3}, num_attention_heads=2, lru_width=32, attention_window_size=8
    ),
    "attention-sinks": lambda: hf.GptOssConfig(
        **_TINY, **_HEADS16, num_local_experts=4, num_experts_per_tok=2, sliding_window=4
    ),
    "alibi": lambda: hf.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2, eos_token_id=EOS, pad_token_id=PAD
    ),
}
"""What a packed batch would answer wrongly."""


def tokenizer(template: str | None = CHAT_TEMPLATE) -> hf.PreTrainedTokenizerFast:
    """One token per printable character."""
    words = {word: index for index, word in enumerate((*SPECIAL, *CHARACTERS))}
    plain = Tokenizer(BPE(vocab=words, merges=[], unk_token="<unk>"))
    plain.decoder = decoders.Fuse()
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = template
    return fast


def random_model(config: Any, seed: int = 0) -> Any:
    """A model whose every parameter is random (biases and norms too) and large enough to have opinions."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise_scale = 0.2 if parameter.ndim == 1 else 0.25
            mean = parameter if parameter.ndim == 1 else torch.zeros_like(parameter)
            parameter.copy_(mean + noise_scale * torch.randn_like(parameter))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    return model


def save_model(
    config: Any, folder: Path, *, dtype: torch.dtype = torch.float32, template: str | None = CHAT_TEMPLATE
) -> Path:
    """A Hugging Face folder with that model and the character tokenizer."""
    random_model(config).to(dtype).save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder


def save_family(family: str, folder: Path, **options: Any) -> Path:
    return save_model(FAMILIES[family](), folder, **options)


def load_engine(
    folder: Path,
    *,
    rank: int = 1,
    run_seed: int = 7,
    noise: Mapping[str, Any] = {},
    prefill_tokens: int = 1024,
    dtype: str = "auto",
    products: str = "auto",
    **settings: Any,
) -> TransformersEngine:
    own = {"device": DEVICE, **settings}
    config = Config.create({"model": str(folder), "dtype": dtype, "products": products, "transformers": own})
    engine = TransformersEngine(config, noise=Noise(run_seed, rank=rank, **noise))
    engine.prefill_tokens = prefill_tokens
    engine.load()
    return engine


def numpy_copy(weights: Any) -> Any:
    """A copy of current or base weights as the references take them, from any device; bfloat16 as uint16."""
    return as_weights(as_tensor(weights).to("cpu", copy=True))


def numpy_weights(engine: TransformersEngine) -> dict[str, Any]:
    """Copies of all current weights of an engine."""
    return {name: numpy_copy(weights) for name, weights in engine.weights.tensors.items()}


def text_prompts(*texts: str, limits: Sequence[int | None] | None = None) -> tuple[Prompt, ...]:
    limits = limits or [None] * len(texts)
    return tuple(Prompt(i, text, max_tokens=n) for i, (text, n) in enumerate(zip(texts, limits, strict=True)))


def job(
    prompts: Sequence[Prompt], *, members: Sequence[Member] = (UNPERTURBED,), sigma: float = 0.05, **sampling: Any
) -> Job:
    return Job(0, sigma, tuple(members), tuple(prompts), Sampling(**{"max_tokens": 8, **sampling}))


def answers(engine: TransformersEngine, work: Job) -> dict[tuple[Member, int, int], Rollout]:
    """(member, prompt, sample) → its rollout."""
    rollouts = list(engine.evaluate([work]))
    found = {(r.member, r.prompt, r.sample): r for r in rollouts}
    assert len(found) == len(rollouts)
    return found


class Reference:
    """The plain Hugging Face model of one member at a time: W + sign·σ·E in the tensors ``names``.

    E is drawn by the numpy reference.  The weights are written from untouched ones, never subtracted from.
    """

    def __init__(self, folder: Path, names: Iterable[str], drawn_as: Noise) -> None:
        load = hf.AutoModelForCausalLM.from_pretrained
        self.model = load(folder, dtype=torch.float32, attn_implementation="eager").eval()
        parameters = dict(self.model.named_parameters())
        self.weights = {name: (parameters[name], parameters[name].detach().clone()) for name in names}
        self.noise = drawn_as

    @torch.no_grad()
    def set_member(self, member: Member, sigma: float) -> Any:
        for name, (live, base) in self.weights.items():
            live.copy_(base + member.sign * sigma * self._perturbation(name, base.shape, member))
        return self.model

    def _perturbation(self, name: str, shape: tuple[int, int], member: Member) -> torch.Tensor:
        key = noise.key(self.noise.run_seed, name)
        address = noise.Address(key, generation=member.generation, pair=member.pair)
        if self.noise.perturbation == "gaussian":
            own = noise.in_subspace(address, 0, math.prod(shape), subspaces=self.noise.subspaces)
            drawn = noise.normals(address, 0, math.prod(shape)) * own
            return torch.from_numpy(drawn).view(shape) * self.noise.subspaces**0.5
        if self.noise.perturbation == "flipout":
            return torch.from_numpy(noise.flipout(address, tuple(shape), shared_noise=self.noise.shared_noise))
        a, b = noise.factors(address, tuple(shape), rank=self.noise.rank, subspaces=self.noise.subspaces)
        return torch.from_numpy(a @ b.T) * (self.noise.subspaces / self.noise.rank) ** 0.5


@torch.no_grad()
def forced_logits(model: Any, prompt_ids: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """(tokens, vocabulary) logits from which a model that is alone would have chosen each of ``tokens``."""
    ids = torch.tensor([[*prompt_ids, *tokens[:-1]]])
    return model(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 :]


@torch.no_grad()
def greedy(model: Any, prompt_ids: Sequence[int], limit: int) -> list[int]:
    """New tokens of Hugging Face's own greedy ``generate``."""
    ids = torch.tensor([list(prompt_ids)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False)
    return out[0, len(prompt_ids) :].tolist()


def assert_members_are_materialised_models(
    engine: TransformersEngine,
    folder: Path,
    members: Sequence[Member],
    prompts: Sequence[Prompt],
    *,
    sigma: float,
    new: int,
) -> list[torch.Tensor]:
    """Logits within ATOL and greedy tokens of plain Hugging Face; returns each member's first logits of prompt 2.

    What ``generate`` writes is asked for one prompt of each member, a different one; for all, whether each token is
    the most likely one after those before it, which is the same.
    """
    with recorded_logits() as logits:
        rollouts = answers(engine, job(prompts, members=members, sigma=sigma, max_tokens=new))
    assert len(rollouts) == len(members) * len(prompts)
    reference = Reference(folder, engine.weights.tensors, engine.noise)
    for position, member in enumerate(members):
        alone = reference.set_member(member, sigma)
        for place, prompt in enumerate(prompts):
            ids = list(engine.tokenizer.hf(prompt.content)["input_ids"])
            tokens = list(rollouts[member, prompt.id, 0].token_ids)
            ours, theirs = torch.stack(logits[position, prompt.id, 0][: len(tokens)]), forced_logits(alone, ids, tokens)
            torch.testing.assert_close(ours, theirs, atol=ATOL, rtol=0)
            assert tokens == theirs.argmax(-1).tolist()
            assert EOS not in tokens[:-1]
            assert len(tokens) == new or tokens[-1] == EOS
            if place == position % len(prompts):
                assert tokens == greedy(alone, ids, new)
    return [logits[position, 2, 0][0] for position in range(len(members))]


@contextmanager
def recorded_logits() -> Iterator[dict[tuple[int, int, int], list[torch.Tensor]]]:
    """While open, collects the logits of every choice by (member position, prompt, sample)."""
    seen: dict[tuple[int, int, int], list[torch.Tensor]] = {}
    choose = Decoder._choose

    def record(
        decoder: Decoder, rows: list[DecodeSequence], logits: torch.Tensor, sampling: Sampling, points: Any
    ) -> torch.Tensor:
        for row, its in zip(rows, logits, strict=False):  # further logits fill up a bucket
            seen.setdefault((row.member, row.prompt, row.sample), []).append(its.to("cpu", torch.float32, copy=True))
        return choose(decoder, rows, logits, sampling, points)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "_choose", record)
        yield seen
