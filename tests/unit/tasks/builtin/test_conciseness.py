"""Claims about the question-answer pairs of the conciseness task."""

import json
from difflib import SequenceMatcher
from importlib.resources import files

import pytest

DATA = files("seedtune") / "tasks" / "data"
SIZES = {"train": 32, "test": 96}
SPLITS = sorted(SIZES)


def read(split: str) -> list[dict[str, str]]:
    text = (DATA / f"conciseness_{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def words(question: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in question.casefold()).split())


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_its_fixed_number_of_items(split):
    assert len(read(split)) == SIZES[split]


@pytest.mark.parametrize("split", SPLITS)
def test_every_line_is_an_object_with_a_question_and_an_answer_in_text(split):
    for item in read(split):
        assert list(item) == ["question", "answer"]
        assert all(isinstance(value, str) and value == value.strip() for value in item.values())


@pytest.mark.parametrize("split", SPLITS)
def test_files_end_with_one_newline_and_have_no_empty_line(split):
    lines = (DATA / f"conciseness_{split}.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    assert all(lines)


@pytest.mark.parametrize("split", SPLITS)
def test_questions_are_short_and_end_as_sentences(split):
    for item in read(split):
        assert 20 <= len(item["question"]) <= 110, item
        assert item["question"].endswith(("?", ".")), item


@pytest.mark.parametrize("split", SPLITS)
def test_ideal_answers_are_very_short(split):
    for item in read(split):
        assert 1 <= len(item["answer"]) <= 20, item


@pytest.mark.parametrize("split", SPLITS)
def test_answer_lengths_vary_so_that_one_length_does_not_fit_all(split):
    lengths = [len(item["answer"]) for item in read(split)]
    assert min(lengths) == 1
    assert max(lengths) >= 17
    assert len(set(lengths)) >= 10


@pytest.mark.parametrize("split", SPLITS)
def test_questions_start_in_many_ways(split):
    assert len({words(item["question"]).split()[0] for item in read(split)}) >= 6


def test_no_question_appears_twice_in_or_across_the_splits():
    questions = [words(item["question"]) for split in SPLITS for item in read(split)]
    assert len(set(questions)) == len(questions)


def test_no_test_question_is_nearly_a_training_question():
    train = [words(item["question"]) for item in read("train")]
    for item in read("test"):
        question = words(item["question"])
        nearest = max(train, key=lambda other: SequenceMatcher(None, other, question).ratio())
        assert SequenceMatcher(None, nearest, question).ratio() < 0.8, (nearest, question)
