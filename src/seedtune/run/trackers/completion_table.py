"""Tables of completions: all that the members answered in a generation, as rows and as a Parquet file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from seedtune.rewards.optional import optional
from seedtune.rewards.scorer import Completion
from seedtune.rollouts.evaluator import Outcome
from seedtune.run.directory import write_whole

_TYPES = {
    "step": "int64",
    "member": "string",
    "prompt_id": "int64",
    "prompt": "string",
    "sample": "int64",
    "completion": "string",
    "finish": "string",
    "reward": "float64",
    "logged": "string",
}
"""Column → its Arrow type; those of single rewards, ``rewards/NAME``, are float64."""


def check_installed() -> None:
    """Raise MissingExtraError if there is no package that writes Parquet."""
    optional("pyarrow.parquet", "log_completions")


def rows_of(outcome: Outcome, generation: int) -> list[dict[str, Any]]:
    """Return a row per completion of the generation with this index, counted from 0.

    ``step`` counts from 1, as everywhere in metrics; ``member`` is the ledger's label; messages are JSON text.
    """
    return [
        {
            "step": generation + 1,
            "member": rollout.member.label(generation),
            "prompt_id": outcome.examples[rollout.prompt].id,
            "prompt": _text(outcome.examples[rollout.prompt].prompt),
            "sample": rollout.sample,
            "completion": _text(rollout.text),
            "finish": rollout.finish,
            "reward": _known(outcome.rewards[place]),
            **{f"rewards/{name}": _known(values[place]) for name, values in outcome.by_function.items()},
            "logged": _logged(outcome.logged.get(Completion(outcome.examples[rollout.prompt].id, rollout.text))),
        }
        for place, rollout in enumerate(outcome.rollouts)
    ]


def write(folder: Path, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Write ``completions_00012.parquet``.  Raises StorageError."""
    arrow, parquet = optional("pyarrow", "log_completions"), optional("pyarrow.parquet", "log_completions")
    names = list(rows[0]) if rows else list(_TYPES)
    schema = arrow.schema([(name, getattr(arrow, _TYPES.get(name, "float64"))()) for name in names])
    buffer = BytesIO()
    parquet.write_table(arrow.Table.from_pylist([dict(row) for row in rows], schema=schema), buffer)
    folder.mkdir(exist_ok=True)
    write_whole(folder / f"completions_{step:05d}.parquet", buffer.getvalue())


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _text(content: Any) -> str:
    """Return text that UTF-8 can encode: a lone surrogate becomes an escape."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode()


def _logged(columns: Mapping[str, Any] | None) -> str | None:
    """Return the columns that reward functions logged, as JSON text."""
    return None if columns is None else _text(dict(columns))
