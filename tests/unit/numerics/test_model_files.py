"""Folders of models as they come: every one that cannot be read is told in one line, with the fix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from models import save_family
from seedtune.config.data_and_rewards import ClassifierSettings
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.errors import MissingExtraError, ModelError
from seedtune.numerics import model_files
from seedtune.rewards.sources.classifier import Classifier

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 12345\n"
KINDS = ("bitsandbytes", "awq", "gptq", "fp8", "mxfp4", "compressed-tensors", "modelopt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "a model"))


def failing(error: Exception) -> type:
    """Stands for a class of transformers."""

    class Factory:
        @staticmethod
        def from_pretrained(*_, **__):
            raise error

    return Factory


@pytest.mark.parametrize(
    ("name", "reader"),
    [("model.safetensors", "load"), ("tokenizer.json", "tokenizer"), ("config.json", "config")],
)
def test_a_pointer_of_git_lfs_is_named_with_the_command_that_fetches_the_file(folder, name, reader):
    (folder / name).write_text(POINTER)
    with pytest.raises(ModelError) as caught:
        getattr(ModelSource.resolve(str(folder)), reader)()
    assert str(caught.value) == (
        f"cannot load the model '{folder}': {folder / name} is a pointer of git-lfs, not the file itself. "
        f"Fetch it with: git -C '{folder}' lfs pull"
    )


def test_a_pointer_in_place_of_a_file_that_is_not_needed_does_no_harm(folder):
    (folder / "pytorch_model.bin").write_text(POINTER)
    ModelSource.resolve(str(folder)).load()


def test_a_pointer_in_a_reward_model_is_named_too(folder):
    (folder / "config.json").write_text(POINTER)
    with pytest.raises(ModelError, match=r"cannot load the reward model .*config\.json is a pointer of git-lfs"):
        Classifier(ClassifierSettings(model=str(folder)))


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_are_refused_before_they_are_read(folder, kind):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": kind}}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=rf"are quantised \({kind}\).* Give the checkpoint that it was quantised from"):
        ModelSource.resolve(str(folder)).load()


@pytest.mark.parametrize(
    "error",
    [
        ImportError("\nXTokenizer requires the SentencePiece library but it was not found in your environment."),
        ValueError("Error parsing line b'x' in folder/tokenizer.model"),
    ],
)
def test_a_tokenizer_that_needs_sentencepiece_says_how_to_install_it(monkeypatch, error):
    monkeypatch.setattr(model_files, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"the tokenizer of M needs .*: pip install sentencepiece"):
        model_files.read(failing(error), "M", what="M", fix="")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("\nUsing X requires Y: `pip install Y`\nmore"), "Using X requires Y: `pip install Y`"),
        (RuntimeError("INTERNAL: unk is not defined."), "INTERNAL: unk is not defined. Look."),
        (OSError(), "OSError Look."),
    ],
)
def test_whatever_transformers_says_is_one_line_with_the_fix(error, message):
    with pytest.raises(ModelError) as caught:
        model_files.read(failing(error), "M", what="M", fix="Look.")
    assert str(caught.value).startswith(f"cannot load M: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, more than any of its tensors"),
        ({"hidden_size": 10**7}, "hidden_size=10000000, more than any"),
        ({"vocab_size": 10**12}, "vocab_size=1000000000000, more than any"),
        ({"num_attention_heads": 1e18}, "num_attention_heads=1e+18, more than any"),
        ({"text_config": {"vocab_size": 10**12}}, "vocab_size=1000000000000, more than any"),
        ({"num_attention_heads": 0}, ""),
        ({"num_hidden_layers": "many"}, ""),
        ({"hidden_size": -4}, ""),
        ({"model_type": 5}, ""),
        ({"hidden_act": "nothing"}, ""),
        ({"dtype": "float3"}, ""),
        ({"rope_scaling": 7}, ""),
        ({"vocab_size": None}, ""),
    ],
    ids=str,
)
def test_a_configuration_of_absurd_values_is_one_line_before_anything_is_allocated(folder, change, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError) as caught:
        ModelSource.resolve(str(folder)).load()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_no_sizes_and_tensors_that_are_not_the_models_do_not_count(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_parameters": 135_000_000}))
    ModelSource.resolve(str(folder)).load()
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    save_file({"lora": torch.zeros(2, 3)}, folder / "adapter_model.safetensors")
    ModelSource.resolve(str(folder)).load()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 5000, '{"a": ' + "9" * 5000 + "}", "null", "\x00"], ids=lambda t: t[:9]
)
def test_a_configuration_that_is_none_is_one_line(folder, text):
    (folder / "config.json").write_text(text)
    for reader in ("load", "config"):
        with pytest.raises(ModelError, match="cannot load the model"):
            getattr(ModelSource.resolve(str(folder)), reader)()


@pytest.mark.parametrize("cut", [0, 7, 8, 100, 2000, -1])
def test_a_truncated_checkpoint_is_named(folder, cut):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelError, match=r"cannot load the model .*: cannot read .*model\.safetensors"):
        ModelSource.resolve(str(folder)).load()


def test_a_checkpoint_whose_header_lies_is_named(folder):
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + size])
    name = next(name for name in entries if name != "__metadata__")
    for change in ({"shape": [2**40, 2**40]}, {"shape": [-1]}, {"data_offsets": [5, 1]}, {"dtype": 7}, {"shape": "x"}):
        header = json.dumps({**entries, name: {**entries[name], **change}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])
        with pytest.raises(ModelError, match="cannot read"):
            ModelSource.resolve(str(folder)).load()
