"""Values of the command line and of YAML files: each is what it looks like, and text stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from seedtune.config.config import Config
from seedtune.config.foreign_data import dump_yaml, parse_scalar, parse_yaml
from seedtune.config.yaml_file import load_config, override, parse_value
from seedtune.errors import ConfigError


def created(*sets: str) -> Config:
    return Config.create(override({}, sets))


@pytest.mark.parametrize(
    "text",
    [
        *("Answer with #1 only", "Be brief: one word", "- a list?", "yes", "010", "1e-3", "2024-01-01", "~", "true"),
        *(
            "'a' or 'b'",
            '"a": "b"',
            '"a" # "b"',
            '"',
            '"\\q"',
            "[x]",
            "{x}",
            "{x: 1}",
            "*a",
            "&a",
            "!!int 3",
            "%d",
            "@",
            "`",
            "a=b=c",
            "",
            " blank ",
            "|",
        ),
    ],
)
def test_a_text_setting_takes_text_as_it_is(text: str) -> None:
    assert created(f"system_prompt={text}").system_prompt == text
    if text and not text.startswith("["):
        assert created(f"stop={text}").stop == (text,)
        assert created(f"trainable={text}").trainable == (text,)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"Be brief: now"', "Be brief: now"),
        ("'it''s #1'", "it's #1"),
        (r'"a\n\"b\" \u00e9"', 'a\n"b" é'),
        ('"null"', "null"),
        ('""', ""),
        ("""'"'""", '"'),
    ],
)
def test_quotes_around_a_whole_text_are_those_of_yaml(text: str, value: str) -> None:
    assert created(f"system_prompt={text}").system_prompt == value
    if value:
        assert created(f"stop={text}").stop == (value,)


def test_null_takes_a_text_away_that_may_be_missing() -> None:
    assert Config.create(override({"system_prompt": "x"}, ["system_prompt=null"])).system_prompt is None
    assert created("model=null").model == "null"


@pytest.mark.parametrize(
    ("item", "name", "value"),
    [
        ("stop=[END, 'a: b']", "stop", ("END", "a: b")),
        ("stop=[]", "stop", ()),
        ("stop=[", "stop", ("[",)),
        ("sigma=1e-3", "sigma", 1e-3),
        ("seed=0x1F", "seed", 31),
        ("seed=0o17", "seed", 15),
        ("generations=1e2", "generations", 100),
        ("alpha=null", "alpha", None),
        ("max_prompt_length=", "max_prompt_length", None),
        ("antithetic=false", "antithetic", False),
        ("rollback_on_fall=yes", "rollback_on_fall", "yes"),
        ("task_args={hint: 'Use #1', n: [1, 2.5, null]}", "task_args", {"hint": "Use #1", "n": [1, 2.5, None]}),
        ("task_args.hint=Use #1: it", "task_args", {"hint": "Use #1: it"}),
        ("task_args.hint='010'", "task_args", {"hint": "010"}),
        ("task_args.n=010", "task_args", {"n": "010"}),
        ("task_args.n=10", "task_args", {"n": 10}),
        ("task_args.n=1e3", "task_args", {"n": 1000}),
        ("task_args.n=-1.5E1", "task_args", {"n": -15}),
        ("task_args.n=1.0", "task_args", {"n": 1.0}),
        ("task_args.n=1e-3", "task_args", {"n": 0.001}),
        ("task_args.n=1e300", "task_args", {"n": 1e300}),
        ("reward_weights=[1, 2e-1]", "reward_weights", (1.0, 0.2)),
    ],
)
def test_other_settings_are_read_by_their_type(item: str, name: str, value: Any) -> None:
    found = getattr(created(item), name)
    assert found == value
    assert repr(found) == repr(value)  # 1000 is not 1000.0


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("seed=010", "seed='010': must be a number, like 10, 0.5 or 1e-3, not text"),
        ("reward_timeout=1:30", "reward_timeout='1:30': must be a number"),
        ("seed=1_000", "seed='1_000': must be a number"),
        ("ray.retries=0b11", "ray.retries='0b11': must be a number"),
        ("reward_weights=['1']", r"reward_weights=\['1'\]: must be a number"),
        ('stop=[""]', "stop.0='': must not be empty: leave it out"),
        ("stop=", "stop.0='': must not be empty: leave it out"),
        ("stop=[1]", "stop.0=1: must be text: put it into quotes"),
        ("rollback_on_fall=true", "rollback_on_fall='true': must be 'auto', 'yes' or 'no'"),
    ],
)
def test_what_is_of_another_type_is_refused_with_its_value(item: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        created(item)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sigma: 0.1\nseed: 3\nsigma: 0.2\n", r"line 3: the key 'sigma' is there twice"),
        ("toy: {size: 4, 'size': 5}\n", r"line 1: the key 'size' is there twice"),
        ("seed: 010\n", "seed='010': must be a number"),
        ("seed: !!int 010\n", "not valid YAML"),
        ("reward_timeout: 1:30\n", "reward_timeout='1:30': must be a number"),
        ("reward_timeout: !!float 1:30\n", "not valid YAML"),
        ("system_prompt: 5\n", "system_prompt=5: must be text: put it into quotes"),
        ("stop: ['']\n", "stop.0='': must not be empty"),
    ],
)
def test_a_file_with_a_doubled_key_or_another_type_is_refused(text: str, message: str, tmp_path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.yaml")


def test_words_of_a_file_are_those_of_yaml_1_2(tmp_path) -> None:
    (tmp_path / "c.yaml").write_text(
        "system_prompt: yes\nstop: END\nsigma: 1e-3\ntask_args: {a: 2024-01-01, b: off, c: 12:30, d: 1e3, e: 0o17}\n"
    )
    config = load_config(tmp_path / "c.yaml")
    assert (config.system_prompt, config.stop, config.sigma) == ("yes", ("END",), 1e-3)
    assert config.task_args == {"a": "2024-01-01", "b": "off", "c": "12:30", "d": 1000.0, "e": 15}


def test_merges_of_aliases_are_no_doubled_keys() -> None:
    text = "b: &b {x: 1, y: 1}\np: {a: &a {<<: *b, x: 2}}\nc: {<<: *a, x: 3}\n"
    assert parse_yaml(text)["c"] == {"x": 3, "y": 1}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.from_regex(r"[-+0-9.eoxy_:#~]{1,6}", fullmatch=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(PLAIN)
def test_what_is_written_is_read_back_also_by_yaml_1_1(value: Any) -> None:
    text = dump_yaml(value)
    assert parse_yaml(text) == value
    assert yaml.safe_load(text) == value


@given(st.text())
def test_every_text_of_the_command_line_has_a_value(text: str) -> None:
    parse_value(text)
    value = parse_scalar(text)
    assert value == text or value is None or isinstance(value, bool | int | float)


def test_a_whole_number_may_have_an_exponent_where_vllm_wants_one() -> None:
    assert created("vllm.max_model_len=1e4").vllm.max_model_len == 10_000
