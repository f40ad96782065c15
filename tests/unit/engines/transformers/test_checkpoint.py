"""Reading base models: what their files ask for is not run."""

from __future__ import annotations

import json
import os

import pytest

import models
from seedtune.engines.transformers import checkpoint
from seedtune.engines.transformers.checkpoint import ModelSource, write_model
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


@pytest.mark.parametrize(
    ("name", "place", "options"),
    [
        ("org/name", "org/name", {}),
        ("org/name@v1.0", "org/name", {"revision": "v1.0"}),
        ("name@refs/pr/3", "name", {"revision": "refs/pr/3"}),
    ],
)
def test_a_model_of_the_hub_may_have_a_revision(name, place, options) -> None:
    asked = []

    class Library:
        @staticmethod
        def from_pretrained(place: str, **options: object) -> None:
            asked.append((place, options))

    ModelSource.resolve(name)._read(Library)
    assert asked == [(place, {"trust_remote_code": False, **options})]


def test_a_folder_with_an_at_sign_is_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    models.FAMILIES["llama"]().save_pretrained("org@home")
    found = ModelSource.resolve("org@home")
    assert (found.location, found.options) == ("org@home", {})
    with pytest.raises(ModelError, match=r"there is no model folder '\./gone@home'\. Check the path\."):
        ModelSource.resolve("./gone@home")


def test_weights_of_a_revision_are_streamed_from_its_files(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(checkpoint, "try_to_load_from_cache", lambda *given, **more: asked.append((given, more)))
    assert ModelSource.resolve("org/name@v1").folder is None
    assert asked == [(("org/name", "config.json"), {"revision": "v1"})]


def test_an_export_copies_no_file_from_outside_the_models_folder(tmp_path, caplog) -> None:
    for place in ("snapshots/abc", "blobs", "snapshots/other", "out"):
        (tmp_path / "repo" / place).mkdir(parents=True)
    base, out, outside = tmp_path / "repo/snapshots/abc", tmp_path / "repo/out", tmp_path / "secret"
    outside.write_text("secret")
    (tmp_path / "repo/blobs/1").write_text("licence")
    (base / "LICENSE").symlink_to("../../blobs/1")  # as in the cache of Hugging Face
    (base / "LICENSE.txt").write_text("own")
    (base / "LICENSE-A").symlink_to(outside)
    (base / "LICENSE-B").symlink_to("../../../secret")
    (base / "LICENSE-C").mkdir()
    os.mkfifo(base / "LICENSE-D")
    (tmp_path / "repo/other").write_text("secret")
    (base / "LICENSE-E").symlink_to("../../other")
    checkpoint._copy_extras(base, out)
    assert {file.name: file.read_text() for file in out.iterdir()} == {"LICENSE": "licence", "LICENSE.txt": "own"}
    assert caplog.text.count("is not copied: it is no file of the model's folder") == 5


KEPT = ("LICENSE", "LICENCE.md", "NOTICE", "USE_POLICY.md", "tokenizer.model", "vocab.json", "preprocessor_config.json")
OTHERS = ("README.md", "training_args.bin", "notes.txt")


def test_an_export_has_what_converters_need_and_no_word_of_where_the_base_model_was(tmp_path) -> None:
    base, output = models.save_family("llama", tmp_path / "secret place" / "tiny"), tmp_path / "out"
    for name in (*KEPT, *OTHERS):
        (base / name).write_text(name)
    output.mkdir()
    write_model(ModelSource.resolve(str(base)), {}, output)
    files = {file.name: file.read_bytes() for file in output.iterdir()}
    assert {name: files[name] for name in KEPT} == {name: name.encode() for name in KEPT}
    assert files.keys().isdisjoint(OTHERS)
    assert files["tokenizer.json"] == (base / "tokenizer.json").read_bytes()
    assert not [name for name, data in files.items() if b"secret place" in data]


def test_an_adapter_is_told_from_a_model(tmp_path) -> None:
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ModelError, match=r"has no config\.json\. It is an adapter: give what peft makes"):
        ModelSource.resolve(str(tmp_path))
