"""``seedtune export -o NAME.gguf``: what is refused; `test_real_model` reads a file back."""

from __future__ import annotations

import pytest

pytest.importorskip("gguf")


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
