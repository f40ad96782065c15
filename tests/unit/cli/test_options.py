"""Options of commands: every number has limits, and an error says them in one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest

from seedtune.cli import ray
from seedtune.cli.app import COMMANDS, app
from seedtune.errors import ConfigError


def is_number(hint: Any) -> bool:
    """Whether a parameter's annotation is ``Annotated[int | None, …]`` or the like."""
    inner = (*get_args(hint), hint)[0]
    return bool({int, float} & {inner, *get_args(inner)})


NUMBERS = {
    f"{name} --{option}": get_args(hint)[1]
    for name, command in {**COMMANDS, "ray status": ray.status, "ray scale": ray.scale}.items()
    for option, hint in get_type_hints(command, include_extras=True).items()
    if is_number(hint)
}


def test_commands_have_numbers():
    assert {"eval --limit", "eval --seed", "samples --limit", "resume --generations", "plan --share"} <= NUMBERS.keys()


@pytest.mark.parametrize("value", [-5, 10**30], ids=["low", "high"])
@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_an_upper_and_a_lower_bound(name, value):
    check = NUMBERS[name].callback
    assert check is not None
    with pytest.raises(ConfigError, match=rf"^--x {value} is out of range: give a number from \d"):
        check(None, SimpleNamespace(opts=["--x"]), value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "RUN", "--limit", "-5"),
        ("eval", "RUN", "--seed", "-1"),
        ("eval", "RUN", "--temperature", "nan"),
        ("samples", "RUN", "--limit", "-5"),
        ("inspect", "RUN", "--limit", "-5"),
        ("export", "RUN", "-o", "OUT", "--generation", "-1"),
        ("resume", "RUN", "--generations", "0"),
        ("probe", "CONFIG", "--members", "9999999999"),
        ("plan", "CONFIG", "--share", "2"),
        ("eval", "RUN", "--k", "9" * 4000),
        ("eval", "RUN", "--k", "9" * 5000),
        ("eval", "RUN", "--samples", "4", "--baseline", "9" * 30),
    ],
    ids=" ".join,
)
def test_a_number_out_of_range_is_an_error_before_anything_is_read(arguments):
    with pytest.raises(ConfigError) as caught:
        app(list(arguments), standalone_mode=False)
    assert len(str(caught.value)) < 500
