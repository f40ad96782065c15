"""Statistics of answers, and the alarms when they leave the base model's."""

from __future__ import annotations

import pytest

from seedtune.run import directory
from seedtune.run.metrics import limit_alarms
from seedtune.run.reward_hacking.monitor import RewardHackingMonitor, distance, novelty, scripts, text_statistics
from seedtune.types import UNPERTURBED, Rollout

ENGLISH = [
    "The river runs through the old town and under three bridges before it meets the sea.",
    "Water boils at one hundred degrees where the air is as heavy as it is near the sea.",
    "Three of the bridges were built before the town had a harbour of its own.",
    "The town is old, and the harbour under the bridges is where the boats are built.",
]
RUSSIAN = ["Река течёт через старый город и впадает в море."] * 4
NOISE = ["qzxv wkjp vbxz qpwk zzvx jkqw xvbq pzkw", "wqxz kvjb xpqz vwkj bzxq"] * 2


# ------------------------------------------------------------------------ statistics


def test_scripts_are_shares_of_letters_and_nothing_else_counts():
    assert scripts(["ab 12!", "яю", "中"]) == {"CJK": 0.2, "CYRILLIC": 0.4, "LATIN": 0.4}
    assert scripts(["12 !?", ""]) == {}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"LATIN": 1.0}, {"LATIN": 1.0}, 0.0),
        ({"LATIN": 1.0}, {"CJK": 1.0}, 1.0),
        ({"LATIN": 0.5, "CJK": 0.5}, {"LATIN": 1.0}, 0.5),
        ({}, {"LATIN": 1.0}, None),
    ],
)
def test_the_distance_of_scripts_is_total_variation(one, other, expected):
    assert distance(one, other) == distance(other, one) == expected


def test_novelty_tells_the_same_language_from_noise_at_any_length():
    base = text_statistics(ENGLISH * 2)
    assert novelty(text_statistics(ENGLISH), base) == pytest.approx(0.0)
    assert novelty(text_statistics(["the sea", "three old bridges"]), base) < 0.2
    assert novelty(text_statistics(NOISE), base) > 0.9
    assert novelty(text_statistics(["12 + 3"]), base) is None


def test_what_only_one_base_answer_has_is_no_novelty():
    base = text_statistics(["alpha", "beta", "gamma", "delta"])
    assert base.lonely == 1.0
    assert novelty(text_statistics(["omega"]), base) == 0.0


def test_a_profile_counts_characters_and_silence():
    found = text_statistics(["", " \n", "abcd", "ab"])
    assert (found.characters, found.empty) == (2.0, 0.5)


# ---------------------------------------------------------------------------- monitor


def said(*texts: str) -> list[Rollout]:
    return [Rollout(0, UNPERTURBED, i, 0, text, (1,) * len(text), 1, "stop") for i, text in enumerate(texts)]


@pytest.fixture
def monitor(tmp_path) -> RewardHackingMonitor:
    path = tmp_path / "samples.jsonl"
    rows = [{"generation": 0, "split": "test", "completion": text} for text in ENGLISH]
    rows += [{"generation": 1, "split": "train", "completion": text} for text in ENGLISH]
    rows += [{"generation": g, "split": split, "completion": "я"} for g, split in ((2, "train"), (1, "test"))]
    directory.append_lines(path, [{"prompt_id": 0, "prompt": "?", "reward": None, **row} for row in rows])
    return RewardHackingMonitor(path)


def alarms(monitor: RewardHackingMonitor, found: dict) -> list[str]:
    return limit_alarms(found, monitor.usual)


def test_the_base_models_answers_are_those_before_the_first_update(monitor):
    assert monitor.base == text_statistics(ENGLISH * 2)


def test_answers_like_the_base_models_raise_no_alarm(monitor):
    found = monitor.metrics(said(*ENGLISH))
    assert found == {
        "completions/empty_ratio": 0.0,
        "completions/length_change": 1.0,
        "completions/language_shift": 0.0,
        "completions/novelty": pytest.approx(0.0),
    }
    assert alarms(monitor, found) == []


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["", "", *ENGLISH[:2]], ["50% of the answers are empty"]),
        ([" ".join(ENGLISH * 4)], ["times as long as the base model's"]),
        (["Sea."] * 3, ["5% of the length of the base model's"]),
        (RUSSIAN, ["100% of the letters are in other scripts", "letter triples"]),
        (NOISE, ["letter triples"]),
    ],
    ids=["empty", "long", "short", "script", "noise"],
)
def test_what_looks_gamed_is_an_alarm_that_says_what_to_do(monitor, texts, words):
    found = alarms(monitor, monitor.metrics(said(*texts)))
    assert len(found) == len(words)
    assert all(word in alarm for word, alarm in zip(words, found, strict=True))
    assert all(any(verb in alarm for verb in ("Make", "take it out", "Let", "Lower")) for alarm in found)


def test_a_divergence_is_an_alarm_where_it_was_measured(monitor):
    calm = monitor.metrics(said(*ENGLISH))
    assert alarms(monitor, {**calm, "kl": 0.8}) == alarms(monitor, {**calm, "kl": None}) == []
    (alarm,) = alarms(monitor, {**calm, "kl": 2.5})
    assert "2.5 nats a token" in alarm
    assert "anchor_l2" in alarm


def test_without_answers_of_the_base_model_only_silence_is_known(tmp_path):
    monitor = RewardHackingMonitor(tmp_path / "none.jsonl")
    found = monitor.metrics(said("", "x"))
    assert found.pop("completions/empty_ratio") == 0.5
    assert set(found.values()) == {None}
    assert len(alarms(monitor, monitor.metrics(said("", "x")))) == 1
