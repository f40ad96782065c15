"""Own data: every format gives the same rows, and what is malformed is named with its line."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from seedtune.config.data_and_rewards import DatasetSettings
from seedtune.errors import DataError, MissingExtraError
from seedtune.tasks.base import Task
from seedtune.tasks.data import datasets
from seedtune.tasks.data.datasets import READERS
from seedtune.tasks.data.rows import MOST, examples, hold_out

ROWS = [{"prompt": "2 + 2 =", "answer": "4"}, {"prompt": 'è, "é"\n:', "answer": "ü\u2028"}]

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'Say "hi"'}]


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
        ("x.jsonl", '{"prompt": "a"}\n{"a": {"b": 1, "b": 2}}', "line 2 is not JSON: an object names 'b' twice. "),
        ("x.json", '[{"prompt": "a", "prompt": "b"}]', "x.json line 1 is not JSON: an object names 'prompt' twice. "),
        ("x.jsonl", '{"prompt": "a"}\n"b\n{"prompt": "c"}\n', "x.jsonl line 2 is not JSON: "),
        ("x.jsonl", "\n \n", "x.jsonl is empty. Give at least one row with a prompt."),
        ("x.json", "", "x.json is empty."),
        ("x.json", "[]", "x.json is empty."),
        ("x.json", '{"data": []}', "x.json holds an object, not a list of rows."),
        ("x.json", '[{"prompt": "a"}, null]', "x.json row 1 holds null, not an object."),
        ("x.csv", "", "x.csv is empty."),
        ("x.csv", "prompt,answer\n", "x.csv is empty."),
        ("x.csv", "prompt,answer\na,1\nb\n", "x.csv line 3 has 1 values for 2 columns. Mend it."),
        ("x.csv", "prompt,answer\na,1,2\n", "x.csv line 2 has 3 values for 2 columns."),
        ("x.csv", "prompt,prompt\na,1\n", "x.csv line 1 names a column twice: prompt, prompt."),
        ("x.csv", 'prompt\n"a"b\n', "x.csv line 2 is not CSV: "),
        ("x.parquet", b"PAR1 but not really", "x.parquet cannot be read as Parquet: "),
        ("x.xlsx", b"PK", "ends in none of .jsonl, .json, .csv, .parquet. Convert or rename it."),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named_with_its_line(tmp_path, name, data, message):
    assert message in error_of(write(tmp_path, name, data))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("lines.json", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("list.jsonl", json.dumps(ROWS)),
        ("indented.jsonl", json.dumps(ROWS, indent=2)),
        ("objects.json", "\n" + "\n".join(json.dumps(row, indent=2) for row in ROWS)),
    ],
)
def test_rows_of_json_are_read_whatever_the_file_is_called(tmp_path, name, data):
    assert read(write(tmp_path, name, data)) == ROWS


def test_a_csv_field_may_be_large_and_the_limit_of_others_stays(tmp_path):
    text, usual = "a" * 400_000, csv.field_size_limit()
    assert read(write(tmp_path, "x.csv", f"prompt\n{text}\n")) == [{"prompt": text}]
    assert csv.field_size_limit() == usual


# ---------------------------------------------------------------- rows as other programs make them


def example_of(prompt, **columns):
    (made,) = examples([{"prompt": prompt, **columns}], "train")
    return made


def test_messages_as_json_text_in_a_column_are_messages(tmp_path):
    text = json.dumps(CHAT).replace('"', '""')
    (made,) = examples(read(write(tmp_path, "x.csv", f'prompt,n\n"{text}",1\n')), "train")
    assert (made.prompt, made.columns) == (tuple(CHAT), {"n": "1"})


@pytest.mark.parametrize("text", ['{"role": "user", "content": "Hi"}', '[{"from": "human", "value": "Hi"}]'])
def test_other_messages_as_text_are_refused_as_the_data_they_are(text):
    with pytest.raises(DataError, match=r"row 0 of the train data: the prompt .* is neither text nor a list of mess"):
        example_of(text)


@pytest.mark.parametrize("text", [repr(CHAT), '[{"role": "user", "content": "Hi"]', '[{"content": "Hi", "role": }]'])
def test_text_that_should_have_been_messages_is_refused_with_the_row(text):
    with pytest.raises(
        DataError, match=r"row 0 of the train data: the prompt .* is not JSON.* json\.dumps\(messages\)"
    ):
        example_of(text)


@pytest.mark.parametrize(
    "text",
    [
        *('["a", "b"]', 'Explain [{"role": "user"}]', "[{}]", '[{"roles": 1}]'),
        *('{"content": "bonjour", "lang": "fr"}', '{"content": oops}', '[{"role": "admin", "rights": ["read"]}]'),
        *('{"from": "Ann", "content": "Hi"}', '[{"content": 1}, {"content": 2}]'),
    ],
)
def test_other_text_with_json_in_it_stays_text(text):
    assert example_of(text).prompt == text


def test_messages_hold_what_json_holds_and_no_nulls_of_a_table():
    message = {"role": "user", "content": "Hi", "at": datetime(2024, 5, 1, 12), "name": None, "n": np.int64(3)}
    assert example_of([message]).prompt == ({"role": "user", "content": "Hi", "at": "2024-05-01T12:00:00", "n": 3},)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), ": a message holds what JSON cannot: "),
        (b"\xff", ": a message holds what JSON cannot: "),
        ((lambda loop: loop.append(loop) or loop)([]), " is nested too deeply, or contains itself. "),
    ],
    ids=["object", "bytes", "loop"],
)
def test_a_message_that_json_cannot_hold_is_refused_with_the_row(value, message):
    with pytest.raises(DataError, match=f"^row 0 of the train data{message}"):
        example_of([{"role": "user", "content": "Hi", "extra": value}])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array([(1, "a")], dtype=[("n", "i4"), ("t", "O")]), [(1, "a")]),
        ([1, 2.5, True, None, "x", {"k": (1,)}], [1, 2.5, True, None, "x", {"k": (1,)}]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([{"a": np.array([1])}, None], dtype=object), [{"a": [1]}, None]),
        ({"k": [np.int8(1)], "t": (np.int8(1),)}, {"k": [1], "t": (1,)}),
        (np.datetime64("2024-05-01", "ns"), datetime(2024, 5, 1)),
        (np.array(["2024-05-01"], dtype="datetime64[ns]"), [datetime(2024, 5, 1)]),
        (np.datetime64("NaT"), None),
    ],
    ids=repr,
)
def test_values_of_numpy_become_those_of_python(value, expected):
    found = example_of(np.array(CHAT, dtype=object), value=value)
    assert found.prompt == tuple(CHAT)
    assert found.columns == {"value": expected}
    assert repr(found.columns["value"]) == repr(expected)


def test_plain_values_are_looked_at_once():
    calls = Counter()

    def count(frame, event, _):
        calls[frame.f_code.co_name] += event == "call"

    sys.setprofile(count)
    try:
        example_of("Hi", ids=list(range(500)), array=np.arange(500))
    finally:
        sys.setprofile(None)
    assert calls["_python"] < 10


def test_rows_of_a_data_frame_are_those_it_was_made_from(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(save_parquet(tmp_path, [{"prompt": CHAT, "n": 1, "tags": ["a"]}]))
    frame["gone"] = pandas.array([pandas.NA], dtype="Int64")
    (made,) = examples(frame.to_dict("records"), "train")
    assert (made.prompt, made.columns) == (tuple(CHAT), {"n": 1, "tags": ["a"], "gone": None})
    frame["at"], frame["took"] = pandas.Timestamp("2024-05-01"), pandas.Timedelta(hours=1)
    (made,) = examples(frame.to_dict("records"), "train")
    assert [type(made.columns[name]) for name in ("at", "took")] == [datetime, timedelta]


def test_numbers_that_json_cannot_hold_are_refused_with_the_row():
    assert example_of("Hi", n=10**4000).columns["n"] == 10**4000
    with pytest.raises(DataError, match=r"row 0 of the train data holds a number of thousands .* make it text"):
        example_of("Hi", n=[10**5000])


def test_the_digest_of_a_task_sees_dates_and_is_the_same_for_numpy_values():
    digests = [
        Task("t", (example_of("Hi", when=when, n=n, odd={(1, 2): 3}),), (), ()).digest()
        for when, n in [(date(2024, 5, 1), 1), (date(2024, 5, 1), np.int64(1)), (date(2024, 5, 2), 1)]
    ]
    assert digests[0] == digests[1] != digests[2]


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

    def load_dataset(path, name, split, **revision):
        asked.append((path, name, split, *revision.values()))
        return library.Dataset.from_list(ROWS)

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    assert read("openai/gsm8k", name="main") == ROWS
    assert read("gsm8k", "test") == ROWS
    assert read("org/data", split="train[:10]") == ROWS
    assert read("org/data@v1") == ROWS
    assert asked == [
        ("openai/gsm8k", "main", "train"),
        ("gsm8k", None, "test"),
        ("org/data", None, "train[:10]"),
        ("org/data", None, "train", "v1"),
    ]


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


@pytest.mark.parametrize("form", ["numpy", "pandas", "torch", "arrow"])
def test_rows_of_a_data_set_are_plain_whatever_its_format(library, form):
    data = library.Dataset.from_list([{"prompt": "a", "n": [1, 2]}])
    assert examples(data.with_format(form), "train") == examples(data, "train")


@pytest.mark.parametrize("row", ["text", None, ("a", 1)], ids=lambda row: type(row).__name__)
def test_a_row_that_is_no_mapping_is_named(row):
    with pytest.raises(DataError, match=f"row 1 of the train data is a {type(row).__name__}, not a mapping"):
        examples([{"prompt": "a"}, row], "train")


@pytest.mark.parametrize(
    "rows", ["text", b"text", {"prompt": ["a"]}, 5, object()], ids=lambda rows: type(rows).__name__
)
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
