"""Run directories that lost files or lines: the ledger decides, and nothing that it records is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import runs
from seedtune import ESConfig, ESTrainer, evaluate, export_run, pack_run, verify_run
from seedtune.errors import ConfigError, LedgerError, RunError
from seedtune.run import directory, ledger, recorded_config
from seedtune.run.directory import RunPaths

STEPS = {"fingerprint_steps": 2, "save_steps": 2}


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A toy run of four generations."""
    ESTrainer(args=runs.toy(tmp_path / "run", generations=4, **STEPS)).train()
    return tmp_path / "run"


def goes_on(root: Path, generations: int = 6) -> None:
    """Resume a run to more generations, by the settings of its own directory alone."""
    config = recorded_config.run_config(root).replace(generations=generations)
    ESTrainer(args=config).train(resume_from_checkpoint=True)


CACHES = ["metrics.jsonl", "samples.jsonl", "snapshots"]


@pytest.mark.parametrize("lost", [["config.yaml"], ["config.yaml", *CACHES]], ids=len)
def test_a_ledger_alone_is_resumed_as_if_nothing_was_lost(short, tmp_path, lost):
    for name in lost:
        path = short / name
        path.rename(tmp_path / name)
    goes_on(short)
    ESTrainer(args=runs.toy(tmp_path / "whole", generations=6, **STEPS)).train()
    assert runs.ledger_bytes(short) == runs.ledger_bytes(tmp_path / "whole")
    assert runs.fingerprint(short) == runs.fingerprint(tmp_path / "whole")
    assert RunPaths(short).config.is_file()


def test_every_command_works_with_the_ledger_alone(short, tmp_path, command):
    RunPaths(short).config.unlink()
    export_run(short, tmp_path / "model")
    for name, *options in (["resume"], ["verify"], ["eval"], ["samples"], ["inspect"], ["eval", "--save"]):
        RunPaths(short).config.unlink(missing_ok=True)
        code, output, errors = command(name, short, *options)
        assert code == 0, errors
        if name == "resume":
            assert "--generations N" in errors
            assert "done: 4 generations" in output


def test_the_ledger_holds_where_own_data_and_rewards_are(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1"}\n{"prompt": "2"}\n')
    (tmp_path / "mine.py").write_text("def score(completions, **_):\n    return [float(len(c)) for c in completions]\n")
    own = {
        "train_dataset": str(tmp_path / "rows.jsonl"),
        "reward_funcs": f"{tmp_path}/mine.py:score",
        "task": "custom",
        "eval_size": 0.0,
        "eval_steps": 0,
        "eval_prompts": 0,
    }
    config = ESConfig.create({**runs.toy(tmp_path / "run", generations=2).model_dump(), **own})
    ESTrainer(args=config).train()
    contents = ledger.read(RunPaths(tmp_path / "run").ledger)
    again = recorded_config.config_of(contents.header)
    for name in ("train_dataset", "reward_funcs", "eval_size", "task"):
        assert getattr(again, name) == getattr(config, name)
    assert again.identity() == config.identity()


def test_a_run_of_built_in_data_records_no_sources(short):
    assert "sources" not in runs.rows(RunPaths(short).ledger)[0]


BROKEN = ["{", "sigma: [", "- 1\n", "sigma: 1e300\n", "sigmma: 1\n", "\x00", "[" * 3000]


@pytest.mark.parametrize("damage", BROKEN, ids=lambda text: repr(text[:9]))
def test_a_damaged_configuration_says_that_the_ledger_is_enough(short, damage):
    path = RunPaths(short).config
    path.write_text(damage)
    with pytest.raises(ConfigError, match=r"Or delete .*config\.yaml: the ledger holds what the run's results depend"):
        recorded_config.run_config(short)
    path.unlink()
    goes_on(short)


def rename_key(line: bytes) -> bytes:
    return line.replace(b'"generation"', b'"genesation"')


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a key": rename_key,
    "a split": lambda line: line.replace(b'"split": "t', b'"split": "x'),
    "a type": lambda line: line.replace(b'"generation": ', b'"generation": "').replace(b", ", b'", ', 1),
    "half a line": lambda line: line[: len(line) // 2],
    "no text": lambda line: b"\xff\xfe" + line,
    "nothing": lambda line: b"",
    "a list": lambda line: b"[1]",
    "brackets": lambda line: b"[" * 10_000,
}


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_of_a_cache_does_not_stop_a_resume(short, tmp_path, name, damage):
    path = short / name
    lines = path.read_bytes().splitlines()
    lines[2] = DAMAGES[damage](lines[2])
    path.write_bytes(b"\n".join(lines) + b"\n")
    goes_on(short)
    generations = [row["generation"] for row in directory.read_lines(RunPaths(short).metrics) if "reward" in row]
    assert generations == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(row["generation"], int) for row in runs.rows(path))


def test_a_state_that_no_strategy_makes_is_named_when_a_run_goes_on(short):
    runs.edit_generation(short, 3, lambda data: data.update(state={"step_size": {"agreement": "x"}}))
    with pytest.raises(
        LedgerError, match=r"last generation's state is none that a strategy makes \(step_size.agreement='x'"
    ):
        goes_on(short)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("engine"),
        lambda config: config.update(engine=5),
        lambda config: config.update(engine="toy+nothing"),
        lambda config: config.update(max_staleness=True),
        lambda config: config.update(max_staleness=10**12),
        lambda config: config.update(population=10**9),
        lambda config: config.update(generations=10**10),
        lambda config: config.update(sigma="x"),
    ],
)
def test_settings_in_a_ledger_that_are_none_are_named(short, change):
    RunPaths(short).config.unlink()
    runs.edit_ledger(short, lambda data: change(data["config"]) if "config" in data else None)
    commands: dict[str, Callable[[], object]] = {
        "resume": lambda: recorded_config.trusted(short, (), "x"),
        "verify": lambda: verify_run(short),
        "pack": lambda: pack_run(short, short / "pack"),
        "export": lambda: export_run(short, short / "model"),
        "eval": lambda: evaluate(short),
    }
    for command in commands.values():
        with pytest.raises(LedgerError, match=r"the settings in the ledger, by seedtune .* are none"):
            command()


def test_a_folder_without_both_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"it has no config.yaml\. Check the path\."):
        recorded_config.run_config(tmp_path)
