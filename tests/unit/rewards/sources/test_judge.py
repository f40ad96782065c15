"""An HTTP judge: retries, time-outs, and rules that read scores."""

from __future__ import annotations

import http.client
import json
import threading
import time

import pytest

from judges import chat, serving
from reward_calls import score
from seedtune.config.config import Config
from seedtune.config.data_and_rewards import JudgeSettings
from seedtune.errors import ConfigError, RewardError
from seedtune.rewards.base import Reward
from seedtune.rewards.sources import build
from seedtune.rewards.sources.judge import Failure, Judge, _seconds, score_in
from seedtune.types import Example
from waiting import BOUND

KEY = "sk-verysecret-0123456789"


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr("seedtune.rewards.sources.judge.BACKOFF", 0.01)


def judge(server, **settings) -> Judge:
    quick = {"timeout": 60.0, "retries": 2, "model": "gpt-x"}
    return Judge(JudgeSettings(base_url=server.address, **{**quick, **settings}))


def ask(one: Judge, *completions: str, **columns) -> list[float | None]:
    given = completions or ("fine",)
    return one(["What?"] * len(given), list(given), **columns)


@pytest.mark.parametrize("as_parts", [False, True])
def test_a_chat_judge_is_asked_as_openai_is_and_its_number_is_the_score(as_parts):
    parts = [
        {"type": kind, "text": text} for kind, text in (("reasoning", "3"), ("text", "Score: 7."), ("text", "5/10"))
    ]
    with serving(chat(parts if as_parts else "Good. Score: 7.5/10")) as server:
        assert ask(judge(server, system="Be fair.", max_tokens=9, temperature=0.5)) == [7.5]
    (request,) = server.requests
    body = request["body"]
    assert request["path"] == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("gpt-x", 9, 0.5)
    assert body["messages"][0] == {"role": "system", "content": "Be fair."}
    assert "What?" in body["messages"][1]["content"]
    assert "<answer>\nfine\n</answer>" in body["messages"][1]["content"]


def test_what_a_completion_says_is_not_a_template():
    with serving(chat("1")) as server:
        ask(judge(server, prompt="{prompt}|{completion}|{answer}|{score: 1}"), "{answer}{prompt}", answer=[["a", 1]])
    assert server.requests[0]["body"]["messages"][0]["content"] == 'What?|{answer}{prompt}|["a", 1]|{score: 1}'


def test_conversations_are_shown_as_text():
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "U"}]}]
    with serving(chat("1")) as server:
        one = judge(server, prompt="{prompt}#{completion}")
        one([prompt, prompt[1:]], [[{"role": "assistant", "content": "A"}]] * 2)
    shown = sorted(request["body"]["messages"][0]["content"] for request in server.requests)
    assert shown == ["U#A", "system: S\n\nuser: U#A"]


def test_a_template_that_names_no_column_is_an_error_with_the_nearest():
    with serving(chat("1")) as server, pytest.raises(RewardError, match=r"has \{anser\}.*Did you mean 'answer'"):
        ask(judge(server, prompt="{anser}"), answer=["x"])
    assert server.requests == []


@pytest.mark.parametrize("first", [(429, "slow down"), (500, ""), (503, ""), (408, ""), "close"], ids=str)
def test_what_may_pass_is_tried_again(first):
    with serving(first, first, chat("8")) as server:
        assert ask(judge(server)) == [8.0]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "reply", [(401, ""), (400, ""), (404, ""), (302, "", {"Location": "http://127.0.0.1:1/"})], ids=str
)
def test_what_will_not_pass_is_not_tried_again_and_nothing_is_followed(reply):
    with serving(reply) as server:
        assert ask(judge(server)) == [None]
    assert len(server.requests) == 1


def test_a_server_says_how_long_to_wait(monkeypatch):
    monkeypatch.setattr("seedtune.rewards.sources.judge.BACKOFF", 60.0)
    with serving((429, "", {"Retry-After": "0"}), chat("8")) as server:
        assert ask(judge(server)) == [8.0]


def test_a_wait_is_seconds_or_a_date():
    assert [_seconds(wait) for wait in ("1.5", "soon", "", "-1", "9" * 99)] == [1.5, *[None] * 4]
    assert [(_seconds(f"Wed, 21 Oct {year} 07:28:00 GMT") or 0.0) > 60.0 for year in (2099, 2015)] == [True, False]


@pytest.mark.parametrize("failure", ["hang", "trickle"])
def test_a_server_that_hangs_or_trickles_costs_its_time_out_and_that_sample(failure, caplog):
    replies = {"bad": failure, "good": chat("4")}
    with serving(lambda body: replies[body["messages"][0]["content"]]) as server:
        one = judge(server, timeout=1.0, retries=1, prompt="{completion}")
        assert ask(one, "good", "bad", "good") == [4.0, None, 4.0]
    assert "1 of 3 not scored; the first: no answer in 1 s (2 of 2 tries)" in caplog.text


def test_scores_come_back_in_order_whatever_arrives_first():
    def reply(body):
        number = int(body["messages"][0]["content"])
        time.sleep(0.02 * (5 - number))
        return chat(str(number))

    with serving(reply) as server:
        assert ask(judge(server, prompt="{completion}", concurrency=5), *"01234") == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "reply",
    [
        *((200, body) for body in ("not json", "[]", '{"choices": []}', "[" * 100_000, "x" * (1 << 21))),
        *map(chat, (None, ["7"], [{"type": "thinking", "text": "7"}], "no idea", "In 2024, surely.")),
    ],
    ids=lambda reply: reply[1][:30],
)
def test_an_answer_without_a_score_costs_that_sample(reply):
    with serving(reply) as server:
        assert ask(judge(server)) == [None]
    assert len(server.requests) == 1


def test_a_server_that_is_down_costs_the_samples_and_not_the_run(caplog):
    with serving(chat("1")) as server:
        pass
    assert ask(judge(server, retries=0), "a", "b") == [None, None]
    assert "the connection failed (ConnectionRefusedError)" in caplog.text


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("I give 3, no: 4.", {}, 4.0),
        ("8/10", {}, 8.0),
        ("8 out of 10", {}, 8.0),
        ("**9.5**", {}, 9.5),
        ("a1 b2", {}, None),
        ("-3", {"min_score": -5.0}, -3.0),
        ("-3", {}, None),
        ("11", {"max_score": 20.0}, 11.0),
        ('Sure: {"why": "x", "score": 3}', {"field": "score"}, 3.0),
        ('{"score": "3.5"}', {"field": "score"}, 3.5),
        ('{"mark": 2}', {"field": "mark"}, 2.0),
        ('{"score": true}', {"field": "score"}, None),
        ('{"score": NaN}', {"field": "score"}, None),
        ('{"score": 1e999}', {"field": "score"}, None),
        ('{"score": [1]}', {"field": "score"}, None),
        ('{"other": 3}', {"field": "score"}, None),
        ("3", {"field": "score"}, None),
        ("[[5]] then [[6]]", {"pattern": r"\[\[(\d+)\]\]"}, 6.0),
        ("nothing", {"pattern": r"\[\[(\d+)\]\]"}, None),
        ("[[x]]", {"pattern": r"\[\[(.)\]\]"}, None),
        ("<think>\nOkay, the question has 3 parts. The student got 2 …", {}, None),
        ("\n<|START_THINKING|>Maybe 2", {}, None),
        ("[THINK]Mark: 2, no", {"pattern": r"Mark: (\d)"}, None),
        ('<think>Perhaps {"score": 2}', {"field": "score"}, None),
        *((text, {}, None) for text in ("8,5", "8.5pts", "1.2.3", "<reasoning>7")),
        ("<think>2 of 3</think>\n\n8", {}, 8.0),
        ("2 of 3 parts\n</think>\n\n8", {}, 8.0),
        ("2 of 3 parts\n</think>\n\n", {}, None),
        ("[THINK]Mark: 2[/THINK]Mark: 9", {"pattern": r"Mark: (\d)"}, 9.0),
        ('<think>{2}</think>```json\n{"score": 3}```', {"field": "score"}, 3.0),
        ('{"why": "it forgot </think>", "score": 3}', {"field": "score"}, 3.0),
        ("It forgot <think> and got 3", {}, 3.0),
    ],
)
def test_rules_read_a_score_or_none(text, settings, expected):
    if expected is None:
        with pytest.raises(Failure):
            score_in(text, JudgeSettings(**settings))
    else:
        assert score_in(text, JudgeSettings(**settings)) == expected


@pytest.mark.parametrize("finish", ["length", "max_tokens", "content_filter"])
def test_a_reply_that_was_cut_off_is_no_mark(finish, caplog):
    with serving(chat("The mark is 1", finish), chat(None, finish), chat("10", "stop")) as server:
        assert ask(judge(server, concurrency=1, max_tokens=4), "a", "b", "c") == [None, None, 10.0]
    assert f"2 of 3 not scored; the first: the reply was cut off (finish_reason={finish}" in caplog.text


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        *((text, {}, float(text)) for text in ("7", "0", "10", "8.5")),
        *((text, {"max_score": 1.0}, float(text)) for text in ("0", "1")),
        ("-3", {"min_score": -5.0}, -3.0),
        ("1", {}, None),  # of 10
        ("8", {"max_score": 100.0}, None),
        ("0.", {"max_score": 1.0}, None),
        ("**8/10", {}, 8.0),
        ("2 of 3 parts\n</think>\n\n8", {}, 8.0),
        ("<think>8", {}, None),
        ("7. The student", {}, None),
        ("**Score: 7.** The stud", {"pattern": r"(?i)score: (\d+)"}, 7.0),
        ("Score: 1", {"pattern": r"Score: (\d+)"}, None),
        ("[[1]]", {"pattern": r"\[\[(-?\d+)\]\]"}, 1.0),
        ("Okay, so I write Score: 7. But", {"pattern": r"Score: (\d+)"}, None),
        ("…</think>Score: 7. The", {"pattern": r"Score: (\d+)"}, 7.0),
        ('{"score": 1}\nThe', {"field": "score"}, 1.0),
        ('```json\n{"score": 3}', {"field": "score"}, 3.0),
        ('{"score": 3, "why": "it', {"field": "score"}, None),
        ('Perhaps {"score": 3}. But', {"field": "score"}, None),
    ],
)
@pytest.mark.parametrize("finish", ["length", "abort"])
def test_a_cut_reply_is_scored_only_if_it_begins_with_its_whole_score(text, settings, expected, finish):
    with serving(chat(text, finish)) as server:
        assert ask(judge(server, **settings)) == [expected if finish == "length" else None]


REFUSALS = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
    "max_completion_tokens": "extra fields not permitted: max_completion_tokens",
    "temperature": f"'Temperature' does not support 0.0 with the key {KEY}. Only the default (1) is supported.",
}


@pytest.mark.parametrize(
    ("refused", "sent"),
    [
        (["temperature"], {"max_tokens": 64}),
        (["max_tokens"], {"max_completion_tokens": 64, "temperature": 0.0}),
        (["max_tokens", "temperature"], {"max_completion_tokens": 64}),
        (["max_tokens", "max_completion_tokens"], {"temperature": 0.0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("status", [400, 404, 422])
def test_parameters_that_a_provider_refuses_are_left_out_of_this_request_and_later_ones(refused, sent, status, caplog):
    def reply(body):
        wrong = next((name for name in refused if name in body), None)
        return chat("8") if wrong is None else (status, json.dumps({"error": {"message": REFUSALS[wrong]}}))

    with serving(reply) as server:
        one = judge(server, retries=0)
        assert ask(one) == [8.0]
        assert len(server.requests) == 1 + len(refused)
        assert ask(one, "a", "b") == [8.0, 8.0]
        assert len(server.requests) == 3 + len(refused)
    assert {name: value for name, value in server.requests[-1]["body"].items() if name in REFUSALS} == sent
    assert caplog.text.count("refuses") == 1
    assert KEY not in caplog.text


def test_a_refusal_that_no_parameter_causes_is_a_failure_and_changes_no_request():
    with serving((400, "temperature, max_tokens, max_completion_tokens: no such model")) as server:
        one = judge(server)
        assert ask(one) == [None]
        server.script[:] = [chat("8")]
        assert ask(one) == [8.0]
    assert {"max_tokens", "temperature"} < server.requests[-1]["body"].keys()


@pytest.mark.parametrize(
    "message",
    [
        "'max_tokens' or 'max_completion_tokens' is too large: 64. This model's maximum context length is 100 tokens",
        "max_tokens: context_length_exceeded",
    ],
)
def test_a_completion_that_is_too_long_changes_no_later_request(message, caplog):
    def reply(body):
        too_long = body["messages"][0]["content"] == "long" and any("tokens" in name for name in body)
        return (400, message) if too_long else chat("8")

    with serving(reply) as server:
        assert ask(judge(server, concurrency=1, prompt="{completion}"), "long", "short") == [8.0, 8.0]
    assert [request["body"].get("max_tokens") for request in server.requests] == [64, None, 64]
    assert "refuses" not in caplog.text


def test_as_many_requests_are_under_way_as_were_asked_for():
    together = threading.Barrier(48)

    def reply(_):
        together.wait(BOUND)
        return chat("8")

    with serving(reply) as server:
        settings = {"base_url": server.address, "concurrency": 48, "retries": 0, "timeout": BOUND}
        rewards = build.build(Config.create({"train_dataset": "x", "reward_funcs": {"judge": settings}}), [])
        examples = [Example(place, "p", {}) for place in range(48)]
        assert score(rewards, examples, ["a"] * 48)["judge"] == [8.0] * 48


def test_a_reward_endpoint_gets_the_row_and_answers_json():
    with serving((200, '{"reward": -12.5}')) as server:
        one = judge(server, kind="reward", field="reward")
        assert ask(one, "fine", answer=["x"]) == [-12.5]
    (request,) = server.requests
    assert (request["path"], request["body"]) == ("/v1", {"prompt": "What?", "completion": "fine", "answer": "x"})


def test_no_completions_ask_nothing():
    with serving(chat("1")) as server:
        assert judge(server)([], []) == []
    assert server.requests == []


@pytest.mark.parametrize("base_url", ["localhost:8000", "ftp://x/y", "http://", "http://x:port/"])
def test_an_address_that_is_none_is_refused(base_url):
    with pytest.raises(ConfigError, match="is not an address"):
        Judge(JudgeSettings(base_url=base_url))


def test_https_is_spoken_where_it_is_asked_for(monkeypatch):
    tried = []

    def connect(self):
        tried.append((type(self).__name__, self.host, self.port))
        raise ConnectionRefusedError

    monkeypatch.setattr(http.client.HTTPSConnection, "connect", connect)
    assert Judge(JudgeSettings(base_url="https://judge.example", retries=0))(["p"], ["c"]) == [None]
    assert tried == [("HTTPSConnection", "judge.example", 443)]


def test_judges_stay_in_the_main_process():
    (reward,) = build.build(Config.create({"train_dataset": "x", "reward_funcs": {"judge": {}}}), [])
    assert (reward.inline, reward.source, reward.name) == (True, None, "judge")


def test_what_is_not_scored_is_nan_for_the_run():
    with serving(chat("no"), chat("3")) as server:
        rewards = [Reward("judge", judge(server, concurrency=1))]
        first, second = score(rewards, [Example(0, "p", {}), Example(1, "p", {})], ["a", "b"])["judge"]
    assert first != first
    assert second == 3.0


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|aa)+$b", "(a+a+)+y"])
def test_a_pattern_takes_little_time_and_does_not_hold_up_other_threads(pattern):
    """Python's re would take hours, and no other thread would run meanwhile."""
    ticks, done = [], threading.Event()

    def tick() -> None:
        while not done.wait(0.01):
            ticks.append(0)

    clock = threading.Thread(target=tick, daemon=True)
    clock.start()
    started = time.process_time()
    with pytest.raises(Failure, match="no score"):
        score_in("a" * 100_000, JudgeSettings(pattern=pattern))
    done.set()
    clock.join()
    assert time.process_time() - started < 30
    assert ticks


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"score": ' + "[" * 5000, '{"score": 1' + "0" * 5000 + "}", "9" * 100_000]
)
def test_a_reply_of_any_text_is_a_score_or_none(text):
    for settings in (JudgeSettings(), JudgeSettings(field="score"), JudgeSettings(pattern=r"(\d+)")):
        with pytest.raises(Failure):
            score_in(text, settings)
