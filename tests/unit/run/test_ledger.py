"""The ledger: exact, append-only, and sure to notice what was not written by it."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgers import HEADER, begun, record, write
from seedtune.errors import LedgerError, RunError, StorageError
from seedtune.run import ledger, recorded_config, sealing
from seedtune.run.ledger import Ledger
from seedtune.run.records import Record


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "ledger.jsonl"


# ------------------------------------------------------------------ round trip


def test_what_was_written_is_read_back_exactly(path):
    write(path)
    contents = ledger.read(path)
    assert contents.header == HEADER
    assert contents.fingerprints == {2: f"{1:032x}"}
    assert contents.generations == 3
    # NaN is no float that equals itself, but repr shows every bit of the others.
    assert repr(contents.records) == repr([record(generation) for generation in range(3)])


@given(value=st.floats(allow_infinity=False), coefficient=st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives_the_round_trip(value, coefficient):
    line = record(0, rewards=(value,) * 3, coefficients=(coefficient,) * 3)
    again = Record.from_json(json.loads(json.dumps(line.to_json())))
    assert repr(again) == repr(line)


def test_a_missing_unperturbed_reward_stays_missing(path):
    book = begun(path, HEADER)
    book.append(record(0, reward_unperturbed=None))
    book.close()
    assert ledger.read(path).records[0].reward_unperturbed is None


def test_the_same_run_writes_the_same_bytes(tmp_path):
    assert write(tmp_path / "a") == write(tmp_path / "b")


def test_resuming_goes_on_as_if_it_had_never_stopped(path, tmp_path):
    straight = write(tmp_path / "straight", 3)
    write(path, 2)
    book, contents = Ledger.resume(path)
    assert contents.generations == 2
    book.append(record(2))
    book.close()
    assert path.read_bytes() == straight


# -------------------------------------------------------------------- torn tail


def test_a_tail_torn_at_any_byte_is_dropped_and_written_again(path):
    whole = write(path)
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        contents = ledger.read(path)
        assert (contents.generations, contents.size, contents.torn) == (2, start, cut - start)
        book, _ = Ledger.resume(path)
        book.append(record(2))
        book.close()
        assert path.read_bytes() == whole


def test_reading_leaves_a_torn_tail_alone_because_its_writer_may_be_alive(path):
    torn = write(path)[:-5]
    path.write_bytes(torn)
    ledger.read(path)
    assert path.read_bytes() == torn


def test_a_header_torn_at_any_byte_is_no_run_yet_and_is_written_anew(path, tmp_path):
    whole = write(tmp_path / "whole", 0)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert not ledger.has_begun(path)
        with pytest.raises(RunError, match="the run stopped before it began"):
            ledger.read(path)
        begun(path, HEADER).close()
        assert path.read_bytes() == whole


# ------------------------------------------------------------------- corruption


def test_a_flipped_bit_at_any_byte_is_found_and_its_line_named(path):
    whole = write(path, 2)
    line = 1
    for place, byte in enumerate(whole):
        path.write_bytes(whole[:place] + bytes([byte ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(LedgerError, match=rf"ledger\.jsonl line {line} is corrupted"):
            ledger.read(path)
        line += byte == ord("\n")


@given(data=st.data())
def test_lines_that_change_places_or_vanish_are_found(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    lines = write(path, 4).splitlines(keepends=True)
    kept = data.draw(st.lists(st.sampled_from(lines), min_size=1, max_size=len(lines)))
    path.write_bytes(b"".join(kept))
    if kept == lines[: len(kept)]:
        assert ledger.read(path).header == HEADER
        return
    with pytest.raises(LedgerError, match="corrupted"):
        ledger.read(path)


def test_a_changed_header_is_found(path):
    path.write_bytes(write(path).replace(b'"sigma":0.1', b'"sigma":0.2', 1))
    with pytest.raises(LedgerError, match=r"line 1 is corrupted.*Restore the file from a copy\.$"):
        ledger.read(path)


def test_the_message_about_a_corrupted_line_says_how_many_lines_are_good(path):
    whole = write(path)
    path.write_bytes(whole.replace(b'"generation":2', b'"generation":3'))
    with pytest.raises(LedgerError, match=r"line 5 .*head -n 4"):
        ledger.read(path)
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    assert ledger.read(path).generations == 2


def test_a_generation_out_of_order_is_refused(path):
    book = begun(path, HEADER)
    book.append(record(1))
    book.close()
    with pytest.raises(LedgerError, match=r"line 2 .*it records generation 1, but 0 was expected"):
        ledger.read(path)


def test_a_ledger_of_another_format_is_refused(path):
    begun(path, replace(HEADER, format=2)).close()
    with pytest.raises(LedgerError, match="ledger format 2; this version reads format 1"):
        ledger.read(path)


def test_the_element_type_of_the_weights_is_kept(path):
    begun(path, replace(HEADER, resolved_weights_dtype="bfloat16")).close()
    assert ledger.read(path).header.resolved_weights_dtype == "bfloat16"


def sealed(path: Path, *lines: dict) -> None:
    """A ledger of lines with good checksums."""
    check, whole = "", b""
    for data in lines:
        line, check = sealing.seal(data, check)
        whole += line
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": ["0+", "zero"]}, "not a member label: 'zero'"),
        ({"rewards": [1.0]}, "members, rewards and coefficients do not go together"),
        ({"members": [], "rewards": [], "coefficients": []}, "members, rewards and coefficients do not go together"),
        ({"coefficients": None}, "coefficients=None: must be a valid list"),
        ({"sigma": "x"}, "sigma='x': must be a valid number"),
        ({"sigma": 0.0}, "sigma=0.0: must be greater than 0"),
        ({"alpha": True}, "alpha=True: must be a valid number"),
        ({"coefficients": [1.0, "2", 3.0]}, "coefficients.1='2': must be a valid number"),
        ({"rewards": [1.0, [], 3.0]}, r"rewards.1=\[\]: must be a valid number"),
        ({"generation": True}, "generation=True: must be a valid integer"),
        ({"generation": 2**40}, "generation=1099511627776: must be less than or equal to"),
        ({"members": ["0+", "9999999999+", "1+"]}, "'9999999999.' is over 32 bits"),
        ({"members": ["0+", "9" * 5000 + "+", "1+"]}, "not a member label"),
        ({"members": 5}, "members=5: must be a valid list"),
        ({"prompts": [-1]}, "prompts.0=-1: must be greater than or equal to 0"),
        ({"tokens": {"prompt": 10**300}}, "tokens.prompt=1000"),
        ({"state": []}, r"state=\[\]: must be a valid dictionary"),
        ({"agreement": "x"}, "agreement='x': must be a valid number"),
        ({"watched": [1.0, "x"]}, "watched.1='x': must be a valid number"),
        ({"shift": {"terms": [[1, 2]], "length": None}}, r"shift.terms.0=\[1, 2\]: List should have at least 3 items"),
        ({"decay": {"l2": 0.1}}, "decay.l1 is missing"),
        ({"rollback_to": -1}, "rollback_to=-1: must be greater"),
        ({"fingerprint": 7, "after": 0}, "fingerprint=7: must be a valid string"),
        ({"fingerprint": "ab", "after": 5}, "the fingerprint after 5 generations comes after 0"),
    ],
    ids=str,
)
def test_a_sealed_line_that_is_no_record_is_named_and_is_no_traceback(path, changes, message):
    sealed(path, HEADER.to_json(), {**record(0).to_json(), **changes})
    with pytest.raises(LedgerError, match=rf"line 2 has a good checksum but is no line .*{message}"):
        ledger.read(path)


def test_a_sealed_header_that_lacks_a_field_is_named(path):
    data = HEADER.to_json()
    del data["base_fingerprint"]
    sealed(path, data)
    message = (
        r"line 1 has a good checksum but .*base_fingerprint is missing\).* or written by another version of seedtune"
    )
    with pytest.raises(LedgerError, match=message):
        ledger.read(path)


def test_a_checksum_over_what_is_no_json_does_not_help(path):
    body = b'{"format":1,x'
    path.write_bytes(body + f',"check":"{sealing._checksum("", body)}"}}\n'.encode())
    with pytest.raises(LedgerError, match="line 1 is corrupted"):
        ledger.read(path)


def test_changed_settings_are_named_with_both_values():
    recorded = {"sigma": 0.1, "toy": {"size": 3}, "stop": []}
    current = {"sigma": 0.2, "toy": {"size": 4}, "rank": 1, "stop": []}
    assert recorded_config.changed_fields(recorded, current) == [
        "rank: None → 1", "sigma: 0.1 → 0.2", "toy.size: 3 → 4",
    ]  # fmt: skip


# -------------------------------------------------------------------- directory


def test_a_second_run_does_not_overwrite_the_first(path):
    before = write(path)
    with pytest.raises(RunError, match=r"already holds a run\. Resume it with 'seedtune resume"), Ledger.claimed(path):
        pass
    assert path.read_bytes() == before
    Ledger.resume(path)[0].close()


@pytest.mark.parametrize("read", [ledger.read, Ledger.resume])
def test_a_folder_without_a_ledger_is_no_run_and_gets_none(path, read):
    with pytest.raises(RunError, match=r"is not a run directory: it has no ledger\.jsonl"):
        read(path)
    assert not path.exists()


def test_a_file_is_no_run_directory(path):
    path.write_text("x")
    with pytest.raises(RunError, match="is not a run directory"):
        ledger.read(path / "ledger.jsonl")


def test_a_ledger_that_cannot_be_read_says_why(path):
    path.mkdir()
    with pytest.raises(LedgerError, match="cannot read"):
        ledger.read(path)


# -------------------------------------------------------------------- full disk


def fail_halfway(monkeypatch, number: int) -> None:
    real, calls = os.pwrite, []

    def pwrite(file, data, offset):
        calls.append(offset)
        if len(calls) > 1:
            raise OSError(number, os.strerror(number))
        return real(file, bytes(data)[: len(data) // 2], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_write_that_fails_halfway_leaves_the_file_as_it_was(path, monkeypatch, number, cause):
    whole = write(path)
    before = b"".join(whole.splitlines(keepends=True)[:-1])
    path.write_bytes(before)
    book, _ = Ledger.resume(path)
    with monkeypatch.context() as patch:
        fail_halfway(patch, number)
        with pytest.raises(StorageError, match=f"{cause}.*seedtune resume {path.parent}"):
            book.append(record(2))
    assert path.read_bytes() == before
    book.append(record(2))
    book.close()
    assert path.read_bytes() == whole


def test_a_flush_that_fails_leaves_the_file_as_it_was(path, monkeypatch):
    before = write(path)
    book, _ = Ledger.resume(path)

    def fsync(_file):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError, match="the disk is full"):
            book.append(record(3))
    book.close()
    assert path.read_bytes() == before


def test_short_writes_are_continued(path, monkeypatch, tmp_path):
    straight = write(tmp_path / "straight")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: real(file, bytes(data)[:7], offset))
    assert write(path) == straight


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "9" * 5000], ids=lambda text: text[:9])
@pytest.mark.parametrize("name", ["sigma", "alpha"])
def test_numbers_that_are_none_in_a_sealed_line_are_refused(path, name, text):
    first, check = sealing.seal(HEADER.to_json())
    body = json.dumps({**record(0).to_json(), name: "HERE"}).replace('"HERE"', text)[:-1].encode()
    path.write_bytes(first + body + f',"check":"{sealing._checksum(check, body)}"}}\n'.encode())
    with pytest.raises(LedgerError, match=r"line 2 (is corrupted|has a good checksum but is no line)"):
        ledger.read(path)


def test_a_deeply_nested_sealed_line_is_refused(path):
    body = b'{"format":1,"x":' + b"[" * 200 + b"]" * 200
    path.write_bytes(body + f',"check":"{sealing._checksum("", body)}"}}\n'.encode())
    with pytest.raises(LedgerError, match="line 1 is corrupted"):
        ledger.read(path)
