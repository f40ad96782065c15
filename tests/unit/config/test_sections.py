"""The sections of the configuration: how many settings there are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from seedtune.config.config import Config
from seedtune.config.sections import section_in
from seedtune.errors import ConfigError
from seedtune.tasks import TASKS


def settings_of(model: type[BaseModel], seen: set[type[BaseModel]]) -> list[str]:
    """Names of all settings of a section and of the sections in it, each section once."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        inner = section_in(field.annotation)
        if inner is None:
            found.append(f"{model.__name__}.{name}")
        elif inner not in seen:
            seen.add(inner)
            found += settings_of(inner, seen)
    return found


def test_settings_stay_few():
    """Every setting has to be tried with every other one: one that is new needs evidence, or takes another's place."""
    assert len(settings_of(Config, set())) <= 115


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section and those in it."""
    yield model
    for field in model.model_fields.values():
        inner = section_in(field.annotation)
        if inner is not None:
            yield from sections(inner)


def numbers(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    return [
        (f"{model.__name__}.{name}", field)
        for name, field in model.model_fields.items()
        if types(field.annotation) & {int, float}
    ]


def types(annotation: Any) -> set[Any]:
    parts = get_args(annotation)
    return set().union(*map(types, parts)) if parts else {annotation}


EVERY = {
    pair[0]: pair
    for kind in (Config, *(task.settings for task in TASKS.values()))
    for s in sections(kind)
    for pair in numbers(s)
}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_number_has_an_upper_and_a_lower_bound(name):
    """Of its own, not only what the machine can hold."""
    annotation, metadata = EVERY[name][1].annotation, EVERY[name][1].metadata
    kind = annotation
    for each in metadata:
        kind = Annotated[kind, each]
    adapter = TypeAdapter(kind)
    for huge in (10**20, -(10**20)):
        shapes = (huge, [huge], {"toy": huge})
        for value in shapes:
            with pytest.raises(ValidationError):
                adapter.validate_python(value)


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"generations": True}, "generations=True: must be a number, not true or false"),
        ({"sigma": False}, "sigma=False: must be a number"),
        ({"reward_weights": [True]}, "reward_weights=[True]: must be a number"),
        ({"ray": {"workers": True}}, "ray.workers=True: must be a number"),
        ({"ray": {"workers": {"toy": True}}}, "ray.workers={'toy': True}: must be a number"),
        ({"lookahead": {"probes": True}}, "lookahead.probes=True: must be a number"),
        ({"sigma": 1e300}, "sigma=1e+300: must be less than or equal to 1000"),
        ({"alpha": 1e300}, "alpha=1e+300: must be less than or equal to 1000000"),
        ({"generations": 1e10}, "generations=10000000000.0: must be less than or equal to 10000000"),
        ({"population": 10**9}, "population=1000000000: must be less than or equal to 1000000"),
        ({"subspaces": 100_000}, "subspaces=100000: must be less than or equal to 1024"),
        ({"reward_timeout": 3e6}, "reward_timeout=3000000.0: must be less than or equal to 86400"),
        ({"seed": 10**5000}, "seed=a number of about 4983 digits: must be less than 18446744073709551616"),
        ({"seed": "9" * 5000}, "seed='9999"),
        ({"chat_template_kwargs": {"a": [math.inf]}}, "chat_template_kwargs={'a': [inf]}: it holds inf"),
        ({"vllm": {"hf_overrides": {"a": math.nan}}}, "vllm={'hf_overrides': {'a': nan}}: it holds nan"),
        ({1: 2}, "1=1: names of settings are text: put it into quotes"),
        ({f"x{i}": 0 for i in range(10_000)}, "unknown setting 'x0'"),
        ({"x" * 10**6: 0}, "unknown setting 'xxx"),
        ({"system_prompt": ["x" * 10**6] * 100}, "system_prompt=['xxx"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else None,
)
def test_no_value_is_too_large_for_an_error_of_one_line(settings, start):
    with pytest.raises(ConfigError) as caught:
        Config.create(settings)
    assert str(caught.value).startswith(start)
    assert len(str(caught.value)) < 40_000
    assert "\n" not in str(caught.value)
