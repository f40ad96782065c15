"""The sections of the configuration: how many settings there are."""

from __future__ import annotations

from pydantic import BaseModel

from seedtune.config.config import Config
from seedtune.config.sections import section_in


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
