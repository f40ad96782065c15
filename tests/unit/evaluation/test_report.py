"""The report is made of files that anybody may have written: nothing in them becomes markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from seedtune.evaluation import report
from seedtune.run.directory import RunPaths

MARK = "<img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """The names of all tags of a page, and of all their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(name for name, _ in attributes)}


def generation(number: int, **forged: Any) -> dict[str, Any]:
    return {"generation": number, "reward": 0.1 * number, "reward_unperturbed": 0.1, **forged}


def evaluation(number: int, **forged: Any) -> dict[str, Any]:
    return {"generation": number, "eval_reward": 0.5, "eval_completions/mean_length": 3.0, **forged}


def saved(**forged: Any) -> dict[str, Any]:
    result = {"task": "toy", "prompts": 3, "wording": "as it is", "measures": {"reward": {"value": 0.5}}}
    return {"subjects": [{"name": "generation 3", "results": [{**result, **forged}]}]}


def page(folder: Path, **rows: list[dict[str, Any]]) -> str:
    paths = RunPaths(folder)
    for name, held in rows.items():
        getattr(paths, name).write_text("".join(json.dumps(row) + "\n" for row in held))
    paths.config.write_text(f"task: {MARK}\n")
    return report.render(paths)


@pytest.mark.parametrize(
    "rows",
    [
        {"metrics": [generation(1), generation(2, reward=MARK), generation(3)]},
        {"metrics": [generation(1), generation(2, reward_std=MARK, step_time=[MARK])]},
        {"metrics": [generation(1), evaluation(0, eval_reward=MARK), evaluation(1, eval_reward=MARK)]},
        {"metrics": [evaluation(MARK), evaluation(1), evaluation(2, **{f"eval_{MARK}/reward": MARK})]},
        {"evaluations": [saved(task=MARK, prompts=MARK, wording=MARK)]},
        {"evaluations": [saved(measures={MARK: {"value": MARK}})]},
        {"samples": [{"generation": g, "split": "test", "prompt_id": 0, "prompt": MARK, "sample": 0, "completion": MARK,
                      "reward": 0.5, "right": None, "finish": "stop"} for g in (0, 1)]},
    ],
)  # fmt: skip
def test_forged_rows_stay_text(rows: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    html = page(tmp_path, **rows)
    tags = Tags()
    tags.feed(html)
    assert not {"img", "src", "onerror"} & tags.seen
    assert "<img" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
