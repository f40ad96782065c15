"""Own data: every format gives the same rows, and what is malformed is named with its line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from seedtune.config.data_and_rewards import DatasetSettings
from seedtune.errors import DataError, MissingExtraError
from seedtune.tasks.data import datasets
from seedtune.tasks.data.datasets import READERS
from seedtune.tasks.data.rows import MOST, examples, hold_out

ROWS = [{"prompt": "2 + 2 =", "answer": "4"}, {"prompt": 'è, "é"\n:', "answer": "ü\u2028"}]


def read(path: Path | str, default: str = "train", **settings) -> list:
    return list(datasets.read(DatasetSettings(path=str(path), **settings), default))


def write(folder: Path, name: str, data: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def error_of(path: Path | str, **settings) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **settings)
    return str(caught.value)


def save_parquet(folder: Path, rows) -> Path:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.Table.from_pylist(rows), folder / "data.parquet")
    return folder / "data.parquet"


def test_every_format_gives_the_same_rows(tmp_path):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    table = 'prompt,answer\r\n2 + 2 =,4\r\n"è, ""é""\n:",ü\u2028\r\n'
    files = [
        write(tmp_path, "data.jsonl", lines),
        write(tmp_path, "UPPER.JSONL", "\ufeff" + lines.replace("\n", "\r\n").rstrip() + "\n\n"),
        write(tmp_path, "data.json", json.dumps(ROWS)),
        write(tmp_path, "data.csv", table),
        save_parquet(tmp_path, ROWS),
    ]
    assert {path.suffix.lower() for path in files} == set(READERS)
    for path in files:
        assert read(path) == ROWS, path


def test_messages_in_json_and_parquet_become_chat_prompts(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "Hi"}], "target": 1}]
    for path in (write(tmp_path, "x.jsonl", json.dumps(rows[0])), save_parquet(tmp_path, rows)):
        (made,) = examples(read(path), "train")
        assert made.prompt == ({"role": "user", "content": "Hi"},)
        assert made.columns == {"target": 1}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', "x.jsonl line 3 is not JSON: "),
        ("x.jsonl", '{"prompt": "a"}\n["a"]\n', 'x.jsonl line 2 holds a list, not an object. Write {"prompt": …}.'),
        ("x.jsonl", "[" * 100_000, "x.jsonl line 1 is not JSON: "),
        ("x.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "x.jsonl line 2 is not UTF-8: invalid start byte"),
        ("x.jsonl", "\n \n", "x.jsonl is empty. Give at least one row with a prompt."),
        ("x.json", "", "x.json is empty."),
        ("x.json", "[]", "x.json is empty."),
        ("x.json", '{"data": []}', "x.json holds an object, not a list of rows."),
        ("x.json", '[{"prompt": "a"}, null]', "x.json row 1 holds null, not an object."),
        ("x.csv", "", "x.csv is empty."),
        ("x.csv", "prompt,answer\n", "x.csv is empty."),
        ("x.csv", "prompt,answer\na,1\nb\n", "x.csv line 3 has 1 values for 2 columns."),
        ("x.csv", "prompt,answer\na,1,2\n", "x.csv line 2 has 3 values for 2 columns."),
        ("x.csv", "prompt,prompt\na,1\n", "x.csv line 1 names a column twice: prompt, prompt."),
        ("x.csv", 'prompt\n"a"b\n', "x.csv line 2 is not CSV: "),
        ("x.parquet", b"PAR1 but not really", "x.parquet cannot be read as Parquet: "),
        ("x.xlsx", b"PK", "ends in none of .jsonl, .json, .csv, .parquet. Convert or rename it."),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named_with_its_line(tmp_path, name, data, message):
    assert message in error_of(write(tmp_path, name, data))


def test_a_file_that_is_not_there_is_named_with_the_nearest(tmp_path):
    write(tmp_path, "train.jsonl", "{}")
    message = error_of(tmp_path / "trian.jsonl")
    assert "there is no data file" in message
    assert message.endswith("Check the path. Did you mean 'train.jsonl'?")
    assert "there is no data file or folder './nothing'" in error_of("./nothing")
    assert "there is no data file or folder 'nowhere/at/all.csv'. Check" in error_of("nowhere/at/all.csv")


def test_splits_and_names_are_not_ignored_where_there_are_none(tmp_path):
    path = write(tmp_path, "x.jsonl", '{"prompt": "a"}')
    assert "split='test' is for Hugging Face data" in error_of(path, split="test")
    assert "name='main' is for Hugging Face data" in error_of(path, name="main")


@pytest.mark.parametrize(("path", "package"), [("x.parquet", "pyarrow.parquet"), ("org/data", "datasets")])
def test_a_missing_package_says_the_line_that_installs_it(tmp_path, monkeypatch, path, package):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "x.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"Install it with: pip install 'seedtune\[data\]'$"):
        read(path)


# ----------------------------------------------------------------------- Hugging Face


@pytest.fixture
def library(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    found = pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def test_ids_names_and_splits_are_given_to_the_library(library, monkeypatch):
    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        return library.Dataset.from_list(ROWS)

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    assert read("openai/gsm8k", name="main") == ROWS
    assert read("gsm8k", "test") == ROWS
    assert read("org/data", split="train[:10]") == ROWS
    assert asked == [("openai/gsm8k", "main", "train"), ("gsm8k", None, "test"), ("org/data", None, "train[:10]")]


def test_data_saved_to_disk_are_read_whole_or_by_split(library, tmp_path):
    data = library.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    library.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert read(tmp_path / "one") == ROWS
    assert read(tmp_path / "two", "test") == ROWS[1:]
    assert "split=valid" in error_of(tmp_path / "two", split="valid")


def test_an_id_that_cannot_be_loaded_is_one_clear_line(library):
    message = error_of("nobody/nothing", name="main")
    assert message.startswith("cannot load the data set 'nobody/nothing' (name=main, split=train): ")
    assert "Give a file, or a Hugging Face id with its name and split." in message


def test_a_split_that_is_not_there_is_told_with_those_that_are(library, monkeypatch):
    def load_dataset(path, name, split):
        raise ValueError(f'Unknown split "{split}".')

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    monkeypatch.setattr(library, "get_dataset_split_names", lambda path, name: ["train", "validation"])
    message = error_of("org/data", split="valid")
    assert "Did you mean 'validation'? Its splits: train, validation." in message


def test_streams_and_whole_dictionaries_of_splits_are_refused(library):
    data = library.Dataset.from_list(ROWS)
    with pytest.raises(DataError, match=r"are streamed \(IterableDataset\).*without streaming=True"):
        examples(data.to_iterable_dataset(), "train")
    with pytest.raises(DataError, match=r"several splits \(train, test\)\. Give one: data\['train'\]"):
        examples(library.DatasetDict({"train": data, "test": data}), "train")
    assert [row.columns for row in examples(data, "train")] == [{"answer": row["answer"]} for row in ROWS]


@pytest.mark.parametrize("rows", ["text", {"prompt": ["a"]}], ids=str)
def test_things_that_are_no_rows_are_named(rows):
    with pytest.raises(DataError, match=f"are a {type(rows).__name__}, not rows"):
        examples(rows, "train")


# -------------------------------------------------------------- columns and holding out


def test_the_prompt_column_is_found_by_its_name_and_the_others_stay():
    (made,) = examples([{"question": "a", "prompt": "b", "x": 1}], "train", prompt_column="question")
    assert (made.prompt, made.columns) == ("a", {"prompt": "b", "x": 1})
    with pytest.raises(DataError, match=r"no 'questoin' \(it holds \['question'\]\)\. Did you mean 'question'"):
        examples([{"question": "a"}], "train", prompt_column="questoin")


def made(count: int):
    return examples([{"prompt": f"p{index}"} for index in range(count)], "train")


def test_held_out_rows_are_a_share_that_keeps_numbers_and_order():
    train, test = hold_out(made(100), 0.1)
    assert (len(train), len(test)) == (90, 10)
    assert sorted([*train, *test], key=lambda row: row.id) == list(made(100))
    for part in (train, test):
        assert [row.id for row in part] == sorted(row.id for row in part)
        assert all(row.prompt == f"p{row.id}" for row in part)
    assert [row.id for row in test] != list(range(90, 100))


def test_holding_out_is_the_same_every_time_and_has_a_limit():
    assert hold_out(made(50), 0.2) == hold_out(made(50), 0.2)
    assert [row.id for row in hold_out(made(20), 0.25)[1]] == [2, 3, 8, 10, 18]
    assert len(hold_out(made(3000), 0.5)[1]) == MOST


@pytest.mark.parametrize(("count", "share"), [(9, 0.1), (100, 0.0), (1, 0.99), (0, 0.5)])
def test_nothing_is_held_out_of_too_little(count, share):
    assert hold_out(made(count), share) == (made(count), ())
