"""No file or text of others ends in a traceback, takes gigabytes, or seconds (see `fuzzing`)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzzing
import runs
from seedtune.config.config import Config
from seedtune.config.foreign_data import check_size, parse_json, parse_scalar, parse_yaml
from seedtune.errors import ConfigError
from waiting import BOUND

FEW = 40
"""Inputs of each kind; ``python tests/fuzzing.py 100000`` tries more."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> fuzzing.Files:
    return fuzzing.ready(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("target", fuzzing.TARGETS, ids=lambda target: target.__name__)
def test_damaged_files_and_foreign_text_are_errors_of_ours(
    target: Callable[[fuzzing.Files, np.random.Generator], None], files: fuzzing.Files
) -> None:
    for seed in range(FEW):
        assert fuzzing.attempt(target, files, seed) is None, (target.__name__, seed)


@pytest.mark.slow
def test_a_thousand_inputs_stay_within_a_gigabyte() -> None:
    done = subprocess.run(
        [sys.executable, fuzzing.__file__, "1000", "1000"],
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND,
        env=runs.environment(PYTHONPATH=f"{runs.SOURCE}:{Path(fuzzing.__file__).parent}"),
    )
    assert done.returncode == 0, done.stdout[-5000:]


def refusal(use: Callable[[Any], object], value: Any) -> str:
    """The message with which a value is refused; empty if it is taken."""
    try:
        use(value)
    except (ConfigError, ValueError) as error:
        return str(error)
    return ""


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(plain, st.sampled_from(sorted(Config.model_fields)))
def test_any_value_of_any_setting_is_taken_or_named(value: Any, name: str) -> None:
    assert len(refusal(Config.create, {name: value})) < 10_000


@quick
@given(st.text(max_size=200))
def test_any_text_is_parsed_within_limits_or_refused(text: str) -> None:
    parse_scalar(text)
    for parse in (parse_json, parse_yaml):
        assert "\n" not in refusal(lambda said, parse=parse: check_size(parse(said), items=1000), text)
