"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings of the run to come.")]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder to write, new or empty.")]
Generation = Annotated[int | None, typer.Option(help="The model after this many generations; all by default.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the base model's by default.")]
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
