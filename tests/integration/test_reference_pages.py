"""The pages of every public name, every setting and every metric leave nothing out."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import models
import runs
import seedtune
from documents import ROOT
from seedtune.config.config import Config
from seedtune.run import directory


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_an_entry_with_its_docstring(reference):
    entries = dict(re.findall(r"^## `(\w+)`\n\n(.*?)(?=^## |\Z)", reference.api_page(), re.M | re.S))
    assert list(entries) == seedtune.__all__
    assert [name for name, text in entries.items() if not re.sub(r"```.*?```", "", text, flags=re.S).strip()] == []
    assert "### `ESTrainer.train`\n" in entries["ESTrainer"]
    assert "``" not in re.sub(r"```", "", reference.api_page())


def test_every_setting_stands_on_the_page_with_its_meaning(reference):
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) \| (.*) \|$", reference.settings_page(), re.M)
    sections = [Config, *(section for _, section in reference.sections(Config))]
    assert [name for name, *_ in rows] == [name for section in sections for name in section.model_fields]
    assert [name for name, _, _, meaning in rows if not meaning] == []


def test_a_setting_has_its_type_bounds_and_default(reference):
    lines = reference.settings_page().splitlines()
    (top_p,) = (line for line in lines if line.startswith("| `top_p` |"))
    assert top_p.startswith("| `top_p` | number > 0 and ≤ 1 | `1.0` | Nucleus sampling")
    (sigma,) = (line for line in lines if line.startswith("| `sigma` |"))
    assert "number > 0 and ≤ 1000 or none | none" in sigma


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> set[str]:
    """The names of all metrics of two runs that measure all there is, but for those of Ray workers."""
    place = tmp_path_factory.mktemp("runs")
    small = {"max_prompt_length": 8, "max_completion_length": 4, "kl_steps": 1, "fingerprint_steps": 1}
    small |= {"eval_prompts": 2, "reward_workers": 0, "transformers": {"device": "cpu"}}
    model = models.save_family("llama", place / "model", template=None)
    data = {"train_dataset": str(place / "data.jsonl"), "reward_funcs": [f"{place}/rewards.py:{n}" for n in "ab"]}
    (place / "data.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' * 20)
    (place / "rewards.py").write_text(
        "def a(completions, log_metric, **_):\n    log_metric('s', 1.0)\n    return [len(t) for t in completions]\n\n"
        "def b(completions, **_):\n    return [t.count('e') for t in completions]\n"
    )
    configs = [
        runs.toy(place / "toy", eval_tasks=["toy"], kl_steps=1),
        Config(model=str(model), output_dir=str(place / "own"), generations=2, population=4, **data, **small),
    ]
    names: set[str] = set()
    for config in configs:
        trainer = seedtune.ESTrainer(args=config)
        trainer.train()
        trainer.release()
        for row in runs.rows(directory.RunPaths(Path(config.output_dir)).metrics):
            names |= row.keys()
    return names


def general(name: str) -> str:
    """The name of a metric with placeholders, as on the page."""
    name = re.sub(r"^((?:eval_)?rewards)/\w+/(mean|std|failed|step_share)$", r"\1/FUNCTION/\2", name)
    name = re.sub(r"^(eval_)?rewards/[^F/]\w*/\w+$", "rewards/FUNCTION/NAME", name)
    return re.sub(r"^eval_(toy)/", "eval_TASK/", re.sub(r"^(eval_toy/reward)/\w+$", r"\1/FUNCTION", name))


def test_every_metric_stands_on_the_page(written):
    page = (ROOT / "docs" / "metrics.md").read_text()
    listed = set(re.findall(r"`([\w/]+)`", page))
    known = listed | {f"eval_{name}" for name in listed}
    assert len(written) > 60
    assert sorted(name for name in written if general(name) not in known) == []


def test_every_listed_metric_is_one_of_the_code(written):
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| (`.+?`) \|", page, re.M)
    listed = {name for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    source = "".join(file.read_text() for file in (ROOT / "src" / "seedtune").rglob("*.py"))
    found = {general(name) for name in written}
    assert sorted(name for name in listed - found if f'{name.split("/")[-1]}"' not in source) == []
