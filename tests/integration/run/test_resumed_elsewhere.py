"""A ledger says how its rewards were computed: a run goes on in that way, or it says that it does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import runs
from models import save_family
from ray_workers import At, alone, inline, ray_config
from seedtune import apply_pack, diff_runs, export_run, pack_run, verify_run
from seedtune.config.config import Config
from seedtune.engines.ray.worker_spec import WorkerSpec
from seedtune.engines.toy.engine import ToyEngine
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.errors import ConfigError, LedgerError, RunError
from seedtune.evaluation.evaluate import evaluate
from seedtune.evaluation.models import settings_of
from seedtune.numerics.machine import processor
from seedtune.run import directory, ledger, recorded_config
from seedtune.run.ledger import Ledger
from seedtune.run.records import Header
from seedtune.trainer import ESTrainer

NUMPY = {"name": "numpy", "version": np.__version__}
HERE = {"products": "library", "attention": "library", "device": "cpu", "library": NUMPY}
OTHER = {**HERE, "library": {**NUMPY, "version": "1.0"}}
LINE = f"library (numpy {np.__version__})"
FMA32 = {"products": "fma32/1", "attention": "lanes32/1", "device": "cpu"}


def trained(root: Path, **settings) -> Path:
    ESTrainer(args=runs.toy(root, **settings)).train()
    return root


def contents(root: Path) -> ledger.Contents:
    return ledger.read(directory.RunPaths(root).ledger)


def begun_with(entry: dict, root: Path) -> None:
    """As if a machine had begun the run that computes so."""
    runs.edit_ledger(root, lambda data: data.update(arithmetic=entry) if "format" in data else None)


@pytest.fixture
def short(tmp_path) -> Path:
    """A run of two generations."""
    return trained(tmp_path / "run", generations=2)


# ---------------------------------------------------------------------------------------------- the ledger


def test_the_header_says_how_rewards_are_computed_and_the_identity_does_not(short):
    header = contents(short).header
    assert header.arithmetic == HERE
    assert "products" not in str(header.config)
    assert Header.from_json(header.to_json()) == header


def test_a_change_is_a_line_with_a_checksum_and_the_newest_counts(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with_changes = shutil.copy(directory.RunPaths(trained(tmp_path / "run", generations=2)).ledger, path)
    book, _ = Ledger.resume(path)
    book.note(2, arithmetic=OTHER)
    book.note(2, arithmetic=FMA32)
    book.close()
    found = ledger.read(with_changes)
    assert (found.changes, found.arithmetic()) == ({2: FMA32}, FMA32)
    assert [found.arithmetic(generation) for generation in (0, 1, 2)] == [HERE, HERE, FMA32]
    path.write_bytes(path.read_bytes().replace(b"fma32/1", b"fma32/2"))
    with pytest.raises(LedgerError, match=r"line \d+ is corrupted"):
        ledger.read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"after": 7, "arithmetic": OTHER}, "the arithmetic after 7 generations comes after 2"),
        ({"after": 2, "arithmetic": "fma32"}, "arithmetic='fma32': must be a valid dictionary"),
    ],
)
def test_a_sealed_change_that_is_none_is_named(short, line, message):
    book, _ = Ledger.resume(directory.RunPaths(short).ledger)
    book._append(line)
    book.close()
    with pytest.raises(LedgerError, match=message):
        contents(short)


# ------------------------------------------------------------------------------------------------ resuming


def test_the_same_machine_goes_on_and_the_ledger_is_that_of_one_process(short, tmp_path):
    ESTrainer(args=runs.toy(short)).train(resume_from_checkpoint=True)
    runs.assert_same_run(short, trained(tmp_path / "whole"))


def test_another_library_is_refused_with_both_and_the_way_out(failure, short):
    begun_with(OTHER, short)
    before = runs.ledger_bytes(short)
    message = failure("resume", short, "--generations", "4")
    assert "computed with products library, attention library, cpu, by numpy 1.0; here it would be " in message
    assert f"by numpy {np.__version__}: rewards could differ" in message
    assert message.endswith(f"seedtune resume {short} --set products=library")
    assert runs.ledger_bytes(short) == before


def test_named_products_go_on_and_the_ledger_says_from_where(command, short):
    begun_with(OTHER, short)
    code, _, _ = command("resume", short, "--generations", "4", "--set", "products=library")
    assert code == 0
    found = contents(short)
    assert (found.generations, found.header.arithmetic, found.changes) == (4, OTHER, {2: HERE})
    rows = [row for row in runs.rows(directory.RunPaths(short).metrics) if "products" in row]
    assert [row["generation"] for row in rows] == [0, 2]
    ESTrainer(args=runs.toy(short, generations=5)).train(
        resume_from_checkpoint=True
    )  # auto again: what the newest line says is here
    assert contents(short).changes == {2: HERE}


def test_metrics_that_were_lost_say_again_what_the_ledger_knows(changed):
    path = directory.RunPaths(changed).metrics
    path.unlink()
    ESTrainer(args=runs.toy(changed, generations=6)).train(resume_from_checkpoint=True)
    rows = [row for row in runs.rows(path) if "products" in row]
    assert [(row["generation"], row["arithmetic"], row["restored"]) for row in rows] == [
        (0, OTHER, True),
        (2, HERE, True),
    ]
    assert runs.rows(path)[0] == rows[0]


def computing_by(patch: pytest.MonkeyPatch, arithmetic: Callable[[], dict]) -> None:
    """Toy engines report this arithmetic when they are loaded."""
    load = ToyEngine.load
    patch.setattr(ToyEngine, "load", lambda self, snapshot=None: replace(load(self, snapshot), arithmetic=arithmetic()))


def test_only_other_threads_are_told_how_to_have_as_many(short):
    library = {**NUMPY, "threads": 3}
    begun_with({**HERE, "library": library}, short)
    with pytest.MonkeyPatch.context() as patch:
        computing_by(patch, lambda: {**HERE, "library": {**library, "threads": 2}})
        with pytest.raises(RunError, match=r"Set OMP_NUM_THREADS=3 to have as many threads\."):
            ESTrainer(args=runs.toy(short, generations=4)).train(resume_from_checkpoint=True)


# ------------------------------------------------------------- weights do not depend on how rewards were computed


@pytest.fixture
def changed(short) -> Path:
    """A run of another machine that went on here."""
    begun_with(OTHER, short)
    ESTrainer(args=runs.toy(short, products="library")).train(resume_from_checkpoint=True)
    return short


def test_verify_says_how_rewards_were_computed_and_asks_for_nothing(command, changed):
    code, output, errors = command("verify", changed, "--snapshots")
    assert (code, errors) == (0, "")
    lines = [line for line in output.splitlines() if line.startswith("rewards")]
    words = "computed with products library, attention library, cpu, by numpy"
    assert lines == [
        f"rewards: {words} 1.0 (not measured again)",
        f"rewards from generation 2 on: {words} {np.__version__} (not measured again)",
    ]


def test_a_run_of_another_machine_is_verified_packed_unpacked_exported_and_evaluated(changed, tmp_path):
    begun_with({**FMA32, "products": "unheard/7"}, changed)
    assert verify_run(changed).generations == 5
    pack_run(changed, tmp_path / "run.pack")
    apply_pack(tmp_path / "run.pack", tmp_path / "applied")
    export_run(changed, tmp_path / "exported")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("applied", "exported")]
    assert files[0] == files[1]
    assert evaluate(changed, config=settings_of(changed)).subjects[0].generation == 5


def test_weights_need_no_products_that_a_run_names():
    config = Config.create({"products": "bf16dot"})
    assert recorded_config.for_weights(config).products == "auto"
    assert recorded_config.with_settings(config, ["products=fma32"]).products == "fma32"


def test_diff_names_the_arithmetic_where_two_runs_part(changed, tmp_path):
    whole = trained(tmp_path / "whole")
    found = diff_runs(whole, changed)
    assert found.equal, "a change of numpy changed no reward"
    assert [note.partition(" computed")[0] for note in found.notes] == ["rewards are"]

    def other(data):
        data.update(rewards=[reward + 1e-9 for reward in data["rewards"]])

    runs.edit_generation(changed, 1, other)
    found = diff_runs(whole, changed)
    assert found.generation == 1
    assert found.reasons[0].startswith("this generation's rewards are computed with products library")
    assert "by numpy 1.0" in found.reasons[0]
    assert found.reasons[1].startswith("rewards (")


def test_a_generation_that_was_computed_alike_parts_for_another_reason(changed, tmp_path):
    whole = trained(tmp_path / "whole")
    runs.edit_generation(changed, 3, lambda data: data.update(rewards=[reward + 1e-9 for reward in data["rewards"]]))
    assert diff_runs(whole, changed).reasons[0].startswith("rewards (")


# ------------------------------------------------------------------------------------------ transformers' kinds

AVX2 = frozenset({"avx2", "fma"})
BF16 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512bf16"}
OLD = frozenset({"avx"})


@pytest.fixture
def tiny(tmp_path) -> Config:
    """Two generations of a tiny model."""
    return Config.create(
        {
            "model": str(save_family("llama", tmp_path / "model")),
            "task": "conciseness",
            "output_dir": str(tmp_path / "run"),
            "generations": 1,
            "population": 2,
            "prompts_per_generation": 1,
            "max_prompt_length": 50,
            "prompt_truncation": "left",
            "max_completion_length": 2,
            "eval_prompts": 0,
            "sigma": 0.05,
            "alpha": 0.05,
            "reward_workers": 0,
            "dtype": "float32",
            "transformers": {"device": "cpu"},
        }
    )


def test_a_run_goes_on_with_the_recorded_kind_where_auto_would_take_another(tiny, monkeypatch):
    root = Path(tiny.output_dir)
    monkeypatch.setattr(processor, "features", lambda: OLD)
    ESTrainer(args=tiny).train()
    assert contents(root).header.arithmetic["products"] == "library"
    recorded = contents(root).header.arithmetic
    monkeypatch.setattr(processor, "features", lambda: AVX2)
    begun_with({**recorded, "library": {**recorded["library"], "instructions": _instructions()}}, root)
    ESTrainer(args=tiny.replace(generations=2)).train(resume_from_checkpoint=True)  # auto would be fma32 here
    assert contents(root).changes == {}
    assert recorded_config.run_config(root).products == "auto"


def _instructions() -> str:
    import torch

    return f"{torch.backends.cpu.get_cpu_capability()} on AVX2"


def test_a_run_of_fused_sums_goes_on_by_them_on_any_processor_that_has_them(tiny, monkeypatch):
    root = Path(tiny.output_dir)
    monkeypatch.setattr(processor, "features", lambda: AVX2)
    ESTrainer(args=tiny).train()
    assert contents(root).header.arithmetic == FMA32
    monkeypatch.setattr(processor, "features", lambda: BF16)
    ESTrainer(args=tiny.replace(generations=2)).train(resume_from_checkpoint=True)
    monkeypatch.setattr(processor, "features", lambda: frozenset({"neon"}))
    ESTrainer(args=tiny.replace(generations=3)).train(resume_from_checkpoint=True)
    assert contents(root).changes == {}


def test_a_kind_that_is_not_here_is_refused_and_a_named_one_goes_on(tiny, monkeypatch):
    root, config = Path(tiny.output_dir), tiny.replace(generations=2)
    monkeypatch.setattr(processor, "features", lambda: AVX2)
    ESTrainer(args=tiny).train()
    monkeypatch.setattr(processor, "features", lambda: OLD)
    message = r"computed with products fma32/1, .* cannot be had here: .*needs AVX2 with FMA.* --set products="
    with pytest.raises(RunError, match=message):
        ESTrainer(args=config).train(resume_from_checkpoint=True)
    named = config.replace(products="library")
    ESTrainer(args=named).train(resume_from_checkpoint=True)
    assert contents(root).changes[1]["products"] == "library"
    assert verify_run(root).generations == 2


def test_a_named_kind_that_is_not_here_is_an_error_of_the_settings(tiny, monkeypatch):
    monkeypatch.setattr(processor, "features", lambda: AVX2)
    named = tiny.replace(products="bf16dot")
    with pytest.raises(ConfigError, match=r"products=bf16dot multiplies bfloat16"):
        ESTrainer(args=named).train()


def test_a_dry_run_and_the_first_line_of_the_metrics_say_the_products(command, short, tmp_path):
    file = runs.write_config(runs.toy(tmp_path / "new"), tmp_path / "config.yaml")
    code, output, _ = command("train", file, "--dry-run")
    assert code == 0

    assert f"products: {LINE}" in output.splitlines()
    first, *others = runs.rows(directory.RunPaths(short).metrics)
    assert first == {"generation": 0, "products": LINE, "arithmetic": HERE}
    assert not any("products" in row for row in others)


# -------------------------------------------------------------------------------------------------- Ray workers


def differing(monkeypatch, entries: list[dict]) -> None:
    """Workers that compute by these, one after the other; those that come later by the last."""
    left = list(entries)
    computing_by(monkeypatch, lambda: left.pop(0) if len(left) > 1 else left[0])


def test_a_worker_that_computes_otherwise_is_lost_by_name_and_changes_nothing(tmp_path, monkeypatch):
    config = ray_config(tmp_path / "fleet", generations=3)
    ESTrainer(args=alone(config, tmp_path / "alone")).train()
    differing(monkeypatch, [HERE, OTHER, HERE])
    with inline():
        trainer = ESTrainer(args=config)
        notes: list[str] = []
        trainer.callbacks = (At(3, lambda: notes.extend(trainer.engine.controller.pool.notes)),)
        trainer.train()
    (lost,) = (note for note in notes if "is lost" in note)
    assert "it computes with products library, attention library, cpu, by numpy 1.0, the others with " in lost
    assert "give all workers the same machine and the same versions" in lost
    runs.assert_same_run(tmp_path / "fleet", tmp_path / "alone")


def test_the_ray_engines_ledger_says_how_its_workers_compute(tmp_path):
    config = ray_config(tmp_path / "run", generations=2)
    with inline():
        ESTrainer(args=config).train()
    assert contents(tmp_path / "run").header.arithmetic == HERE
    begun_with(OTHER, tmp_path / "run")
    with inline(), pytest.raises(RunError, match=r"--set products=library"):
        ESTrainer(args=config.replace(generations=3)).train(resume_from_checkpoint=True)


def loading_on(monkeypatch, *machines: frozenset[str]) -> None:
    """Each engine is loaded on a machine with these features, those that come later on the last."""
    load, left = TransformersEngine.load, list(machines)

    def there(self, snapshot=None):
        features = left.pop(0) if len(left) > 1 else left[0]
        monkeypatch.setattr(processor, "features", lambda: features)
        return load(self, snapshot)

    monkeypatch.setattr(TransformersEngine, "load", there)


def of_two(config: Config, **settings) -> Config:
    ray = {"workers": 2, "min_workers": 2, "resources": {"CPU": 1}, **settings}
    return config.replace(engine="ray", ray=ray, members_per_job=2)


def test_workers_that_would_choose_another_kind_take_that_of_the_first(tiny, monkeypatch):
    loading_on(monkeypatch, AVX2, OLD, BF16)
    with inline():
        trainer = ESTrainer(args=of_two(tiny))
        notes: list[str] = []
        trainer.callbacks = (At(1, lambda: notes.extend(trainer.engine.controller.pool.notes)),)
        trainer.train()
    (lost,) = (note for note in notes if "is lost" in note)
    assert "it computes with products library" in lost
    assert "the others with products fma32/1" in lost
    assert contents(Path(tiny.output_dir)).header.arithmetic == FMA32


def test_a_worker_that_cannot_compute_as_the_first_is_refused_with_the_fix(tiny, monkeypatch):
    loading_on(monkeypatch, AVX2, OLD)
    message = (
        r"worker transformers-2: .*needs AVX2 with FMA.* The others compute with products fma32/1.*give all workers"
    )
    with inline(), pytest.raises(ConfigError, match=message):
        ESTrainer(args=of_two(tiny)).train()


def test_workers_of_a_resumed_run_are_told_the_recorded_kind(tiny, monkeypatch):
    loading_on(monkeypatch, OLD)
    with inline():
        ESTrainer(args=of_two(tiny)).train()
    seen: list[str] = []
    with inline():
        trainer = ESTrainer(args=of_two(tiny).replace(generations=2))
        trainer.callbacks = (At(2, lambda: seen.append(_told(trainer.engine.controller.pool.specs["transformers"]))),)
        trainer.train(resume_from_checkpoint=True)
    assert seen == ["library"]
    assert contents(Path(tiny.output_dir)).changes == {}


def _told(spec: WorkerSpec) -> str:
    found: str = spec.config["products"]
    return found
