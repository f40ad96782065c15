"""A worker process: whatever a reward function does costs its call, and nothing else."""

from __future__ import annotations

import datetime
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest

import hostile
import runs
from seedtune.errors import ConfigError
from seedtune.rewards.execution import process
from seedtune.rewards.execution.call import RewardCall, RewardResult, received, sent
from seedtune.rewards.execution.process import Excerpt, ProcessWorker
from seedtune.rewards.sources.adapters import load
from waiting import BOUND, alive, wait_until

FILE = hostile.__file__
MEMORY = 200
FULL = f"ran out of memory (reward_memory_mb={MEMORY}): it raised "


@pytest.fixture(scope="module")
def worker():
    made = ProcessWorker(MEMORY)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _little_grace(monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.2)


def called(worker: ProcessWorker, name: str, completions=("ab", "c"), *, seconds: float = 60.0) -> RewardResult:
    source = name if "." in name else f"hostile.{name}"
    return worker.call(RewardCall(len, source, {"completions": list(completions)}, len(completions), seconds))


def pid_of(worker: ProcessWorker) -> int:
    return int(called(worker, "pid").values[0])


def ended(pid: int) -> bool:
    """Waits for the end of a process."""
    return wait_until(lambda: not alive(pid))


def test_values_come_back_in_order(worker):
    assert called(worker, "length") == RewardResult([2.0, 1.0])


def test_entries_of_the_search_path_that_are_no_text_are_left_to_python(monkeypatch):
    monkeypatch.setattr(sys, "path", [Path("elsewhere"), *sys.path, None])
    fresh = ProcessWorker(MEMORY)
    assert called(fresh, "length") == RewardResult([2.0, 1.0])
    fresh.close()


def test_modules_of_the_working_directory_hide_none_of_pythons(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('not me')\n")
    started = ProcessWorker(0)
    assert called(started, "length").values == [2.0, 1.0]
    started.close()


def test_it_stays_for_many_calls_and_is_another_process(worker):
    assert pid_of(worker) == pid_of(worker) != os.getpid()


@pytest.mark.parametrize("name", ["gated", "rings"])
def test_async_functions_run_in_its_one_event_loop_and_main_thread(worker, name):
    assert [called(worker, name).values for _ in range(3)] == [[1.0, 1.0]] * 3


def test_it_computes_with_one_thread(worker):
    assert called(worker, "threads").values == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "kind", "message", "details"),
    [
        ("exits", "exception", "raised SystemExit: bye", "hostile.py"),
        ("leaves", "crash", "ended its process (exit code 3)", ""),
        ("kills_its_group", "crash", "ended its process (killed by SIGKILL)", ""),
        ("exhausts_memory", "memory", f"{FULL}MemoryError", "held.append"),
        ("starts_threads", "memory", f"{FULL}RuntimeError: can't start new thread", "hostile.py"),
        ("hides_its_error", "memory", f"{FULL}ValueError: something went wrong", "held.append"),
        ("raises", "exception", "raised KeyError: 'answer'", 'raise KeyError("answer")'),
        ("async_raises", "exception", "raised RuntimeError: in a loop", "async_raises"),
        ("too_few", "value", "returned 0 values for 2 completions: return one number or None for each", ""),
        ("text", "value", "returned '0.5', which is text: return a number or None", ""),
        ("infinite", "value", "returned -inf, which is not finite: return a number or None", ""),
    ],
)
def test_what_goes_wrong_costs_the_call_and_is_told(worker, name, kind, message, details):
    answer = called(worker, name)
    assert all(math.isnan(value) for value in answer.values)
    assert [(fault.kind, fault.message) for fault in answer.faults.values()] == [(kind, message)] * 2
    assert details in answer.faults[0].details
    assert called(worker, "length").values == [2.0, 1.0]


@pytest.mark.parametrize("name", ["allocates_in_torch", "allocates_in_cpp"])
def test_memory_that_is_missed_in_other_words_is_told_with_the_limit(worker, name):
    fault = called(worker, name).faults[0]
    assert fault.kind == "memory"
    assert fault.message.startswith(f"ran out of memory (reward_memory_mb={MEMORY}): it ")
    assert called(worker, "length").values == [2.0, 1.0]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit it")
def test_a_lower_limit_of_the_machine_holds_and_is_named():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (300 << 20, 300 << 20))\n"
        "from seedtune.rewards.execution.call import RewardCall\n"
        "from seedtune.rewards.execution.process import ProcessWorker\nworker = ProcessWorker(2048)\n"
        "call = lambda name: worker.call(RewardCall(len, 'hostile.' + name, {'completions': ['ab']}, 1, 60))\n"
        "print(call('length').values, call('exhausts_memory').faults[0].message); worker.close()"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(runs.SOURCE), str(Path(FILE).parent)])}
    process = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, env=path, text=True, check=True)
    limits = "reward_memory_mb=2048 and ulimit: 300 MiB"
    assert process.stdout == f"[2.0] ran out of memory ({limits}): it raised MemoryError\n"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("hostile.not_there", "there is no 'not_there' in it."),
        ("no.such.module", "there is no module 'no'. Run"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_told(worker, name, why):
    answer = called(worker, name)
    assert {fault.kind for fault in answer.faults.values()} == {"load"}
    assert answer.faults[0].message.startswith(f"raised ConfigError: the reward {name!r}: {why}")
    assert called(worker, "length").values == [2.0, 1.0]


@pytest.mark.parametrize("name", ["sleeps", "holds_the_lock"])
def test_a_hang_ends_at_the_time_out_and_says_where(worker, name, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 1.0)  # to say where, also beside other work
    before = pid_of(worker)
    fault = called(worker, name, seconds=1.0).faults[0]
    assert (fault.kind, fault.message) == ("hang", "took longer than 1 s")
    assert f"in {name}" in fault.details
    assert ended(before)
    assert called(worker, "length").values == [2.0, 1.0]


def test_a_call_that_closes_its_files_costs_only_itself(worker):
    assert called(worker, "closes_everything", seconds=0.3).faults[0].kind in ("crash", "hang")
    assert called(worker, "length").values == [2.0, 1.0]


def test_output_is_dropped_but_for_its_ends(worker, capfd):
    assert called(worker, "prints_much").values == [0.5, 0.5]
    details = called(worker, "prints_much_and_raises").faults[0].details
    assert len(details) < 10_000
    for part in ("ValueError: after all that", "first words", "last words", "bytes …"):
        assert part in details
    assert capfd.readouterr() == ("", "")


def test_a_locale_that_lacks_a_character_fails_no_function_that_prints_it(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    worker = ProcessWorker(MEMORY)
    assert called(worker, "prints_any_text").values == [1.0, 1.0]
    worker.close()


def test_an_excerpt_keeps_both_ends_whatever_the_pieces():
    for pieces in ([b"ab", b"c" * 5000, b"yz"], [bytes([c]) for c in b"ab" + b"c" * 5000 + b"yz"]):
        excerpt = Excerpt()
        for piece in pieces:
            excerpt.add(piece)
        assert excerpt.text() == f"ab{'c' * 998}\n… 1,004 bytes …\n{'c' * 2998}yz"
    short = Excerpt()
    short.add(b"\xff word ")
    assert short.text() == "\ufffd word"


def test_standard_input_is_empty(worker):
    assert called(worker, "reads_input").values == [0.0, 0.0]


def test_a_fork_in_user_code_does_not_answer_twice(worker):
    assert called(worker, "forks").values == [2.0, 2.0]
    assert called(worker, "length").values == [2.0, 1.0]


def test_a_process_that_ended_between_two_calls_costs_none(worker):
    pid = pid_of(worker)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid)
    assert called(worker, "length").values == [2.0, 1.0]


def test_a_process_that_is_just_ending_costs_none(worker, monkeypatch):
    pid = pid_of(worker)
    os.kill(pid, signal.SIGKILL)
    monkeypatch.setattr(worker._process, "poll", lambda: None)  # its threads have not ended yet
    assert called(worker, "length").values == [2.0, 1.0]


def test_a_process_that_is_stuck_between_two_calls_costs_none(worker, monkeypatch):
    monkeypatch.setattr(process, "SIGN_SECONDS", 0.2)
    pid = pid_of(worker)
    os.kill(pid, signal.SIGSTOP)
    assert called(worker, "length").values == [2.0, 1.0]
    assert ended(pid)


def test_closing_ends_the_process():
    worker = ProcessWorker(0)
    pid = pid_of(worker)
    worker.close()
    assert ended(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="adopts processes as Linux allows it")
@pytest.mark.parametrize("last", [None, "leaves", "kills_its_group", "sleeps"])
def test_what_a_function_started_in_a_session_of_its_own_ends_with_the_process(last):
    worker = ProcessWorker(0)
    started = int(called(worker, "starts_a_session").values[0])
    assert alive(started)
    if last is None:
        worker.close()
    else:
        assert called(worker, last, seconds=0.2).faults
    assert ended(started)
    worker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="adopts processes as Linux allows it")
def test_a_descendant_that_may_not_be_killed_is_left_alone():
    """As one of another user (setuid) is; the process still ends as the function left it."""
    script = """if True:
        import os, subprocess
        from pathlib import Path
        from seedtune.rewards.execution import supervisor

        kill = os.kill
        def refused(pid, number):
            if b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes():
                raise PermissionError
            kill(pid, number)

        os.kill = refused
        supervisor.supervise(os.pipe()[0])
        subprocess.Popen(["sleep", "2"], start_new_session=True)
        os._exit(7)
    """
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", script], timeout=BOUND).returncode == 7
    assert time.monotonic() - started < 2


def test_a_function_that_stops_the_process_above_it_hangs_no_run(monkeypatch):
    monkeypatch.setattr(process, "SIGN_SECONDS", 0.2)
    worker = ProcessWorker(0)
    pid = pid_of(worker)
    called(worker, "stops_its_parent")
    worker.close()
    assert ended(pid)


def test_stopping_ends_a_call_that_runs():
    worker = ProcessWorker(0)
    called(worker, "length")
    stopping = threading.Timer(0.2, worker.stop)
    stopping.start()
    assert called(worker, "sleeps", seconds=1e6).faults[0].kind in ("crash", "load")
    worker.close()
    stopping.join()


@pytest.mark.parametrize("name", ["sleeps", "holds_the_lock"])
@pytest.mark.parametrize("started", ["pid", "starts_a_session"])
def test_no_worker_outlives_a_parent_that_is_killed(name, started):
    code = (
        "import threading, time\nfrom seedtune.rewards.execution.call import RewardCall\n"
        "from seedtune.rewards.execution.process import ProcessWorker\nworker = ProcessWorker(0)\n"
        "call = lambda name: worker.call(RewardCall(len, 'hostile.' + name, {'completions': ['']}, 1, 1e6))\n"
        f"print(int(call('{started}').values[0]), flush=True)\nthreading.Thread(target=call, args=('{name}',)).start()"
    )
    path = os.pathsep.join([str(runs.SOURCE), str(Path(FILE).parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        parent.wait()
        assert ended(pid)


# ------------------------------------------------------------------------- what is sent and loaded


class Words(str):
    """Text of a type of its own."""


@pytest.mark.parametrize("value", [{1: 2}, {"day": {datetime.date(2026, 1, 1)}}, [1j], [Words("x")]], ids=repr)
def test_data_that_json_would_change_is_not_sent(worker, value):
    with pytest.raises(TypeError, match="its data hold a"):
        sent(value)
    answer = worker.call(RewardCall(len, "hostile.length", {"completions": ["a"], "column": [value]}, 1, 1.0))
    assert answer.faults[0].kind == "send"
    assert "cannot be called in a worker process, because its data hold a" in answer.faults[0].message


def test_plain_data_arrives_as_it_is(worker):
    data = ["σ\ud800\n", 0.1, 1e308, 2**70, True, None, {"a": [{}]}]
    assert received(json.dumps(sent(data)).encode()) == data
    answer = worker.call(RewardCall(len, "hostile.size", {"completions": data}, 7, 60.0))
    assert answer.values == [7.0] * 7


@pytest.mark.parametrize(
    "value",
    [
        datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC), datetime.date(2026, 1, 2), datetime.time(3, 4),
        datetime.timedelta(days=-1, microseconds=7), Decimal("1.50"), b"\xff\0", (1, (b"", [()])), {"a": (None,)},
    ],
    ids=repr,
)  # fmt: skip
def test_values_that_tables_have_and_json_has_not_arrive_as_they_are(value):
    assert repr(received(json.dumps(sent([value])).encode())) == repr([value])


def test_a_function_is_loaded_from_a_file_or_by_its_dotted_name(tmp_path):
    (tmp_path / "beside.py").write_text("VALUE = 3.5\n")
    (tmp_path / "random.py").write_text(
        "from __future__ import annotations\nimport dataclasses, beside\n@dataclasses.dataclass\nclass A:\n"
        "    x: int = 0\n    @staticmethod\n    def f(completions): return [beside.VALUE]\n"
        "if __name__ == '__main__': raise SystemExit\n"
    )
    source = f"{tmp_path / 'random.py'}:A.f"
    worker = ProcessWorker(0)
    assert called(worker, source, ["x"]).values == [3.5]
    worker.close()
    assert load("seedtune.tasks.builtin.conciseness.length_error").__name__ == "length_error"
    with pytest.raises(ConfigError, match="'word' does not name a function in a file or module"):
        load("word")
