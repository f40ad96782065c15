"""Convert rows, such as those of a Hugging Face data set, to examples, and split them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python

from seedtune.errors import DataError, first_line, suggest
from seedtune.numerics import noise
from seedtune.types import Example, Message

Rows = Iterable[Mapping[str, Any]]
"""An iterable of mappings with a ``prompt``."""

Examples = tuple[Example, ...]

TrainTestSplit = tuple[Examples, Examples]
"""(training, held-out) examples."""

MOST = 128
"""Most held-out rows: an evaluation should not take longer than the training."""

DIGITS = 14_000
"""Most bits of a number: Python writes no more than 4,300 digits."""

_MESSAGES = re.compile(
    r"\s*(?:\[\s*)?\{\s*(?=['\"](?:role|content|tool_calls|from|value)['\"]\s*:)"
    r"(?:(?=.*['\"]role['\"]\s*:)(?=.*['\"](?:content|tool_calls)['\"]\s*:)"
    r"|(?=.*['\"]from['\"]\s*:)(?=.*['\"]value['\"]\s*:)).*[\]}]\s*",
    re.DOTALL,
)
"""Messages as text: JSON, or Python's own form, which a data frame's ``to_csv`` writes."""

_HELD_OUT = noise.Address(noise.key_for(0, noise.Purpose.HELD_OUT), noise.Stream.ORDER)


def examples(rows: Rows | None, split: str, *, prompt_column: str = "prompt") -> Examples:
    """Convert rows to examples, numbered in order; raise DataError with the index of a malformed row."""
    if rows is None:
        return ()
    plain_rows = _checked(rows, split)
    return tuple(_example(row, index, split, prompt_column) for index, row in enumerate(plain_rows))


def _checked(rows: Any, split: str) -> Rows:
    """Return rows as mappings of plain values: a data set of the library ``datasets`` may have another format.

    Raises DataError for streams, split dicts and data frames, which are not fixed sequences of rows.
    """
    kinds = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(rows).__mro__}
    if "datasets.IterableDataset" in kinds:
        raise DataError(
            f"the {split} data are streamed (IterableDataset), but prompts are drawn from all rows by their numbers. "
            "Load them without streaming=True, or take a part: list(data.take(10_000))."
        )
    if "datasets.DatasetDict" in kinds or "datasets.IterableDatasetDict" in kinds:
        raise DataError(
            f"the {split} data are several splits ({', '.join(rows)}). Give one: data[{next(iter(rows))!r}]."
        )
    tables = {"pandas.DataFrame", "polars.DataFrame", "pyarrow.Table"}
    if not isinstance(rows, Iterable | Sized) or isinstance(rows, str | bytes | Mapping) or kinds & tables:
        raise DataError(
            f"the {split} data are a {type(rows).__name__}, not rows. Give mappings with a prompt, such as a list of "
            "dicts (pandas: frame.to_dict('records'); polars: frame.to_dicts(); Arrow: table.to_pylist())."
        )
    found: Any = rows
    made: Rows = found.with_format(None) if "datasets.Dataset" in kinds else found
    return made


def _example(row: Any, index: int, split: str, name: str) -> Example:
    if not isinstance(row, Mapping):
        kind = type(row).__name__
        raise DataError(f"row {index} of the {split} data is a {kind}, not a mapping. Give {{{name!r}: …}}.")
    if name not in row:
        raise DataError(
            f"row {index} of the {split} data has no {name!r} (it holds {sorted(row, key=str)})."
            f"{suggest(name, map(str, row))} Name the column of the prompts: prompt_column=COLUMN."
        )
    columns = {str(key): value for key, value in row.items() if key != name}
    return plain(Example(index, row[name], columns), split)


def plain(example: Example, split: str) -> Example:
    """Return an example of checked plain data: NumPy's and pandas' types become Python's, JSON messages messages.

    Messages hold only what JSON has (a date becomes text), without keys that are null, as a table's rows have them.
    Raises DataError with the row for a prompt that is neither text nor messages.
    """
    where = f"row {example.id} of the {split} data"
    try:
        prompt, columns = _python(example.prompt), _python(example.columns)
    except RecursionError:
        raise DataError(f"{where} is nested too deeply, or contains itself. Leave that column out.") from None
    except ValueError as error:
        raise DataError(f"{where} holds {error}. Leave that column out, or make it text.") from None
    if isinstance(prompt, str) and _MESSAGES.fullmatch(prompt):
        prompt = _parsed(prompt, where)
    if isinstance(prompt, str):
        return replace(example, prompt=prompt, columns=columns)
    if isinstance(prompt, Sequence) and prompt and all(_is_message(message) for message in prompt):
        return replace(example, prompt=tuple(_message(message, where) for message in prompt), columns=columns)
    raise DataError(
        f"{where}: the prompt {prompt!r} is neither text nor a list of messages "
        "like {'role': 'user', 'content': '…'}."
    )


def _python(value: Any) -> Any:
    """Replace the types of NumPy and pandas, at any depth; other processes and JSON do not know them."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {key: _python(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        kinds = set(map(type, value))
        is_plain = kinds <= _PLAIN or (kinds == {int} and max(map(int.bit_length, value)) <= DIGITS)
        return type(value)(value if is_plain else map(_python, value))
    if isinstance(value, np.ndarray | np.generic):
        fine = value.astype(f"{value.dtype.kind}8[us]") if value.dtype.kind in "mM" else value
        made = fine.tolist()
        return _python(made) if fine.dtype.kind in "OV" else made
    if isinstance(value, int) and value.bit_length() > DIGITS:
        raise ValueError("a number of thousands of digits, which JSON cannot hold")
    read = _OF_OTHERS.get(type(value).__name__)
    return value if read is None else read(value)


_PLAIN = frozenset({str, float, bool, type(None)})

_OF_OTHERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("NAType", "NaTType"), lambda _: None),
    "Timestamp": lambda value: value.to_pydatetime(warn=False),
    "Timedelta": lambda value: value.to_pytimedelta(),
    "Tensor": lambda value: value.tolist(),
}
"""Types of pandas and torch, by name, and how they become Python's."""


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: the prompt {text[:60]!r}… looks like messages, but is not JSON: {error}. Write the column with "
            "json.dumps(messages), or save the data as .jsonl. Text that only looks so goes into a message: [{'role': "
            "'user', 'content': text}]."
        ) from error


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and "role" in message and not {"content", "tool_calls"}.isdisjoint(message)


def _message(message: Mapping[str, Any], where: str) -> Message:
    given = {key: value for key, value in message.items() if value is not None or key in ("role", "content")}
    try:
        made: Message = to_jsonable_python(given)
    except ValueError as error:
        raise DataError(f"{where}: a message holds what JSON cannot: {first_line(error)}. Leave it out.") from error
    return {**made, "content": ""} if made.get("content") is None and made.get("tool_calls") else made


def chat(text: str) -> list[dict[str, str]]:
    """Return a chat prompt with one message."""
    return [{"role": "user", "content": text}]


def packaged(task: str) -> TrainTestSplit:
    """Return the examples of two JSONL files in this package: chat prompts from the column ``question``."""

    def read(split: str) -> Examples:
        text = resources.files("seedtune.tasks").joinpath("data", f"{task}_{split}.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        return examples([{**row, "question": chat(row["question"])} for row in rows], split, prompt_column="question")

    return read("train"), read("test")


def hold_out(rows: Examples, share: float) -> TrainTestSplit:
    """Split rows into (train, held out), with min(⌊share·rows⌋, 128) held out; both keep order and row numbers.

    The held-out rows follow a fixed permutation that depends on no setting, so that runs with different seeds stay
    comparable.
    """
    count = min(int(share * len(rows)), MOST)
    if not count:
        return rows, ()
    chosen = set(noise.permutation(_HELD_OUT, len(rows))[:count].tolist())
    train = tuple(row for place, row in enumerate(rows) if place not in chosen)
    return train, tuple(rows[place] for place in sorted(chosen))
