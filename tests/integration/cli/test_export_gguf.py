"""``seedtune export -o NAME.gguf``: the fine-tuned real model as transformers reads it back, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from seedtune import ESConfig, ESTrainer
from seedtune.engines.transformers.builtin_models import dense_options

pytest.importorskip("gguf")


@pytest.mark.real
@pytest.mark.slow
def test_a_fine_tune_of_the_real_model_is_read_back_with_its_tokenizer(command, tmp_path):
    small = {"generations": 1, "population": 4, "prompts_per_generation": 1, "max_completion_length": 4, "sigma": 0.01}
    config = ESConfig(output_dir=tmp_path / "run", task="conciseness", eval_prompts=1, save_steps=0, **small)
    ESTrainer(args=config).train()
    code, output, errors = command("export", tmp_path / "run", "-o", tmp_path / "tuned.gguf")
    assert code == 0, errors
    assert output.splitlines()[-1] == f"chat with it: llama-cli -m {tmp_path / 'tuned.gguf'}"
    assert command("export", tmp_path / "run", "-o", tmp_path / "folder")[0] == 0
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tuned.gguf", dtype=torch.bfloat16, **dense_options()
    ).state_dict()
    for name, tensor in load_file(tmp_path / "folder" / "model.safetensors").items():
        assert torch.equal(read[name], tensor), name


def test_without_a_gguf_file_of_the_base_or_with_one_for_a_folder(failure, run, tmp_path):
    message = failure("export", run, "-o", tmp_path / "it.gguf")
    assert message.startswith(
        "a GGUF file takes its tokenizer and settings from one of the base model, 'toy'. Give it "
    )
    message = failure("export", run, "-o", tmp_path / "it.gguf", "--like", tmp_path / "no.gguf")
    assert message.startswith(f"there is no GGUF file '{tmp_path / 'no.gguf'}'.")
    message = failure("export", run, "-o", tmp_path / "folder", "--like", "smollm2-135m")
    assert message.endswith("is none. Give -o NAME.gguf.")
    (tmp_path / "there.gguf").touch()
    assert "exists already" in failure("export", run, "-o", tmp_path / "there.gguf", "--like", "smollm2-135m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there.gguf"]
