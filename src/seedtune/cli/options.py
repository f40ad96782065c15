"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seedtune.errors import ConfigError
from seedtune.types import STEPS


def bounded(low: float, high: float, *, help: str, metavar: str | None = None) -> Any:  # noqa: A002 - typer's word
    """Return an option that is a number from ``low`` to ``high``; ConfigError names another one and the limits."""

    def check(_: typer.Context, option: typer.CallbackParam, value: float | None) -> float | None:
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{option.opts[0]} {value} is out of range: give a number from {low:,} to {high:,}.")
        return value

    return typer.Option(help=help, callback=check, metavar=metavar)


def path(text: str) -> Path:
    """Expand ``~`` and ``$VAR``, which a shell leaves alone in ``--output=~/model``; the rest stays as it is typed."""
    from seedtune.config.paths import expanded

    try:
        return Path(expanded(text))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}.") from error


RunFolder = Annotated[Path, typer.Argument(parser=path, metavar="RUN", help="A run directory.")]
ConfigFile = Annotated[Path, typer.Argument(parser=path, metavar="CONFIG.yaml", help="Settings of the run to come.")]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", parser=path, help="Folder to write, new or empty.")]


def generation(text: str) -> int | str:
    """Return the number of a generation, or text that the run's metrics make one; ConfigError for another number."""
    try:
        number = int(text)
    except ValueError:
        return text
    if not 0 <= number <= STEPS:
        raise ConfigError(f"--generation {number} is out of range: give a number from 0 to {STEPS:,}.")
    return number


Generation = Annotated[
    Any,
    typer.Option(
        parser=generation,
        metavar="N|last|best[:METRIC]",
        help="The model after N generations, after all, or with the best evaluation; by default the one the run chose.",
    ),
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the base model's by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, e.g. --set sigma=0.006 --set dtype=float32",
    ),
]
LocalSets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting that the weights do not depend on, e.g. --set transformers.device=cpu --set engine=vllm",
    ),
]
