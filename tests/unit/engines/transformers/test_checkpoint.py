"""Reading base models: what their files ask for is not run."""

from __future__ import annotations

import json

import pytest

import models
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.errors import ModelError


@pytest.mark.parametrize("kernel", ["org/kernel", "org/kernel@main:function", {"": "org/kernel"}])
def test_a_kernel_that_a_models_configuration_names_is_not_fetched(kernel, tmp_path, monkeypatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetch)
    models.FAMILIES["llama"]().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attn_implementation": kernel}))
    source = ModelSource.resolve(str(tmp_path))
    for read in (source.load, source.config):
        with pytest.raises(ModelError, match=r"'org/kernel.*', a kernel that is downloaded and run. Take it out of"):
            read()
