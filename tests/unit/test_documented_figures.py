"""Measured figures of README.md and docs/ stand in the file of benchmarks/results that their passage names.

A passage is a paragraph, a list item or a row of a table; rows that name no file have those of the paragraph before
their table.  Code, targets of links and digits within a name (SmolLM2-135M) are not read.

1. If a passage names results, each of its numbers that has a unit or more than one digit stands in one of these files,
   to the digits shown: 12.3 % agrees with 12.29 and, as it is a percentage, with 0.1229.
2. In any other passage a sentence with a number and a unit names a paper, or the passage names the test that measures
   it, or `NOT_MEASURED` says why it is no measurement.

The first rule compares numbers and not what they mean: a wrong one may pass if it stands elsewhere in the same file.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import documents

NUMBER = r"(?<![\w.])(?<!\w-)[-+−]?\d+(?:,\d{3})*(?:\.\d+)?"
UNIT = r"\s?%|×(?!\s?\d)|\s(?:[mµ]?s|min|h|kB|[MG]i?B|GFLOP/s|tokens/s|seconds?|minutes?|hours?|times)(?![\w/])"
FIGURE = re.compile(rf"({NUMBER})(?=(?:\s?[–±]\s?[\d.]+)?({UNIT})|)")
IN_WORDS = re.compile(r"\b(?:two|three|four|five|six|seven|eight|nine|ten|twenty|thirty)\s(?:second|minute|hour)s")
BEGINS = re.compile(r"^(?=\||\s*(?:[*-]|\d+\.)\s)", re.M)
RESULTS = re.compile(r"benchmarks/results/[\w/-]+\.md")
TEST = re.compile(r"tests/[\w/]+\.py")
PAPER = re.compile(r"arXiv|\b[Tt]he paper(?:'s)? (?!loop)")
UNREAD = re.compile(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->|(?<=arXiv )[\d.]+", re.S)

NOT_MEASURED = {
    "95 %": "the level of the intervals",
    "3.5 times shorter": "follows from the definition of ranks: 1/√12 against 1",
    "5 % of the rollouts": "a limit: `COST` in strategies/watch.py",
    "2.2 % a generation": "a constant: `RECOVERY` in strategies/step_size.py",
    "(70 %)": "the default of an option",
    "0.8 ms a layer": "an assumption: `LAUNCH` in planning/accelerators.py",
    "at the least 30 s": "a limit of the report",
    "60 s at most": "a limit of the judge",
    "it has 30 seconds": "a limit of trackers",
}
"""Numbers with a unit that are no measurements, and what they are instead."""


class Passage(NamedTuple):
    """A paragraph, list item or row without what is not read, and the results and tests that it names."""

    text: str
    results: list[str]
    tests: list[str]


def passages(text: str) -> Iterator[Passage]:
    """Yield the passages of a page, without rows that define a setting or a metric."""
    above = Passage("", [], [])
    for block in re.split(r"\n\s*\n", text):
        for part in filter(str.strip, BEGINS.split(block)):
            found = Passage(UNREAD.sub(" ", part), RESULTS.findall(part), TEST.findall(part))
            if part.startswith("|") and not (found.results or found.tests):
                found = above._replace(text=found.text)
            if found.results or not part.startswith("| `"):
                yield found
        above = above if block.startswith("|") else found


def figures(text: str) -> list[tuple[str, str]]:
    """Return the numbers of a text, and the unit of each or nothing."""
    return [(number.replace("−", "-").replace(",", ""), unit.strip()) for number, unit in FIGURE.findall(text)]


def agrees(figure: str, unit: str, known: Sequence[float]) -> bool:
    """Whether a number is one of those known, to the digits shown."""
    half = 0.5 * 10.0 ** -len(figure.partition(".")[2]) + 1e-9
    same = [*known, *(100 * one for one in known if unit == "%")]
    return any(abs(float(figure) - one) <= half for one in same)


def wrong(passage: Passage, root: Path) -> Iterator[str]:
    """Yield the numbers of a passage that its results do not have."""
    known = [float(one) for file in passage.results for one, _ in figures((root / file).read_text(encoding="utf-8"))]
    for figure, unit in figures(passage.text):
        if (unit or len(figure.lstrip("+-")) > 1) and not agrees(figure, unit, known):
            yield f"{figure} {unit}".strip()


def unfounded(passage: Passage) -> Iterator[str]:
    """Yield the sentences with a figure that has no source."""
    for sentence in re.split(r"(?<=[.;:?])\s+", re.sub(r"\s+", " ", passage.text)):
        exempt = PAPER.search(sentence) or any(phrase in sentence for phrase in NOT_MEASURED)
        if not exempt and (IN_WORDS.search(sentence) or any(unit for _, unit in figures(sentence))):
            yield sentence.strip()


def complaints(text: str, root: Path = documents.ROOT) -> list[str]:
    """Return the figures of a page that are wrong or have no source."""
    found = list(passages(text))
    cited = [figure for one in found if one.results for figure in wrong(one, root)]
    return cited + [sentence for one in found if not (one.results or one.tests) for sentence in unfounded(one)]


@pytest.mark.parametrize("page", documents.pages())
def test_every_figure_of_a_page_stands_in_the_results_that_it_names(page):
    assert complaints(documents.prose(page)) == []


def test_no_exception_is_left_over():
    text = " ".join(re.sub(r"\s+", " ", UNREAD.sub(" ", documents.prose(page))) for page in documents.pages())
    assert [phrase for phrase in NOT_MEASURED if phrase not in text] == []


LINKED = "(`benchmarks/results/x.md`)"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"12.3 % right, 1.0 times, 3–4 GB, 1,980 rollouts, −0.5 {LINKED}", []),
        (f"12.4 % right, 5–6 GB, 1,981 rollouts, 0.5 {LINKED}", ["12.4 %", "5 GB", "6 GB", "1981", "0.5"]),
        (f"a model of 135M weights, SmolLM2-77M: 3.05× {LINKED}", ["135", "3.05 ×"]),
        (f"Measured {LINKED}:\n\n| what | ratio |\n| --- | --- |\n| a | 1.04 |\n| b | 1.05 |", ["1.05"]),
        (f"| a | 1.04 | [x](../benchmarks/results/x.md) |\n| `b` | 77 | {LINKED} |", ["77"]),
        ("It takes 3 s. It takes 5 of them.", ["It takes 3 s."]),
        ("* It takes 40 % less\n* and three minutes", ["* It takes 40 % less", "* and three minutes"]),
        ("| speed | 30 tokens/s |", ["| speed | 30 tokens/s |"]),
        ("It is 30 times as fast as the paper's loop", ["It is 30 times as fast as the paper's loop"]),
        ("The paper reports 60.5 % of puzzles. It takes 3 s (`tests/unit/test_types.py`).", []),
        ("| `timeout` | 900 s |\n\nA 95 % interval; 4 × 4 cells; `sleep 3 s`", []),
    ],
)
def test_a_wrong_figure_and_one_without_a_source_are_found(text, found, tmp_path):
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/x.md").write_text("share 0.1229, ratio 1.04, 3.08× as fast, 1,980; 4 GB; -0.5")
    assert complaints(text, tmp_path) == found


def test_the_table_of_adding_and_subtracting_noise_is_what_its_script_prints():
    page = "docs/concepts/evolution-strategies.md"
    (script,) = [block.text for block in documents.blocks(page) if "rms drift" in block.text]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(script, page, "exec"), {})
    rows = re.findall(r"^\| (\d+) .*\| ([\d.]+) % \| (\S+) \|$", documents.prose(page), re.M)
    lines = re.findall(r"(\d+) cycles: ([\d.]+)% .* drift (\S+)", printed.getvalue())
    assert [(cycles, float(drift)) for cycles, _, drift in rows] == [
        (cycles, float(drift)) for cycles, _, drift in lines
    ]
    assert all(agrees(row[1], "", [float(line[1])]) for row, line in zip(rows, lines, strict=True))
