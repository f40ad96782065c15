"""GGUF files: transformers reads the exported weights back from them, and another model's GGUF file is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from models import VOCABULARY, random_model, save_family, save_model, tokenizer
from seedtune import to_gguf
from seedtune.engines.transformers.builtin_models import dense_options
from seedtune.errors import ModelError, StorageError

gguf = pytest.importorskip("gguf")

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
"""Heads of 8, the hidden size over their number: of a Llama, transformers reads no other size from GGUF."""

CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-untied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
}

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    **{f"self_attn.{kind}_proj": f"attn_{kind}" for kind in "qkv"},
    **{f"mlp.{kind}_proj": f"ffn_{kind}" for kind in ("gate", "up", "down")},
    "model.layers.": "blk.",
}


def rotated_by_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of a head in llama.cpp's order, one by one: 0, half, 1, half + 1, …"""
    half = rows.shape[0] // heads // 2
    order = [head * 2 * half + side * half + place for head in range(heads) for place in range(half) for side in (0, 1)]
    return rows[order]


def save_gguf(folder: Path, path: Path, **changed: Any) -> Path:
    """A GGUF file of a model's folder in float32, written as llama.cpp's converter does."""
    model, config = AutoModelForCausalLM.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    kind = config.model_type
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name("the base")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(getattr(config, "head_dim", None) or config.hidden_size // heads)
    writer.add_rope_freq_base(changed.get("theta", config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = sorted((number, token) for token, number in AutoTokenizer.from_pretrained(folder).get_vocab().items())
    writer.add_token_list(changed.get("tokens", [token for _, token in tokens]))
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if kind == "llama" and (".attn_q." in name or ".attn_k." in name):
            tensor = rotated_by_pairs(tensor, heads if ".attn_q." in name else groups)
        if name != changed.get("missing"):
            writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def saved(family: str, folder: Path) -> Path:
    return save_model(CONFIGS[family](), folder) if family in CONFIGS else save_family(family, folder)


def tuned(base: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """The base model's folder with other weights."""
    config = AutoConfig.from_pretrained(base)
    torch.manual_seed(1)
    model = random_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "llama-untied", "qwen2", "qwen3"])
def test_a_gguf_file_is_read_back_as_the_exported_model(tmp_path, family):
    base = saved(family, tmp_path / "base")
    folder = tuned(base, tmp_path / "tuned")
    to_gguf(folder, tmp_path / "out" / "it.gguf", save_gguf(base, tmp_path / "base.gguf"))
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    own = {"config": AutoConfig.from_pretrained(folder)} if family == "qwen3" else {}  # its heads are not read either
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="it.gguf", **own, **dense_options())
    assert {str(tensor.dtype) for tensor in AutoModelForCausalLM.from_pretrained(folder).state_dict().values()} == {
        "torch.bfloat16"
    }
    for name, tensor in ours.state_dict().items():
        assert torch.equal(read.state_dict()[name].float(), tensor), name
    ids = torch.arange(4, 24)[None]
    torch.testing.assert_close(read.float()(ids).logits, ours(ids).logits, rtol=1e-4, atol=1e-4)
    fields = gguf.GGUFReader(tmp_path / "out" / "it.gguf").fields
    assert fields["general.name"].contents() == "it, fine-tuned by seedtune"
    assert fields["tokenizer.ggml.merges"].contents() == ["a b"]
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_BF16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_matrices_keep_the_precision_of_the_export(tmp_path, dtype):
    base = saved("llama", tmp_path / "base")
    to_gguf(tuned(base, tmp_path / "tuned", dtype), tmp_path / "it.gguf", save_gguf(base, tmp_path / "b.gguf"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "it.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == {4: "F32", 2: "F16"}[dtype.itemsize]
    assert kinds["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": ["x"] * 99}, r"is of another model: its token 0 is 'x', and the model's is '<pad>'. Give a GGUF"),
        ({"tokens": ["<pad>"]}, "is of another model: its token 1 is None, and the model's is '<bos>'"),
        ({"theta": 5e5}, "has rope_theta=500000, and the model has 10000. Give a GGUF file of the base model"),
        (
            {"missing": "blk.1.ffn_up.weight"},
            r"not have the same tensors: model.layers.1.mlp.up_proj.weight. Convert",
        ),
    ],
)
def test_a_gguf_file_of_another_model_is_refused_and_nothing_is_written(tmp_path, changed, message):
    base = saved("llama", tmp_path / "base")
    like = save_gguf(base, tmp_path / "base.gguf", **changed)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match=message):
        to_gguf(base, tmp_path / "it.gguf", like)
    assert sorted(tmp_path.iterdir()) == before


def test_heads_of_another_size_than_transformers_takes_from_gguf_are_written(tmp_path):
    base = save_family("llama", tmp_path / "base")
    to_gguf(base, tmp_path / "it.gguf", save_gguf(base, tmp_path / "base.gguf"))
    config = AutoConfig.from_pretrained(base)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="it.gguf", config=config, **dense_options())
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(read.state_dict()[name], AutoModelForCausalLM.from_pretrained(base).state_dict()[name])


def test_what_is_no_gguf_file_or_no_model_or_of_another_family(tmp_path):
    base = saved("llama", tmp_path / "base")
    like = save_gguf(base, tmp_path / "base.gguf")
    (tmp_path / "text.gguf").write_text("no GGUF")
    for given, message in (("no.gguf", "there is no GGUF file"), ("text.gguf", "cannot be read as GGUF")):
        with pytest.raises(ModelError, match=message):
            to_gguf(base, tmp_path / "it.gguf", tmp_path / given)
    with pytest.raises(ModelError, match=r"no model\*.safetensors"):
        to_gguf(tmp_path, tmp_path / "it.gguf", like)
    other = save_family("gpt2", tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"of the family 'gpt2' .* is not written as GGUF, only llama, qwen2, q"):
        to_gguf(other, tmp_path / "it.gguf", like)
    with pytest.raises(StorageError, match="exists already"):
        to_gguf(base, tmp_path / "text.gguf", like)
    wider = LlamaConfig(**{**SIZES, "intermediate_size": 64}, tie_word_embeddings=True)
    random_model(wider).save_pretrained(tmp_path / "wider")
    tokenizer().save_pretrained(tmp_path / "wider")
    with pytest.raises(ModelError, match=r"ffn_\w+.weight is .*, and the model's .*. Give a GGUF file of the"):
        to_gguf(tmp_path / "wider", tmp_path / "it.gguf", like)
