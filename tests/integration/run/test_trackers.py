"""Trackers: each package runs for real, and what it holds is what metrics.jsonl holds; none can change a run."""

from __future__ import annotations

import json
import logging
import math
import struct
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import runs
from seedtune.config import fields
from seedtune.config.config import Config
from seedtune.errors import ConfigError, MissingExtraError
from seedtune.rewards import optional
from seedtune.run import directory, recorded_config
from seedtune.run.trackers import TRACKERS, reporting
from seedtune.trainer import ESTrainer

Values = dict[tuple[str, int], float]
"""(name in metrics.jsonl, generation) → value."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> bytes:
    """The ledger of the run without trackers."""
    root = tmp_path_factory.mktemp("plain") / "run"
    ESTrainer(args=runs.toy(root)).train()
    return runs.ledger_bytes(root)


def written(root: Path) -> Values:
    """The numbers in metrics.jsonl, without the lines that are no metrics of a generation or an evaluation."""
    rows = [row for row in runs.rows(directory.RunPaths(root).metrics) if "products" not in row]
    return {
        (name, row["generation"]): float(value)
        for row in rows
        for name, value in row.items()
        if type(value) in (int, float) and name != "generation"
    }


def plain_name(name: str) -> str:
    """The name in metrics.jsonl of one in a tracker."""
    return f"eval_{name.removeprefix('eval/')}" if name.startswith("eval/") else name.removeprefix("train/")


def answers(root: Path) -> dict[int, list[str]]:
    """Generation → the completions in its Parquet file."""
    import pyarrow.parquet

    files = sorted((root / "completions").glob("*.parquet"))
    tables = [pyarrow.parquet.read_table(file).to_pylist() for file in files]
    return {rows[0]["step"]: [row["completion"] for row in rows] for rows in tables}


def reported(tmp_path: Path, name: str, **env: str) -> Path:
    """The directory of a run that reported to a tracker."""
    root = tmp_path / "my run"
    config = runs.toy(root, report_to=name, log_completions=True)
    done = runs.cli("train", runs.write_config(config, tmp_path / "config.yaml"), **env)
    assert done.returncode == 0, done.stderr
    assert "report_to" not in done.stderr
    return root


def test_the_names_in_the_settings_are_those_of_the_trackers():
    assert tuple(TRACKERS) == fields.TRACKERS


@pytest.mark.slow
def test_trackio_holds_the_metrics_the_completions_and_the_configuration(tmp_path, plain, monkeypatch):
    folder = tmp_path / "trackio"
    root = reported(tmp_path, "trackio", TRACKIO_DIR=str(folder))
    monkeypatch.setenv("TRACKIO_DIR", str(folder))
    sqlite = optional.optional("trackio.sqlite_storage", "this test")
    monkeypatch.setattr(sqlite, "TRACKIO_DIR", folder)
    (name,) = sqlite.SQLiteStorage.get_runs("seedtune")
    assert name == (root / "tracked_as.txt").read_text().strip()
    logs = sqlite.SQLiteStorage.get_logs("seedtune", name)
    held = {
        (plain_name(key), row["step"]): float(value)
        for row in logs
        for key, value in row.items()
        if key.startswith(("train/", "eval/"))
    }
    assert held == written(root)
    tables = {row["step"]: row["completions"]["_value"] for row in logs if "completions" in row}
    assert {step: [row["completion"] for row in rows] for step, rows in tables.items()} == answers(root)
    config = sqlite.SQLiteStorage.get_run_config("seedtune", name)
    assert (config["model"], config["toy.size"], config["sigma"]) == ("toy", 4, 0.05)
    assert runs.ledger_bytes(root) == plain


@pytest.mark.slow
def test_tensorboard_holds_the_metrics_and_the_configuration(tmp_path, plain):
    root = reported(tmp_path, "tensorboard")
    module = optional.optional("tensorboard.backend.event_processing.event_accumulator", "this test")
    events = module.EventAccumulator(str(root / "tensorboard"))
    events.Reload()
    held = {
        (plain_name(tag), event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)
    }
    assert held == {key: struct.unpack("f", struct.pack("f", value))[0] for key, value in written(root).items()}
    (text,) = events.Tensors("parameters/text_summary")
    assert json.loads(text.tensor_proto.string_val[0])["toy.size"] == 4
    assert runs.ledger_bytes(root) == plain


@pytest.mark.slow
def test_wandb_without_a_key_writes_the_metrics_the_completions_and_the_configuration(tmp_path, plain):
    anonymous = {"WANDB_API_KEY": "", "NETRC": str(tmp_path / "none"), "HOME": str(tmp_path)}
    root = reported(tmp_path, "wandb", WANDB_DIR=str(tmp_path), **anonymous)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    held: Values = {}
    config, tables = {}, 0
    for record in wandb_records(file):
        rows = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        named = {key: value for key, value in rows.items() if key.startswith(("train/", "eval/"))}
        held |= {(plain_name(key), rows["_step"]): float(value) for key, value in named.items()}
        tables += any(key.startswith("completions") for key in rows)
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    assert held == written(root)
    assert tables == 5
    assert (config["model"], config["toy.size"]) == ("toy", 4)
    assert runs.ledger_bytes(root) == plain


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a file of wandb's: blocks of 32 KiB of chunks with a checksum, a length and a kind."""
    module = optional.optional("wandb.proto.wandb_internal_pb2", "this test")
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield module.Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_mlflow_holds_the_metrics_the_completions_and_the_configuration(tmp_path, plain, monkeypatch):
    env = {"MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}
    root = reported(tmp_path, "mlflow", **env)
    (metrics,) = tmp_path.glob("mlruns/*/*/metrics")
    held = {}
    for file in (path for path in metrics.rglob("*") if path.is_file()):
        for line in file.read_text().splitlines():
            _, value, step = line.split()
            held[str(file.relative_to(metrics)), int(step)] = float(value)
    assert held == written(root)
    assert (metrics.parent / "params" / "toy.size").read_text() == "4"
    table = json.loads((metrics.parent / "artifacts/completions/completions_00003.json").read_text())
    place = table["columns"].index("completion")
    assert [row[place] for row in table["data"]] == answers(root)[3]
    assert "status: 3" in (metrics.parent / "meta.yaml").read_text()  # finished
    assert runs.ledger_bytes(root) == plain


class Mlflow(BaseHTTPRequestHandler):
    """As much of an MLflow server as a run needs, until it is killed after the second batch of metrics."""

    batches = 0

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        route, kind = self.path.partition("?")[0].rpartition("mlflow/")[2], type(self)
        replies = {
            "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "seedtune"}},
            "runs/create": {"run": {"info": {"run_id": "a", "run_uuid": "a", "status": "RUNNING"}, "data": {}}},
        }
        if route == "runs/log-batch":
            kind.batches += 1
        if kind.batches > 4:  # two of them are parameters
            threading.Thread(target=self.server.shutdown, daemon=True).start()
            self.server.socket.close()
            self.close_connection = True
            self.connection.close()
            return
        reply = json.dumps(replies.get(route, {})).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_POST = answer  # noqa: N815 - the names that the base class calls

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_a_run_whose_tracking_server_is_killed_ends_with_the_same_ledger(tmp_path, plain):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Server", (Mlflow,), {}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = tmp_path / "run"
    config = runs.write_config(runs.toy(root, report_to="mlflow"), tmp_path / "config.yaml")
    env = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_port}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = runs.cli("train", config, **env)
    assert done.returncode == 0, done.stderr
    (line,) = runs.lines_of(done.stderr)
    assert line.startswith("report_to: mlflow gets nothing more of this run (")
    assert line.endswith("The run goes on, and metrics.jsonl has everything.")
    assert runs.ledger_bytes(root) == plain


# ---------------------------------------------------------------------------------- functions


def trained(root: Path, *report_to: Any, **settings: Any) -> bytes:
    """The ledger of a run with these trackers."""
    ESTrainer(args=runs.toy(root, report_to=report_to, **settings)).train()
    return runs.ledger_bytes(root)


def test_a_function_hears_every_line_of_metrics(tmp_path, plain):
    heard: list[dict[str, Any]] = []
    assert trained(tmp_path, heard.append) == plain
    assert heard == [row for row in runs.rows(directory.RunPaths(tmp_path).metrics) if "products" not in row]


def test_several_trackers_are_told_and_one_that_fails_is_left_out_after_one_line(tmp_path, plain, caplog):
    heard: list[Mapping[str, Any]] = []
    calls: list[Mapping[str, Any]] = []

    def broken(metrics):
        calls.append(metrics)
        raise ConnectionError("no route to host\nand more")

    with caplog.at_level(logging.WARNING, "seedtune"):
        assert trained(tmp_path, broken, heard.append) == plain
    assert len(calls) == 1
    assert len(heard) == 5 + 4  # generations, evaluations
    assert [record.getMessage() for record in caplog.records] == [
        "report_to: function broken gets nothing more of this run (ConnectionError: no route to host). The run goes "
        "on, and metrics.jsonl has everything."
    ]


def test_a_function_cannot_change_what_is_written(tmp_path, plain):
    assert trained(tmp_path, dict.clear) == plain
    assert all(len(row) > 2 for row in runs.rows(directory.RunPaths(tmp_path).metrics))


def test_a_tracker_that_hangs_holds_nothing_up(tmp_path, plain, monkeypatch, caplog):
    monkeypatch.setattr(reporting, "FINISH_SECONDS", 0.1)
    monkeypatch.setattr(reporting, "PENDING", 3)
    go_on = threading.Event()
    with caplog.at_level(logging.WARNING, "seedtune"):
        assert trained(tmp_path / "many", lambda _: go_on.wait()) == plain
        monkeypatch.setattr(reporting, "PENDING", 100)
        assert trained(tmp_path / "few", lambda _: go_on.wait(), generations=1, eval_steps=0) is not None
    go_on.set()
    full, late = (record.getMessage() for record in caplog.records)
    assert "(3 reports wait for it)" in full
    assert "(it did not finish within 0.1 seconds)" in late


def test_a_tracker_of_a_run_that_is_interrupted_is_closed_as_not_complete(tmp_path, monkeypatch):
    closed: list[bool] = []
    recorder = type(
        "Recorder",
        (),
        {
            **dict.fromkeys(("start", "log", "table"), lambda *_: None),
            "finish": lambda _, complete: closed.append(complete),
        },
    )
    monkeypatch.setitem(TRACKERS, "trackio", recorder)

    class Interrupting:
        def on_generation(self, metrics):
            raise KeyboardInterrupt

    trainer = ESTrainer(args=runs.toy(tmp_path, report_to="trackio"), callbacks=[Interrupting()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.callbacks = ()
    trainer.train(resume_from_checkpoint=True)
    assert closed == [False, True]


def test_trackers_may_change_on_resume_and_the_name_stays(tmp_path, monkeypatch):
    names: list[str] = []
    recorder = {"start": lambda _, run: names.append(run.name)}
    recorder |= dict.fromkeys(("log", "table", "finish"), lambda *_: None)
    for name in ("trackio", "wandb"):
        monkeypatch.setitem(TRACKERS, name, type("Recorder", (), recorder))
    trained(tmp_path / "a run: α", "trackio", print, generations=3)
    changed = recorded_config.run_config(tmp_path / "a run: α").replace(report_to=["wandb"], generations=5)
    ESTrainer(args=changed).train(resume_from_checkpoint=True)
    assert names[0] == names[1]
    assert names[0].startswith("a-run----")


def test_functions_are_not_written_into_the_configuration():
    config = Config(report_to=["tensorboard", print])
    assert config.report_to == ("tensorboard", print)
    assert config.replace(sigma=0.5).report_to == ("tensorboard", print)
    assert config.model_dump(mode="json")["report_to"] == ["tensorboard"]
    assert Config.create(config.model_dump(mode="json")).report_to == ("tensorboard",)


@pytest.mark.parametrize("given", ["none", None, [], ()])
def test_none_is_no_tracker(given):
    assert Config(report_to=given).report_to == ()


def test_an_unknown_tracker_is_an_error_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'wand' is no tracker. Did you mean 'wandb'\? Known: trackio, tensorboard"):
        Config.create({"report_to": ["tensorboard", "wand"]})
    with pytest.raises(ConfigError, match="3 is no tracker"):
        Config.create({"report_to": 3})


@pytest.mark.parametrize("name", fields.TRACKERS)
def test_a_missing_package_is_named_before_the_run_begins(tmp_path, monkeypatch, name):
    def missing(module):
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(optional.importlib, "import_module", missing)
    with pytest.raises(
        MissingExtraError, match=rf"report_to={name} needs a package .* pip install 'seedtune\[{name}\]'"
    ):
        ESTrainer(args=runs.toy(tmp_path / "run", report_to=name))
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------- completions


def test_completions_of_every_generation_load_as_one_data_set(tmp_path, plain):
    datasets = optional.optional("datasets", "this test")
    heard: dict[int, list[dict[str, Any]]] = {}

    class Listener:
        def on_completions(self, generation, rows):
            heard[generation] = rows

    root = tmp_path / "run"
    ESTrainer(args=runs.toy(root, log_completions=True), callbacks=[Listener()]).train()
    files = sorted(file.name for file in (root / "completions").iterdir())
    assert files == [f"completions_{step:05d}.parquet" for step in range(1, 6)]
    with optional.tidied():
        rows = datasets.load_dataset(
            "parquet", data_files=str(root / "completions/*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
        ).to_list()
    assert rows == [row for generation in range(1, 6) for row in heard[generation]]
    assert len(rows) == 5 * 5 * 3  # generations, members with the unperturbed one, prompts
    assert {"step", "member", "prompt", "completion", "reward", "finish"} <= rows[0].keys()
    metrics = [row for row in runs.rows(directory.RunPaths(root).metrics) if "reward" in row]
    for line in metrics:
        mine = [row["reward"] for row in heard[line["generation"]] if row["member"] != "unperturbed"]
        assert math.isclose(sum(mine) / len(mine), line["reward"], rel_tol=1e-12)
    assert runs.ledger_bytes(root) == plain


def test_completions_are_whole_after_an_interruption(tmp_path):
    class Interrupting:
        def on_generation(self, metrics):
            if metrics["generation"] == 3:
                raise KeyboardInterrupt

    one, other = tmp_path / "one", tmp_path / "other"
    ESTrainer(args=runs.toy(one, log_completions=True)).train()
    trainer = ESTrainer(args=runs.toy(other, log_completions=True), callbacks=[Interrupting()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.callbacks = ()
    trainer.train(resume_from_checkpoint=True)
    for file in (one / "completions").iterdir():
        assert (other / "completions" / file.name).read_bytes() == file.read_bytes()
