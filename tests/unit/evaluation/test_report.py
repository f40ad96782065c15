"""The report: what it shows, and that nothing in the files of strangers becomes markup."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from made_up_runs import made_up_run
from seedtune.evaluation import report
from seedtune.evaluation.html_report import alarm_explanations
from seedtune.run import metrics
from seedtune.run.directory import RunPaths
from seedtune.run.records import Record
from seedtune.types import Member, Plan

MARK = "<img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """The names of all tags of a page, and of all their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.values: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.values += attributes
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


FETCHED = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "formaction", "ping", "background"}
"""Attributes whose values a browser may load."""


def test_a_page_of_five_hundred_generations_is_small_and_names_nothing_outside(tmp_path: Path) -> None:
    html = report.render(RunPaths(made_up_run(tmp_path / "run")))
    assert len(html.encode()) < 5_000_000
    tags = Tags()
    tags.feed(html)
    assert not [value for name, value in tags.values if name in FETCHED and not str(value).startswith(("#", "data:,"))]
    assert not re.search(r"url\(|@import", html)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & tags.seen
    assert "default-src 'none'" in html


def test_long_runs_and_long_answers_do_not_make_the_page_long(tmp_path: Path) -> None:
    root = made_up_run(tmp_path / "run", generations=3000, prompts=4, words=20_000)
    assert len(report.render(RunPaths(root)).encode()) < 5_000_000


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, -1e308, 10**400, 5e-324, None, 0])
def test_any_number_is_shown_or_left_out(value: float | None, tmp_path: Path) -> None:
    names = ("reward", "reward_std", "reward_best", "sigma", "step_time", "time/score", "num_tokens", "drift", "kl")
    forged = dict.fromkeys((*names, "rewards/a/mean", "rewards/b/mean", "rewards/a/step_share"), value)
    rows = [
        generation(1),
        generation(2, **forged),
        generation(3, **forged),
        evaluation(0),
        evaluation(3, eval_reward=value),
    ]
    answers = [sample(g, reward=value) for g in (0, 3)]
    html = page(tmp_path, metrics=rows, samples=answers, evaluations=[saved(measures={"reward": {"value": value}})])
    paths = re.findall(r' d="([^"]*)"', html)
    assert paths
    assert not [path for path in paths if not re.fullmatch(r"[MLHZh0-9 .e+-]*", path)]


def sample(at: int, **forged: Any) -> dict[str, Any]:
    return {"generation": at, "split": "test", "prompt_id": 0, "prompt": "p", "sample": 0, "completion": f"it is {at}",
            "reward": 0.5, "right": None, "finish": "stop", **forged}  # fmt: skip


def test_names_of_metrics_and_settings_and_alarms_stay_text(tmp_path: Path) -> None:
    forged = {f"rewards/{MARK}/mean": 0.5, f"rewards/{MARK}2/mean": 0.5, f"rewards/{MARK}/step_share": 1.0}
    rows = [generation(g, **forged, alarms=[MARK, f"the reward function {MARK!r} failed on"]) for g in (1, 2)]
    RunPaths(tmp_path).ledger.write_text(json.dumps({"seedtune": MARK, MARK: {MARK: MARK}}) + "\n")
    html = page(tmp_path, metrics=rows, samples=[sample(0), sample(1, completion=MARK)])
    tags = Tags()
    tags.feed(html)
    assert "<img" not in html
    assert not {"img", "src", "onerror"} & tags.seen


def test_lone_surrogates_and_control_characters_can_be_written(tmp_path: Path) -> None:
    html = page(tmp_path, samples=[sample(0), sample(1, completion="a\x1b[2J\u202eb\ud800")])
    assert "a\ufffd[2J\ufffdb\ufffd" in html.replace("</ins>", "").replace("<ins>", "")
    html.encode()


def test_words_that_differ_are_marked(tmp_path: Path) -> None:
    html = page(tmp_path, samples=[sample(0), sample(7)])
    assert "it is<del> 0</del>" in html
    assert "it is<ins> 7</ins>" in html


def test_the_most_changed_the_best_and_the_worst_answers_come_first(tmp_path: Path) -> None:
    rewards = {p: (0.5, 0.5 + p / 100) for p in range(20)} | {20: (0.9, 0.1), 21: (0.0, 0.0)}
    rows = [
        sample(g, prompt_id=p, prompt=f"prompt {p:02}", reward=pair[g]) for p, pair in rewards.items() for g in (0, 1)
    ]
    html = page(tmp_path, samples=rows)
    heads = {head: html.index(f"<h3>{head}</h3>") for head in ("Most changed", "Best", "Worst")}
    assert heads["Most changed"] < html.index("prompt 20") < heads["Best"]
    assert heads["Best"] < html.index("prompt 17") < heads["Worst"] < html.index("prompt 21")
    assert html.count("prompt 00") == 1


def test_every_alarm_of_ours_is_explained() -> None:
    nan = (math.nan, math.nan)
    pair = Plan(4, 0.1, (Member(4, 0, 1), Member(4, 0, -1)))
    records = [
        Record(pair, 0.0, nan, (0.0, 0.0), (0,), None, {}),
        Record(pair, 0.0, (1.0, 1.0), (0.0, 0.0), (0,), None, {}),
        Record(pair, 0.0, (1.0, 0.0), (1.0, -1.0), (0,), None, {}, rollback_to=2),
    ]
    messages = [message for record in records for message in metrics.record_alarms(record)]
    messages += [limit.message.format(value=0.5, usual=0.1) for limit in metrics.LIMITS]
    messages += metrics.failure_alarms({"mine": 2}, 3)
    assert len(messages) == 4 + len(metrics.LIMITS)
    html = alarm_explanations.explained({"run": [{"generation": g, "alarms": [m]} for g, m in enumerate(messages, 1)]})
    assert "Note of the engine" not in html
    assert html.count("What to do.") == len(alarm_explanations.EXPLANATIONS)


def test_spans_of_generations() -> None:
    assert alarm_explanations.spans([3, 4, 5, 9]) == "generations 3–5, 9"
    assert alarm_explanations.spans([7]) == "generation 7"
    assert alarm_explanations.spans(range(0, 20, 2)) == "generations 0, 2, 4, 6, 8, 10 and 4 more spans"


def test_runs_are_compared_prompt_by_prompt_with_the_settings_that_differ(tmp_path: Path) -> None:
    first, second = (
        RunPaths(made_up_run(tmp_path / name / "run", generations=20, gain=gain))
        for name, gain in (("a", 0.4), ("b", 0.1))
    )
    second.config.write_text(second.config.read_text().replace("0.006", "0.012"))
    html = report.render(first, second)
    assert "run (1)" in html
    assert re.search(r"<td class=n>-0\.2\d+ \[-0\.", html)
    differing = html[html.index("Settings that differ") : html.index("All settings")]
    assert "<td>0.006</td><td>0.012</td>" in differing
    assert "countdown" not in differing


def test_folders_of_this_machine_are_not_named(tmp_path: Path) -> None:
    RunPaths(tmp_path).config.write_text(
        '{"model": "/my/own/models/tiny", "reward_funcs": ["/my/own/r.py:f"], "output_dir": "/my/own/out"}'
    )
    html = report.render(RunPaths(tmp_path))
    assert "/my/own" not in html
    assert "…/tiny" in html
    assert "…/r.py:f" in html


def test_every_chart_has_a_description_and_a_table(tmp_path: Path) -> None:
    html = report.render(RunPaths(made_up_run(tmp_path / "run", generations=30)))
    figures = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    assert len(figures) >= 15
    for figure in figures:
        assert re.search(
            r"<svg [^>]*role=img aria-labelledby=\"(\S+) (\S+)\"><title id=\1>[^<]+</title><desc id=\2>[^<]+<", figure
        )
        assert "<table>" in figure
    assert "members, mean ± standard deviation: from 0." in html


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours, #rgb or #rrggbb."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_have_the_contrast_of_aa_in_both_themes(theme: int) -> None:
    style = (Path(report.__file__).parent / "html_report/stylesheet.css").read_text()
    blocks = re.findall(r":root\{([^}]*)\}", style)
    colours = dict(re.findall(r"--([\w-]+):(#\w+)", blocks[theme]))
    for paper in ("paper", "card"):
        for ink in ("ink", "soft", "link"):
            assert contrast(colours[ink], colours[paper]) >= 4.5
        for place in range(6):
            assert contrast(colours[f"c{place}"], colours[paper]) >= 3
    assert contrast(colours["gone-ink"], colours["gone"]) >= 4.5
    assert contrast(colours["new-ink"], colours["new"]) >= 4.5
