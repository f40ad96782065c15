"""The page for people who come from GRPO: its twin scripts, its table of settings, and the loop of their own."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import datasets
import pytest

from models import save_family
from seedtune.config.trl_names import COUNTERPARTS
from seedtune.run import directory, ledger

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "coming-from-grpo.md"
PROGRAMS = re.findall(r"```python title=[^\n]*\n(.*?)```", PAGE.read_text(), re.DOTALL)
SMALL = "generations=2, population=4, prompts_per_generation=2, max_completion_length=4, reward_workers=0, eval_size=0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("model"))


def test_the_twin_of_a_grpo_script_differs_in_three_lines():
    grpo, es = (program.splitlines() for program in PROGRAMS)
    assert len(grpo) == len(es)
    changed = [(one, other) for one, other in zip(grpo, es, strict=True) if one != other]
    assert len(changed) == 3
    assert all("GRPO" in one and "ES" in other for one, other in changed)


def test_the_twin_of_a_grpo_script_trains(tmp_path, folder, monkeypatch):
    def load_dataset(path: str, *, split: str) -> datasets.Dataset:
        assert (path, split) == ("trl-lib/tldr", "train")
        return datasets.Dataset.from_list([{"prompt": f"Post {i}. TL;DR:", "completion": " Short."} for i in range(4)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    program = PROGRAMS[1].replace("Qwen/Qwen2-0.5B-Instruct", str(folder))
    Path("twin.py").write_text(program.replace('-ES")', f'-ES", {SMALL}, transformers={{"device": "cpu"}})'))
    trainer = runpy.run_path("twin.py")["trainer"]
    trainer.release()
    records = ledger.read(directory.RunPaths(tmp_path / "Qwen2-0.5B-ES").ledger).records
    assert len(records) == 2
    assert all(-20 <= reward <= 0 for record in records for reward in record.rewards)


def test_the_page_names_every_setting_that_only_grpo_has():
    text = PAGE.read_text()
    assert [name for name in COUNTERPARTS if f"`{name}`" not in text] == []


def test_a_loop_of_ones_own_trains_in_forty_lines(folder, capsys):
    source = ROOT / "examples" / "own_loop.py"
    assert len(source.read_text().splitlines()) <= 40
    main = runpy.run_path(str(source))["main"]
    small = {"model": str(folder), "population": 4, "sigma": 0.3, "transformers": {"device": "cpu"}}
    ends = [main(generations, tokens=16, **small) for generations in (0, 2, 2)]
    assert ends[0] != ends[1] == ends[2]
    assert capsys.readouterr().out.startswith("generation 1: mean reward -")
