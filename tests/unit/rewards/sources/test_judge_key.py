"""The key of an HTTP judge, which no file, message or log holds."""

from __future__ import annotations

import json
import logging
import traceback

import pytest

from judges import chat, serving
from seedtune.config.config import Config
from seedtune.config.data_and_rewards import JudgeSettings
from seedtune.errors import ConfigError
from seedtune.rewards.sources import build
from seedtune.rewards.sources.judge import Judge

KEY = "sk-verysecret-0123456789"


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr("seedtune.rewards.sources.judge.BACKOFF", 0.01)


def test_the_key_goes_into_its_header_and_nowhere_else(monkeypatch, caplog, capfd, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    echoes = (401, f"Incorrect API key provided: {KEY}", {"X-Key": KEY, "WWW-Authenticate": KEY})
    with serving(echoes, (500, KEY), (200, KEY), chat(f"{KEY}")) as server:
        settings = {"base_url": server.address, "api_key_env": "JUDGE_KEY", "retries": 1}
        config = Config.create({"train_dataset": "x.jsonl", "reward_funcs": [{"judge": settings}]})
        (reward,) = build.build(config, [])
        for _ in range(3):
            reward.function(["p"], ["c"])
    assert all(request["headers"]["Authorization"] == f"Bearer {KEY}" for request in server.requests)
    texts = [
        caplog.text,
        *capfd.readouterr(),
        repr(reward),
        repr(config),
        str(config.model_dump()),
        str(config.identity()),
    ]
    assert not any(KEY in text for text in texts)
    assert not any(KEY in json.dumps(request["body"]) for request in server.requests)


def test_a_missing_or_broken_key_is_told_without_repeating_it(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    settings = JudgeSettings(api_key_env="JUDGE_KEY")
    with pytest.raises(ConfigError, match="api_key_env='JUDGE_KEY': there is no such environment variable"):
        Judge(settings)
    for broken in (f"{KEY}\nX-Evil: 1", f"{KEY} {KEY}", f"{KEY}é"):
        monkeypatch.setenv("JUDGE_KEY", broken)
        with pytest.raises(ConfigError, match="holds more than a key") as caught:
            Judge(settings)
        assert KEY not in "".join(traceback.format_exception(caught.value))


def test_a_password_in_the_address_is_refused_without_repeating_it():
    with pytest.raises(ConfigError, match="holds a name, password or key") as caught:
        Judge(JudgeSettings(base_url=f"https://me:{KEY}@example.com/v1"))
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("query", ["key=sk-1", "v=1&api_key=sk-1", "access_token=sk-1"])
def test_a_key_in_the_address_is_refused_without_repeating_it(query):
    with pytest.raises(ConfigError, match="holds a name, password or key") as caught:
        Judge(JudgeSettings(base_url=f"https://judge.example/score?{query}", kind="reward"))
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "is_logged"),
    [
        ("http://judge.example/v1", True),
        ("http://10.0.0.7:8000/v1", True),
        ("http://localhost.evil.example/v1", True),
        ("http://127.evil.example/v1", True),
        ("https://judge.example/v1", False),
        ("http://localhost:8000/v1", False),
        ("http://127.0.0.1:8000/v1", False),
        ("http://[::1]:8000/v1", False),
    ],
)
def test_a_key_that_leaves_this_machine_unencrypted_is_told(address, is_logged, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    Judge(JudgeSettings(base_url=address, api_key_env="JUDGE_KEY"))
    assert ("goes over the network unencrypted" in caplog.text) == is_logged
    assert KEY not in caplog.text
    caplog.clear()
    Judge(JudgeSettings(base_url=address))
    assert caplog.text == ""
