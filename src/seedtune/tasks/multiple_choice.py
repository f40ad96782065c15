"""Multiple choice: sums, orders and odd ones out, made here; rows serve log-probability objectives as well."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from pydantic import Field

from seedtune.rewards.base import Reward
from seedtune.rewards.choices import LETTERS, choice_said, letter_right
from seedtune.tasks.base import Kind, Sizes, Task
from seedtune.tasks.data import examples
from seedtune.tasks.draws import Draws, Row, splits
from seedtune.types import Example

GROUPS = {
    "animals": ("horse", "cat", "whale", "eagle", "frog", "ant", "goat", "shark"),
    "colours": ("red", "blue", "green", "yellow", "purple", "white", "brown", "grey"),
    "fruits": ("apple", "pear", "banana", "cherry", "plum", "lemon", "grape", "mango"),
    "tools": ("hammer", "saw", "drill", "wrench", "chisel", "pliers", "screwdriver", "file"),
    "metals": ("iron", "copper", "gold", "silver", "zinc", "tin", "lead", "nickel"),
    "instruments": ("piano", "violin", "flute", "trumpet", "drum", "harp", "guitar", "cello"),
}
Question = tuple[str, str, list[str]]
"""What is asked, the right choice, and the wrong ones."""


class ChoiceSettings(Sizes):
    """How many choices there are."""

    choices: int = Field(default=4, ge=2, le=6)
    """Choices of a question."""


def multiple_choice(settings: ChoiceSettings) -> Task:
    """Questions with lettered choices; reward 1 for the right letter."""

    def make(draws: Draws) -> tuple[Hashable, Row] | None:
        return _row(draws, settings.choices)

    train, test = splits(make, settings, "multiple_choice")
    return Task(
        name="multiple_choice",
        train=examples(train, "train"),
        test=examples(test, "test"),
        rewards=(Reward("letter", letter_right),),
        gold=_gold,
        full_marks=1.0,
        answer=choice_said,
    )


def _gold(example: Example) -> str:
    return f"The answer is {example.columns['answer']}."


def _row(draws: Draws, count: int) -> tuple[Hashable, Row] | None:
    asked, right, wrong = draws.choice(KINDS)(draws, count)
    if len({right, *wrong}) < count:
        return None
    choices = draws.sample([right, *wrong], count)
    place = choices.index(right)
    listed = "\n".join(f"{LETTERS[index]}) {text}" for index, text in enumerate(choices))
    question = f"{asked}\n{listed}\nAnswer with the letter of the right choice."
    row = {"choices": choices, "answer_index": place, "answer": LETTERS[place]}
    return (asked, tuple(sorted(choices))), {"prompt": [{"role": "user", "content": question}], **row}


def _sum(draws: Draws, count: int) -> Question:
    a, b = draws.between(11, 99), draws.between(11, 99)
    offsets = draws.sample((-20, -10, -9, -2, -1, 1, 2, 9, 10, 20), count - 1)
    return f"What is {a} + {b}?", str(a + b), [str(a + b + offset) for offset in offsets]


def _product(draws: Draws, count: int) -> Question:
    a, b = draws.between(3, 12), draws.between(3, 12)
    offsets = draws.sample((-a, -b, -2, -1, 1, 2, a, b, 10), count - 1)
    return f"What is {a} × {b}?", str(a * b), [str(a * b + offset) for offset in offsets]


def _largest(draws: Draws, count: int) -> Question:
    numbers = [draws.between(100, 9999) for _ in range(count)]
    word, right = draws.choice((("largest", max(numbers)), ("smallest", min(numbers))))
    rest = [str(number) for number in numbers if number != right]
    return f"Which number is the {word}?", str(right), rest


def _odd_one_out(draws: Draws, count: int) -> Question:
    kind, other = draws.sample(tuple(GROUPS), 2)
    right, wrong = draws.choice(GROUPS[other]), draws.sample(GROUPS[kind], count - 1)
    return f"Which of these does not belong to the {kind}?", right, wrong


KINDS: tuple[Callable[[Draws, int], Question], ...] = (_sum, _product, _largest, _odd_one_out)


KIND = Kind(
    build=multiple_choice,
    settings=ChoiceSettings,
    what="sums, orders and odd ones out, by letter",
    reward="1 for the right letter",
    sizes=(2000, 200),
)
