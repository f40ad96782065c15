"""Files that survive a kill, snapshots, and the report made of them."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from seedtune.config.config import Config
from seedtune.engines import snapshots
from seedtune.engines.toy.engine import ToyEngine
from seedtune.errors import StorageError, storage_cause, storage_error
from seedtune.evaluation import comparison, report
from seedtune.evaluation.html_report.answers import prompt_text
from seedtune.numerics.machine import disk
from seedtune.numerics.noise import Noise
from seedtune.run import directory
from seedtune.run.directory import RunPaths
from seedtune.run.ledger import Ledger
from seedtune.types import Term, Update

ROWS = [{"text": "a\u2028b\x85c\x0bd\r\n"}, {"text": "日本 [b] :smile:"}, {"text": "\ud800 alone"}]


# -------------------------------------------------------------------- JSON lines


def test_any_text_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    directory.append_lines(path, ROWS[:1])
    directory.append_lines(path, ROWS[1:])
    assert directory.read_lines(path) == ROWS


def test_text_is_stored_readably(tmp_path):
    directory.append_lines(tmp_path / "rows.jsonl", ROWS[1:2])
    assert "日本" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")


def test_a_line_torn_at_any_byte_is_passed_over_and_what_follows_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    directory.append_lines(path, ROWS)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole) - 1):
        path.write_bytes(whole[:cut])
        directory.append_lines(path, [{"next": 1}])
        assert directory.read_lines(path) == [*ROWS[:2], {"next": 1}]


def test_no_file_is_no_lines(tmp_path):
    assert directory.read_lines(tmp_path / "rows.jsonl") == []


def test_lines_that_are_no_objects_are_passed_over(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'5\n[1]\n{"a": 1}\n\xff\n')
    assert directory.read_lines(tmp_path / "rows.jsonl") == [{"a": 1}]


def test_writing_lines_replaces_a_file_only_if_something_changes(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    directory.write_lines(path, ROWS)
    assert directory.read_lines(path) == ROWS
    directory.write_lines(path, ROWS[:1])
    assert directory.read_lines(path) == ROWS[:1]
    monkeypatch.setattr(disk, "put", lambda *_: pytest.fail("written for nothing"))
    directory.write_lines(path, ROWS[:1])
    directory.write_lines(tmp_path / "none.jsonl", [])


def test_a_write_that_fails_leaves_the_old_file_and_no_leftover(tmp_path, monkeypatch):
    path = tmp_path / "whole.txt"
    directory.write_whole(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(StorageError, match=f"the disk is full.*seedtune resume {tmp_path}"):
            directory.write_whole(path, b"new")
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"whole.txt": "old"}


def test_an_append_that_fails_says_how_to_go_on(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .* seedtune resume"):
        directory.append_lines(tmp_path / "missing" / "rows.jsonl", ROWS)


def test_a_full_disk_is_recognised_whichever_library_reports_it():
    assert storage_cause(OSError(errno.ENOSPC, "x"))[0] == "the disk is full"
    assert storage_cause(ValueError("I/O error: No space left (os error 28)"))[0] == "the disk is full"
    assert storage_cause(PermissionError(errno.EACCES, "denied"))[1] == "Fix that"
    assert "resume RUN" in str(storage_error(Path("RUN/snapshots/000001"), OSError(5, "x"), run=Path("RUN")))


# --------------------------------------------------------------------- snapshots


def engine() -> ToyEngine:
    made = ToyEngine(Config(model="m", toy={"size": 4}), noise=Noise(0))
    made.load()
    return made


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_only_the_newest_snapshots_are_kept(tmp_path):
    for generations in (1, 2, 3):
        snapshots.save(tmp_path, engine(), generations=generations, keep=2)
    assert names(tmp_path) == ["000002", "000003"]
    assert [one.generations for one in snapshots.listing(tmp_path)] == [3, 2]


def test_a_snapshot_is_written_over_an_older_one_of_the_same_generation(tmp_path):
    toy = engine()
    first = snapshots.save(tmp_path, toy, generations=1, keep=2)
    toy.apply(Update(0, (Term(0, 0, 0.5),)))
    second = snapshots.save(tmp_path, toy, generations=1, keep=2)
    assert first.fingerprint != second.fingerprint
    assert snapshots.listing(tmp_path) == [second]


def test_unfinished_and_broken_snapshots_are_passed_over(tmp_path):
    good = snapshots.save(tmp_path, engine(), generations=1, keep=9)
    texts = {"000002": "{", "000003": "[]", "000004": '{"generations": 4}', "000005": json.dumps({
        "generations": 6, "fingerprint": "x"})}  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "snapshot.json").write_text(text)
    (tmp_path / "000007").mkdir()
    (tmp_path / ".writing-abc" / "snapshot").mkdir(parents=True)
    assert snapshots.listing(tmp_path) == [good]
    snapshots.clear_unfinished(tmp_path)
    assert ".writing-abc" not in names(tmp_path)


def test_a_snapshot_that_cannot_be_written_leaves_the_older_ones(tmp_path, monkeypatch):
    run = tmp_path / "snapshots"
    good = snapshots.save(run, engine(), generations=1, keep=1)

    def fail(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StorageError, match=f"the disk is full.*seedtune resume {tmp_path}"):
        snapshots.save(run, engine(), generations=2, keep=1)
    assert snapshots.listing(run) == [good]
    assert names(run) == ["000001"]


# ------------------------------------------------------------------------ report


def test_a_prompt_is_shown_as_its_text_or_its_last_user_message():
    chat = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    assert prompt_text("plain") == "plain"
    assert prompt_text(chat) == "b"
    assert prompt_text(chat[2:]) == "c"


def sample(generation: int, prompt_id: int, **changes):
    row = {"generation": generation, "split": "test", "prompt_id": prompt_id, "prompt": "<p>"}
    return {**row, "completion": "<i>&", "reward": None, "finish": "stop", **changes}


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    made = RunPaths(tmp_path)
    made.config.write_text("sigma: <1>\n")
    return made


def test_answers_before_and_after_are_those_of_the_first_and_last_evaluation(paths):
    rows = [sample(g, p, completion=f"{g}/{p}") for g in (0, 5, 10) for p in (0, 1)]
    directory.append_lines(paths.samples, [*rows, sample(11, 0, split="train"), sample(10, 7)])
    shown = [(a["completion"], b["completion"]) for a, b in comparison.pairs(paths)]
    assert shown == [("0/0", "10/0"), ("0/1", "10/1")]


def test_a_run_that_has_just_begun_has_a_report(paths):
    page = report.render(paths)
    assert "No held-out evaluation." in page
    assert comparison.pairs(paths) == []


def test_the_report_shows_restored_generations_and_gaps_and_no_raw_markup(paths):
    full = {"generation": 1, "reward": -0.5, "reward_std": 0.1, "reward_best": 0.0, "reward_unperturbed": None}
    restored = {"generation": 2, "reward": None, "reward_unperturbed": None, "restored": True}
    held_out = [{"generation": g, "eval_reward": -1234.5 + g} for g in (0, 2)]
    directory.append_lines(paths.metrics, [held_out[0], full, restored, held_out[1]])
    directory.append_lines(paths.samples, [sample(0, 0), sample(2, 0, reward=-0.25)])
    page = report.render(paths)
    assert "-1,234 → -1,232" in page
    assert "<path" in page
    assert "NaN" not in page
    assert "&lt;i&gt;&amp;" in page
    assert "<i>&" not in page
    assert "<td>&lt;1&gt;</td>" in page


GENERATION = {"generation": 3, "reward": 0.5, "reward_unperturbed": None, "alarms": [], "products": "library"}
SAMPLE = {
    "generation": 3,
    "split": "test",
    "prompt_id": 1,
    "prompt": "2 + 2?",
    "sample": 0,
    "completion": "4",
    "reward": None,
    "right": True,
    "finish": "stop",
}
RESULT = {"task": "t", "prompts": 3, "wording": "", "measures": {"r": {"value": 1}}}
EVALUATION = {"subjects": [{"name": "x", "results": [RESULT]}]}
NEEDED = ("generation", "split", "prompt_id", "subjects")


@pytest.mark.parametrize(
    ("name", "row", "changes"),
    [
        (
            "metrics.jsonl",
            GENERATION,
            [
                {"generation": "3"},
                {"generation": None},
                {"generation": True},
                {"generation": -1},
                {"generation": 10**30},
                {"reward": "0.5"},
                {"reward": [1]},
                {"eval_reward": {}},
                {"alarms": "none"},
                {"alarms": [1]},
                {"products": 5},
                {"step_time": "x"},
            ],
        ),
        (
            "samples.jsonl",
            SAMPLE,
            [
                {"split": "tesu"},
                {"prompt": 5},
                {"prompt": [5]},
                {"prompt": [{}]},
                {"completion": None},
                {"reward": "x"},
                {"prompt_id": "1"},
                {"generation": []},
            ],
        ),
        (
            "evaluations.jsonl",
            EVALUATION,
            [
                {"subjects": []},
                {"subjects": [{"name": "x", "results": []}]},
                {"subjects": [{"name": "x", "results": [{**RESULT, "measures": {"r": {"x": 1}}}]}]},
            ],
        ),
    ],
)
def test_lines_of_another_form_are_passed_over(tmp_path, name, row, changes):
    """A cache with a damaged line, of which each key may be damaged, loses that line."""
    path = tmp_path / name
    missing = [
        {key: value for key, value in row.items() if key != lost}
        for lost in row
        if lost in ("generation", "split", "prompt_id", "subjects")
    ]
    damaged = [*({**row, **change} for change in changes), *missing]
    directory.append_lines(path, [row, *damaged])
    path.write_bytes(path.read_bytes() + b'{"generation": ' + b"[" * 5000 + b"\n\xff\n[]\n")
    assert directory.read_lines(path) == [row]


# ------------------------------------------------------------- links in another's run


def test_a_whole_file_is_never_written_through_a_link(tmp_path, monkeypatch):
    other, run = tmp_path / "theirs", tmp_path / "run"
    other.write_bytes(b"kept")
    run.mkdir()
    (run / "report.html").symlink_to(other)
    directory.write_whole(run / "report.html", b"new")
    assert (run / "report.html").read_bytes() == b"new"
    assert not (run / "report.html").is_symlink()
    monkeypatch.setattr(disk.secrets, "token_hex", lambda size: "0" * 2 * size)
    (run / ".report.html.00000000.part").symlink_to(other)
    with pytest.raises(StorageError, match="File exists"):
        directory.write_whole(run / "report.html", b"newer")
    assert other.read_bytes() == b"kept"


def test_lines_and_ledgers_are_never_appended_through_a_link(tmp_path):
    other = tmp_path / "theirs"
    other.write_bytes(b"kept")
    for name in ("metrics.jsonl", "ledger.jsonl"):
        (tmp_path / name).symlink_to(other)
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        directory.append_lines(tmp_path / "metrics.jsonl", ROWS)
    with pytest.raises(StorageError, match=r"ledger\.jsonl"):
        Ledger(tmp_path / "ledger.jsonl")
    assert other.read_bytes() == b"kept"
