"""Answers of a run before and after training: the best, the worst and the most changed, with differences marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seedtune.evaluation import comparison
from seedtune.evaluation.comparison import DiffPiece
from seedtune.evaluation.html_report.markup import details, escaped, known, number, section

Row = Mapping[str, Any]
Pair = tuple[Row, Row]

EACH, FURTHER = 3, 30
"""Answers in each group, and further ones that open on demand."""

BEGINNING, END = 1600, 800
"""Characters of a text that are shown where it is longer than both."""


def prompt_text(prompt: Any) -> str:
    """Return a prompt as a string: its text, or the last user message."""
    if isinstance(prompt, str):
        return prompt
    users = [message["content"] for message in prompt if message.get("role") == "user"]
    return str(users[-1] if users else prompt[-1]["content"])


def answers(pairs: Sequence[Pair]) -> str:
    """Render chosen pairs of answers to the same prompts, before and after; "" without any."""
    groups, taken = _groups(pairs), set[int]()
    parts = []
    for heading, chosen in groups.items():
        fresh = [place for place in chosen if place not in taken][:EACH]
        taken |= set(fresh)
        parts += [f"<h3>{heading}</h3>", *(_pair(*pairs[place]) for place in fresh)] if fresh else []
    rest = [place for place in range(len(pairs)) if place not in taken][:FURTHER]
    left = len(pairs) - len(taken) - len(rest)
    note = f"<p>{left:,} more: seedtune samples RUN --limit 0</p>" if left else ""
    further = "".join(_pair(*pairs[place]) for place in rest) + note
    return section(
        "answers", "Held-out answers", *parts, details(f"{len(rest)} further answers", further if rest else "")
    )


def _groups(pairs: Sequence[Pair]) -> dict[str, list[int]]:
    """Order the places of pairs for each group: best first, and so on."""
    places = range(len(pairs))
    after = [known(pair[1]["reward"]) for pair in pairs]
    gains = [_gain(*pair) for pair in pairs]
    scored = [place for place in places if after[place] is not None]
    moved = [place for place in places if gains[place]]
    differing = [place for place in moved if pairs[place][0]["completion"] != pairs[place][1]["completion"]]
    return {
        "Most changed": sorted(differing, key=lambda place: -abs(gains[place])),
        "Best": sorted(scored, key=lambda place: -(after[place] or 0.0)),
        "Worst": sorted(scored, key=lambda place: after[place] or 0.0),
    }


def _gain(before: Row, after: Row) -> float:
    old, new = known(before["reward"]), known(after["reward"])
    return 0.0 if old is None or new is None else new - old


def _pair(before: Row, after: Row) -> str:
    old, new = comparison.marked(*(_shortened(str(row["completion"])) for row in (before, after)))
    prompt = escaped(_shortened(prompt_text(before["prompt"])))
    return (
        f"<article class=pair><p class=prompt><b>prompt</b> {prompt}</p>"
        f"<div class=both>{_answer(before, old, 'del')}{_answer(after, new, 'ins')}</div></article>"
    )


def _answer(row: Row, pieces: Sequence[DiffPiece], tag: str) -> str:
    text = "".join(f"<{tag}>{escaped(piece)}</{tag}>" if differs else escaped(piece) for piece, differs in pieces)
    head = f"generation {row['generation']}, reward {number(row['reward'])}"
    return f"<div><p class=soft>{head}</p><div class=text>{text or '<i>empty</i>'}</div></div>"


def _shortened(text: str) -> str:
    if len(text) <= BEGINNING + END:
        return text
    return f"{text[:BEGINNING]}\n[… {len(text) - BEGINNING - END:,} characters …]\n{text[-END:]}"
