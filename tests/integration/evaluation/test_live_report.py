"""The report of a run in progress: who can read it, and what it says of the run."""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from made_up_runs import made_up_run
from seedtune.errors import ConfigError
from seedtune.evaluation import live_report
from seedtune.evaluation.live_report import LiveServer, state_of
from seedtune.run.directory import RunPaths
from waiting import wait_until

NOW = 1_700_000_000.0


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run of which 20 generations of 10 s and an evaluation of 4 s are complete, written at `NOW`."""
    found = RunPaths(made_up_run(tmp_path / "run", generations=20, prompts=3))
    found.config.write_text(found.config.read_text().replace('"generations": 20', '"generations": 100'))
    os.utime(found.metrics, (NOW, NOW))
    return found


@pytest.fixture
def server(paths: RunPaths) -> Iterator[LiveServer]:
    with LiveServer(paths) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def ask(server: LiveServer, path: str = "", *, method: str = "GET", host: str | None = None) -> HTTPResponse:
    at = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(at.hostname), at.port)
    connection.putrequest(method, path if path.startswith("/") else at.path + path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or at.netloc)
    connection.endheaders()
    return connection.getresponse()


def test_the_page_has_the_report_and_the_state(server: LiveServer) -> None:
    reply = ask(server)
    page = reply.read().decode()
    assert reply.status == 200
    assert "default-src 'none'" in str(reply.headers["Content-Security-Policy"])
    assert re.search(
        r"<p id=status role=status class=\w+ data-stamp=\"[^\"]+\">Stalled at generation 20 of 100: ", page
    )
    assert "<h2 id=rewards-h>Rewards</h2>" in page
    assert ask(server, "live.js").headers["Content-Type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[", "evil.example:80@127.0.0.1", ""])
def test_a_request_for_another_host_is_refused(host: str, server: LiveServer) -> None:
    reply = ask(server, host=host)
    assert reply.status == 403
    assert b"run-a" not in reply.read()


def test_a_forwarded_port_has_another_number(server: LiveServer) -> None:
    assert ask(server, host="localhost:8000").status == 200


@pytest.mark.parametrize("path", ["/", "/state", "/../metrics.jsonl", "/KEY/../../etc/passwd", "/KEY/metrics.jsonl"])
def test_nothing_else_is_there(path: str, server: LiveServer) -> None:
    key = urlsplit(server.url).path.strip("/")
    assert ask(server, path.replace("KEY", key)).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_sent(method: str, server: LiveServer) -> None:
    assert ask(server, method=method).status == 501


def test_it_listens_at_this_machine_only(server: LiveServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_a_used_port_is_one_line(server: LiveServer, paths: RunPaths) -> None:
    with pytest.raises(ConfigError, match=rf"--port {server.server_port}: .*Choose another"):
        LiveServer(paths, port=server.server_port)


def test_new_metrics_change_the_page_and_its_stamp(server: LiveServer, paths: RunPaths) -> None:
    before = json.loads(ask(server, "state").read())
    with paths.metrics.open("a") as file:
        file.write(json.dumps({"generation": 21, "reward": 0.875, "reward_std": 0.1, "step_time": 1.0}) + "\n")
    after = json.loads(ask(server, "state").read())
    assert before["stamp"] != after["stamp"]
    assert (after["word"], after["said"]) == ("running", "Running: generation 21 of 100 is complete.")
    assert "0.875" in ask(server).read().decode()


def test_nothing_is_written(server: LiveServer, paths: RunPaths) -> None:
    before = {file: file.stat().st_mtime_ns for file in paths.root.iterdir()}
    ask(server).read()
    assert {file: file.stat().st_mtime_ns for file in paths.root.iterdir()} == before


def test_a_run_stalls_after_several_usual_generations_and_the_slowest_evaluation(paths: RunPaths) -> None:
    assert state_of(paths, now=NOW + 53).word == "running"
    found = state_of(paths, now=NOW + 55)
    assert found.word == "stalled"
    assert "a generation usually takes 10 s" in found.said


def test_a_run_has_ended_once_its_report_is_written(paths: RunPaths) -> None:
    paths.report.write_text("page")
    assert state_of(paths, now=NOW + 1e6) == live_report.RunState("ended", "Ended after generation 20 of 100.")
    os.utime(paths.report, (NOW - 1, NOW - 1))  # it was resumed
    assert state_of(paths, now=NOW + 1).word == "running"


def test_a_run_without_metrics_loads_its_model(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.config.write_text("generations: 7")
    os.utime(paths.config, (NOW, NOW))
    assert state_of(paths, now=NOW + 60).word == "loading"
    assert "loading takes minutes at most" in state_of(paths, now=NOW + 3600).said


def test_forged_times_do_no_harm(paths: RunPaths) -> None:
    forged = {"step_time": 1e308, "eval_time": float("nan"), "alarms": ["<img src=x>"]}
    with paths.metrics.open("a") as file:
        file.writelines(json.dumps({"generation": g, "reward": 0.0, **forged}) + "\n" for g in range(21, 90))
    paths.config.write_text('{"generations": 1e999, "model": "<img src=x>"}')
    assert state_of(paths).word in ("running", "stalled")
    assert "<img" not in live_report.LiveReport(paths).page()


def test_changes_of_the_state_are_announced_once(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_report, "CHECKED", 0.0)
    said: list[str] = []
    with LiveServer(paths, announce=said.append) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        assert wait_until(lambda: len(said) == 1)
        paths.report.write_text("page")
        assert wait_until(lambda: len(said) == 2)
        found.shutdown()
        thread.join()
    assert [line.split(" ")[0] for line in said] == ["Stalled", "Ended"]
