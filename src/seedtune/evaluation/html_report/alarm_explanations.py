"""The alarms of a run by kind: when they were raised, what each means, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from seedtune.evaluation.html_report.markup import escaped

Row = Mapping[str, Any]


class Explanation(NamedTuple):
    """A kind of alarm: words that its messages have, its name, what it means, and what to do."""

    pattern: str
    name: str
    meaning: str
    advice: str


EXPLANATIONS = (
    Explanation(
        "hit max_completion_length",
        "Answers cut off",
        "Most completions end at the length limit. A cut answer has often not come to its point, so rewards see "
        "beginnings, and long and short answers can no longer be told apart.",
        "Raise max_completion_length, or reward shorter answers.",
    ),
    Explanation(
        "equal another member's",
        "Members answer alike",
        "Most members give the same text for a prompt. Members that answer alike have the same reward, and tell "
        "nothing about the direction of the step.",
        "Raise sigma, unless the task has only few possible answers.",
    ),
    Explanation(
        "end in a repetition",
        "Answers repeat themselves",
        "Many completions loop. If the base model did not loop, perturbations or steps have damaged the model.",
        "Lower sigma and alpha; go back to an earlier generation with seedtune export --generation.",
    ),
    Explanation(
        "of the answers are empty",
        "Empty answers",
        "The model has begun to say nothing. This happens where silence costs less than a wrong answer.",
        "Give an empty answer the lowest reward there is, or lower sigma and alpha if the reward has fallen, too.",
    ),
    Explanation(
        "times as long as|of the length of",
        "Length of answers",
        "Answers have become much longer or shorter than the base model's. A reward often pays for length by accident.",
        "Read answers with seedtune inspect, and take length out of the reward if it should not count.",
    ),
    Explanation(
        "in other scripts",
        "Another language",
        "Letters come from other scripts than the base model's: the model may have changed its language.",
        "Let the reward check the language, or hold on to the base model with anchor_l2.",
    ),
    Explanation(
        "letter triples",
        "Unusual letters",
        "Words have become unlike the base model's: another language, or noise from weights that moved too far.",
        "Lower sigma and alpha, or let the reward check the words. Read answers with seedtune inspect.",
    ),
    Explanation(
        "nats a token away",
        "Far from the base model",
        "The model's answers have become improbable for the base model. Other skills may suffer.",
        "Watch other tasks with eval_tasks, hold on to the base model with anchor_l2, or take smaller steps.",
    ),
    Explanation(
        "no member could be scored",
        "No rewards",
        "No completion of the generation has a reward, so the model did not change.",
        "Check the reward function, and failures.jsonl in the run's folder.",
    ),
    Explanation(
        "all members have the same reward",
        "All members tie",
        "All members have the same reward, so there was no direction to go, and the model did not change.",
        "Raise sigma, use more prompts a generation, or a reward with finer steps.",
    ),
    Explanation(
        "watched prompts fell",
        "Fall and rollback",
        "The unperturbed model's rewards on the watched prompts fell. The run went back to its best generation, and "
        "goes on with half the step.",
        "Nothing, if it happens once. If it happens again, lower sigma.",
    ),
    Explanation(
        "reward function .* failed",
        "A reward function failed",
        "The function raised an error, crashed, hung or returned no number. These completions have no reward from it.",
        "Read failures.jsonl in the run's folder, which has the completions and the errors.",
    ),
)


@dataclass
class _Found:
    generations: list[int] = field(default_factory=list)
    last: str = ""


def explained(runs: Mapping[str, Sequence[Row]]) -> str:
    """Render the alarms of runs (name → rows with ``alarms``) by kind."""
    return "".join(_of_run(name if len(runs) > 1 else "", rows) for name, rows in runs.items()) or (
        "<p>No alarm was raised.</p>"
    )


def count(rows: Iterable[Row]) -> int:
    """Count the generations that raised an alarm."""
    return sum(bool(row.get("alarms")) for row in rows)


def _of_run(name: str, rows: Sequence[Row]) -> str:
    found: dict[Explanation | str, _Found] = {}
    for row in rows:
        for message in row.get("alarms", ()):
            entry = found.setdefault(_kind(message), _Found())
            entry.generations.append(row["generation"])
            entry.last = message
    items = "".join(_item(kind, entry) for kind, entry in list(found.items())[: 2 * len(EXPLANATIONS)])
    heading = f"<h3>{escaped(name)}</h3>" if name and items else ""
    return f"{heading}<ul class=alarms>{items}</ul>" if items else ""


def _kind(message: str) -> Explanation | str:
    """Return the explanation of an alarm; other notes of an engine stand for themselves, apart from their numbers."""
    fitting = (one for one in EXPLANATIONS if re.search(one.pattern, message, re.DOTALL))
    return next(fitting, re.sub(r"\d+", "…", message[:200]))


def _item(kind: Explanation | str, found: _Found) -> str:
    where, last = spans(found.generations), escaped(found.last[:1000])
    if isinstance(kind, str):
        return f"<li><h4>Note of the engine</h4><p class=soft>{where}</p><p>{last}</p></li>"
    return (
        f"<li><h4>{escaped(kind.name)}</h4><p class=soft>{where}</p><p>Last message: {last}</p>"
        f"<p><b>What it means.</b> {escaped(kind.meaning)}</p><p><b>What to do.</b> {escaped(kind.advice)}</p></li>"
    )


def spans(generations: Sequence[int]) -> str:
    """Format generations as ``generations 3–9, 12``, at most six spans."""
    runs: list[list[int]] = []
    for generation in sorted(set(generations)):
        if runs and generation == runs[-1][1] + 1:
            runs[-1][1] = generation
        else:
            runs.append([generation, generation])
    shown = [f"{first}" if first == last else f"{first}–{last}" for first, last in runs[:6]]
    more = f" and {len(runs) - 6} more spans" if len(runs) > 6 else ""
    return f"generation{'s' if len(set(generations)) > 1 else ''} {', '.join(shown)}{more}"
