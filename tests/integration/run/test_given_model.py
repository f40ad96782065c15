"""A loaded model given to `ESTrainer`: it is saved beside the run, which replays and resumes, and is not changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import runs
from models import save_family
from scores import brevity
from seedtune import verify_run
from seedtune.config.config import Config
from seedtune.errors import ModelError
from seedtune.run import directory, ledger
from seedtune.trainer import ESTrainer

ROWS = [{"prompt": f"word {index}"} for index in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(folder: Path) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(folder).train()


def trainer(root: Path, model: Any, **changes: Any) -> ESTrainer:
    settings = {"population": 4, "sigma": 0.02, "alpha": 0.01, "max_completion_length": 4, "reward_workers": 0}
    more = {"generations": changes.pop("generations", 2), "transformers": {"device": "cpu"}, "eval_size": 0}
    return ESTrainer(model, brevity, Config(**settings, **more, output_dir=str(root)), ROWS, **changes)


def test_a_loaded_model_trains_resumes_and_replays_as_its_folder_does_and_is_not_changed(tmp_path, folder, model):
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    trainer(tmp_path / "run", model, generations=1).train()
    trainer(tmp_path / "run", model).train(resume_from_checkpoint=True)
    trainer(tmp_path / "other", str(folder)).train()
    loaded, named = (ledger.read(directory.RunPaths(tmp_path / name).ledger) for name in ("run", "other"))
    assert loaded.records == named.records
    assert runs.fingerprint(tmp_path / "run") == runs.fingerprint(tmp_path / "other")
    assert loaded.header.base_fingerprint == named.header.base_fingerprint
    assert loaded.header.tokenizer_fingerprint == named.header.tokenizer_fingerprint
    verify_run(tmp_path / "run")
    assert (model.config.to_dict(), model.training) == (config, True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run", "run-base"]
    with torch.no_grad():
        model.model.norm.weight += 1
    with pytest.raises(ModelError, match="run-base' holds another model, which was given to the run"):
        trainer(tmp_path / "run", model)


def test_its_tokenizer_is_given_or_that_of_its_name(tmp_path, folder, model):
    own = hf.AutoTokenizer.from_pretrained(folder)
    model.config.name_or_path = ""
    with pytest.raises(ModelError, match=r"the model has no name, .* Give processing_class"):
        trainer(tmp_path / "run", model)
    assert list(tmp_path.iterdir()) == []
    made = trainer(tmp_path / "run", model, processing_class=own)
    assert made.config.model == str(tmp_path / "run-base")


def untied(model: Any) -> Any:
    model.config.tie_word_embeddings = not model.config.tie_word_embeddings
    return model


def quantised(model: Any) -> Any:
    model.config.quantization_config = {"quant_method": "gptq"}
    return model


def adapted(model: Any) -> Any:
    model._hf_peft_config_loaded = True
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (untied, "its config says tie_word_embeddings="),
        (quantised, r"is quantised \(gptq\)\. Load it without"),
        (adapted, "has adapters. Merge them"),
        (lambda model: model.to("meta"), "has tensors on the meta device, without values"),
        (lambda _: {}, "model is a dict, not a model's id, its folder or a PreTrainedModel of transformers"),
    ],
    ids=["tie", "quantised", "adapters", "meta", "dict"],
)
def test_a_model_that_no_folder_holds_is_refused_in_one_line(tmp_path, model, change, message):
    with pytest.raises(ModelError, match=message):
        trainer(tmp_path / "run", change(model))
    assert list(tmp_path.iterdir()) == []
