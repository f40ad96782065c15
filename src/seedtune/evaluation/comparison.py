"""Comparison of a run's first and last held-out completions, paired by prompt."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import numpy as np

from seedtune.evaluation.estimators import Estimate, bootstrap
from seedtune.run import directory, metrics
from seedtune.run.directory import RunPaths

Row = Mapping[str, Any]

SHARES = ("right answers", "empty answers", "cut off at the limit")
"""Measures that are shares of completions."""


@dataclass(frozen=True, slots=True)
class Change:
    """A measure before and after training, and the paired difference, each with its 95 % interval."""

    measure: str
    before: Estimate
    after: Estimate
    difference: Estimate

    @property
    def cells(self) -> tuple[str, str, str]:
        """The three estimates as text, shares in per cent."""
        plain, signed = (_per_cent, _signed_per_cent) if self.measure in SHARES else ("{:.4g}".format, "{:+.4g}".format)
        return self.before.text(plain), self.after.text(plain), self.difference.text(signed)


def _per_cent(share: float) -> str:
    return f"{100 * share + 0.0:.1f} %"


def _signed_per_cent(share: float) -> str:
    return f"{100 * share + 0.0:+.1f} %"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The first and the last evaluation of a run: generations, number of prompts, and every measure."""

    generations: tuple[int, int]
    prompts: int
    changes: tuple[Change, ...]


def evaluations(paths: RunPaths) -> tuple[list[Row], list[Row]]:
    """Return the held-out completions of the first and of the last evaluation, which may be the same one.

    If the run chose an earlier model than its last one, that one's evaluation is the last.
    """
    rows = _held_out(paths)
    first, last = (limit((row["generation"] for row in rows), default=0) for limit in (min, max))
    ends = {row["generation"]: row["chosen"] for row in directory.read_lines(paths.metrics) if "chosen" in row}
    last = ends.get(last, last)
    return [row for row in rows if row["generation"] == first], [row for row in rows if row["generation"] == last]


def rewards_of(paths: RunPaths) -> dict[int, dict[int, float | None]]:
    """Return every evaluation's mean reward of each held-out prompt by its id; None where there is none."""
    found: dict[int, dict[int, list[float]]] = {}
    for row in _held_out(paths):
        found.setdefault(row["generation"], {}).setdefault(row["prompt_id"], []).append(_measures(row)["reward"])
    return {
        generation: {prompt: metrics.mean(rewards) for prompt, rewards in prompts.items()}
        for generation, prompts in found.items()
    }


def _held_out(paths: RunPaths) -> list[Row]:
    return [row for row in directory.read_lines(paths.samples) if row.get("split") == "test"]


def pairs(paths: RunPaths) -> list[tuple[Row, Row]]:
    """Return a completion of the first and of the last evaluation for every prompt of both."""
    before, after = ({row["prompt_id"]: row for row in rows} for rows in evaluations(paths))
    return [(before[key], after[key]) for key in sorted(before) if key in after]


def holds_nothing_out(paths: RunPaths) -> bool:
    """Whether a run has trained without a held-out evaluation: the first one comes before the first generation."""
    rows = directory.read_lines(paths.metrics)
    return any("reward" in row for row in rows) and not any("eval_reward" in row for row in rows)


def compare(paths: RunPaths) -> Comparison | None:
    """Compare the first held-out evaluation with the last one; None unless there are two."""
    first, last = evaluations(paths)
    before, after = _by_prompt(first), _by_prompt(last)
    shared = sorted(before.keys() & after.keys())
    if not shared or first == last:
        return None
    names = [name for name in before[shared[0]] if all(name in side[key] for side in (before, after) for key in shared)]
    pair = [np.array([[side[key][name] for name in names] for key in shared], np.float64) for side in (before, after)]
    estimates = bootstrap(np.concatenate([*pair, pair[1] - pair[0]], axis=1))
    changes = [Change(name, *estimates[place :: len(names)]) for place, name in enumerate(names)]
    return Comparison((first[0]["generation"], last[0]["generation"]), len(shared), tuple(changes))


def last_alarms(paths: RunPaths) -> list[str]:
    """Return the alarms of the last generation."""
    generations = [row for row in directory.read_lines(paths.metrics) if "reward" in row]
    return list(generations[-1].get("alarms", ())) if generations else []


def _by_prompt(rows: Sequence[Row]) -> dict[int, dict[str, float | None]]:
    """Map prompt → measure → mean over the prompt's completions; None where there is none."""
    groups: dict[int, list[dict[str, float]]] = {}
    for row in rows:
        groups.setdefault(row["prompt_id"], []).append(_measures(row))
    return {
        prompt: {name: metrics.mean([one[name] for one in found]) for name in found[0]}
        for prompt, found in groups.items()
    }


def _measures(row: Row) -> dict[str, float]:
    text = str(row["completion"]).strip()
    right = {} if row.get("right") is None else {"right answers": float(row["right"])}
    looks = {"empty answers": float(not text), "cut off at the limit": float(row.get("finish") == "length")}
    reward = math.nan if row["reward"] is None or not math.isfinite(row["reward"]) else row["reward"]
    return {**right, "reward": reward, "characters": float(len(text)), **looks}


class DiffPiece(NamedTuple):
    """A piece of a completion, and whether the other completion lacks it."""

    text: str
    differs: bool


COMPARED = 1_000_000
"""Most pairs of words of two completions that are compared word by word, which takes a second."""


def marked(before: str, after: str) -> tuple[list[DiffPiece], list[DiffPiece]]:
    """Split both completions into pieces of whole words, and mark the pieces that the other one lacks."""
    left, right = (re.findall(r"\s*\S+", text.rstrip()) for text in (before, after))
    if len(left) * len(right) > COMPARED:
        return [DiffPiece(before, before != after)], [DiffPiece(after, before != after)]
    blocks = SequenceMatcher(None, [w.strip() for w in left], [w.strip() for w in right], autojunk=False)
    codes = blocks.get_opcodes()
    return (
        list(_pieces(before, left, {range(start, end): tag != "equal" for tag, start, end, _, _ in codes})),
        list(_pieces(after, right, {range(start, end): tag != "equal" for tag, _, _, start, end in codes})),
    )


def _pieces(text: str, words: Sequence[str], spans: Mapping[range, bool]) -> Iterator[DiffPiece]:
    """Yield pieces that make up the whole text: spans of words that differ or not, and the white space at its end."""
    for span, differs in spans.items():
        if span:
            yield DiffPiece("".join(words[span.start : span.stop]), differs)
    rest = text[sum(map(len, words)) :]
    if rest:
        yield DiffPiece(rest, False)
