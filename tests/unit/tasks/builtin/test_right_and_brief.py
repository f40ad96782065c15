"""Claims about the reward for right and brief answers, and about the questions of its task."""

from __future__ import annotations

import json
import time
from importlib.resources import files

import pytest

from seedtune import tasks
from seedtune.tasks.builtin.right_and_brief import (
    FREE,
    LONG,
    READ,
    RIGHT,
    WRONG,
    brevity,
    marks,
    right_and_brief,
    says,
    words,
)

DATA = files("seedtune") / "tasks" / "data"
SPLITS = ("train", "test")


def read(split: str) -> list[dict]:
    text = (DATA / f"right_and_brief_{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# ------------------------------------------------------------------------- right answers


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("Paris", ["Paris"]),
        ("The capital of France is Paris.", ["Paris"]),
        ("PARIS!", ["Paris"]),
        ('It is "paris", I think.', ["Paris"]),
        ("A spider has eight legs.", ["8"]),
        ("A spider has 8 legs.", ["eight"]),
        ("There are twenty-four hours.", ["24"]),
        ("There are twenty four hours.", ["24"]),
        ("Water boils at a hundred degrees.", ["100"]),
        ("One hundred.", ["100"]),
        ("Water boils at 100°C.", ["100"]),
        ("Water boils at 100.0 degrees.", ["100"]),
        ("It is 1,000.", ["1000"]),
        ("In 1990, 8 of them.", ["8"]),
        ("6,7,8", ["8"]),
        ("It is 8.", ["8"]),
        ("CO2, that is.", ["CO2"]),
        ("It is in New\nYork.", ["New York"]),
        ("Leonardo da Vinci painted it.", ["Leonardo", "da Vinci"]),
        ("\uff30aris", ["Paris"]),  # a full-width letter
        ("The sheep's wool.", ["sheep"]),
    ],
)
def test_an_answer_is_right_whatever_its_case_punctuation_and_spelling_of_numbers(text, answers):
    assert says(text, answers)
    assert marks(text, answers) == 1.0


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("Comparisons.", ["Paris"]),
        ("Parisian", ["Paris"]),
        ("York is new.", ["New York"]),
        ("108 legs", ["8"]),
        ("-18.0 degrees", ["0"]),
        ("8.5 legs", ["8"]),
        ("the 8th leg", ["8"]),
        ("1,008 legs", ["8"]),
        ("eighteen", ["8"]),
        ("twenty-eight", ["8"]),
        ("I do not know.", ["Paris"]),
        ("Pa ris", ["Paris"]),
        ("P_a_r_i_s", ["Paris"]),
    ],
)
def test_parts_of_words_and_of_numbers_are_not_the_answer(text, answers):
    assert not says(text, answers)
    assert 0 < marks(text, answers) <= WRONG


def test_number_words_become_digits():
    assert words("Twenty-four, sixty one; a hundred and ten, zero.") == ["24", "61", "100", "and", "10", "0"]
    assert words("twenty twenty") == ["20", "20"]
    assert words("seven hundred") == ["7", "100"]


# ------------------------------------------------------------------------------ marks


@pytest.mark.parametrize("text", ["", " ", "\n\t", ".", "?!", "___", "\u200b", "🙂"])
def test_an_empty_answer_gets_nothing(text):
    assert marks(text, ["Paris"]) == 0.0


def test_every_right_answer_is_worth_more_than_every_wrong_one():
    long_and_right = "Paris " + "and so on " * 100
    assert marks(long_and_right, ["Paris"]) == RIGHT > WRONG >= marks("Rome", ["Paris"])


def test_brevity_falls_from_a_short_sentence_to_a_long_text():
    lengths = [0, FREE, (FREE + LONG) // 2, LONG, 10 * LONG]
    assert [brevity("x" * (5 + extra), ["Paris"]) for extra in lengths] == [1.0, 1.0, 0.5, 0.0, 0.0]
    found = [marks("Paris" + "x " * (extra // 2), ["Paris"]) for extra in range(0, 2 * LONG, 10)]
    assert found == sorted(found, reverse=True)


def test_cutting_a_short_sentence_down_to_the_bare_answer_pays_nothing():
    assert marks("The capital of France is Paris.", ["Paris"]) == marks("Paris", ["Paris"]) == 1.0


def test_the_longest_spelling_of_the_answer_is_what_is_free():
    text = "x" * (FREE + len("carbon dioxide"))
    assert brevity(text, ["CO2", "carbon dioxide"]) == 1.0
    assert brevity(text, ["CO2"]) < 1.0


def test_the_reward_reads_text_and_messages():
    chat = [{"role": "assistant", "content": "Paris."}]
    assert right_and_brief(["Paris.", chat, ""], answers=[["Paris"]] * 3) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "text",
    [
        "Paris " * (READ // 6 + 1),
        "a" * 1_000_000,
        "one hundred " * 200_000,
        "twenty-" * 200_000,
        "_" * 1_000_000,
        "\ufdfa" * 100_000,
        "1" * 20_000,
        "1," * 10_000,
        "1.1" * 6_000,
        "111," * 5_000 + "x",
    ],
    ids=["too-long", "one-word", "hundreds", "tens", "no-words", "grows", "digits", "commas", "points", "thousands"],
)
def test_hostile_completions_take_no_time_and_are_not_right(text):
    started = time.process_time()
    assert marks(text, ["Paris"]) == 0.0
    assert time.process_time() - started < 10


def test_listing_every_gold_answer_of_the_task_is_not_brief():
    golds = " ".join(sorted({item["answers"][0] for item in read("test")}))
    assert {marks(golds, item["answers"]) for item in read("test")} == {RIGHT}


# ---------------------------------------------------------------------------- questions


def test_no_question_gives_its_answer_away():
    for split in SPLITS:
        for item in read(split):
            assert not says(item["question"], item["answers"]), item


def test_no_question_appears_twice_in_or_across_the_splits():
    questions = [" ".join(words(item["question"])) for split in SPLITS for item in read(split)]
    assert len(set(questions)) == len(questions) == 178 + 118


@pytest.mark.parametrize("split", SPLITS)
def test_every_line_is_a_question_with_spellings_of_its_answer(split):
    for item in read(split):
        assert list(item) == ["question", "answers"]
        assert item["question"].endswith("?")
        assert item["answers"]
        assert all(spelling.strip() == spelling and words(spelling) for spelling in item["answers"])


def test_every_spelling_gets_full_marks():
    task = tasks.create("right_and_brief")
    for example in (*task.train, *task.test):
        assert {marks(spelling, example.columns["answers"]) for spelling in example.columns["answers"]} == {1.0}
