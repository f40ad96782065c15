"""Whole runs on vLLM: the ledger of transformers, verified, failed, resumed and exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM", exc_type=ImportError)

import runs
from models import answers, job, load_engine, text_prompts
from seedtune import ESConfig, ESTrainer, apply_pack, evaluate, export_run, pack_run, verify_run
from seedtune.engines.vllm.engine_core import EngineCore
from seedtune.errors import EngineError
from seedtune.evaluation.models import settings_of
from seedtune.run import directory, ledger
from serving import SMALL, end_all, save_served, serve

pytestmark = pytest.mark.slow

DATA = [{"prompt": text} for text in ("Say a", "Say b", "Tell me", "Why?")]
MODES = {"gaussian": {"perturbation": "gaussian"}, "lowrank": {"perturbation": "lowrank", "members_per_job": 2}}
ENGINES: dict[str, Any] = {"vllm": {"vllm": SMALL}, "transformers": {"transformers": {"device": "cpu"}}}


def variety(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


def config(root: Path, base: Path, engine: str, **mode: Any) -> ESConfig:
    return ESConfig(
        model=str(base),
        output_dir=str(root),
        engine=engine,
        generations=5,
        population=4,
        prompts_per_generation=2,
        sigma=0.05,
        max_completion_length=4,
        fingerprint_steps=1,
        save_steps=2,
        kl_steps=2,
        reward_workers=0,
        **ENGINES[engine],
        **mode,
    )


def train(settings: ESConfig, *, resume: bool = False) -> None:
    ESTrainer(args=settings, reward_funcs=variety, train_dataset=DATA).train(resume_from_checkpoint=resume)


@pytest.fixture(params=MODES.values(), ids=MODES)
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def only(mode: str) -> pytest.MarkDecorator:
    """For what is the same in every mode."""
    return pytest.mark.parametrize("mode", [MODES[mode]], ids=[mode], indirect=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    end_all()
    yield save_served("qwen2", tmp_path_factory.mktemp("base"))
    end_all()


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Mode → its run, made once."""

    def make(mode: str) -> Path:
        root = tmp_path_factory.mktemp("runs") / "run"
        train(config(root, base, "vllm", **MODES[mode]))
        return root

    return cache(make)


@pytest.fixture
def run(trained: Callable[[str], Path], mode: dict[str, Any]) -> Path:
    return trained(mode["perturbation"])


def generations(root: Path) -> list[dict[str, Any]]:
    """The record of every generation, without its seal."""
    rows = [row for row in runs.rows(directory.RunPaths(root).ledger) if "generation" in row]
    return [{key: value for key, value in row.items() if key != "check"} for row in rows]


def test_a_run_writes_the_ledger_that_it_writes_with_transformers(
    run: Path, base: Path, mode: dict[str, Any], tmp_path: Path
) -> None:
    train(config(tmp_path / "run", base, "transformers", **mode))
    found, expected = generations(run), generations(tmp_path / "run")
    assert len(found) == 5
    assert [row["rewards"] for row in found] == [row["rewards"] for row in expected]
    assert found == expected
    fingerprints = ledger.read(directory.RunPaths(run).ledger).fingerprints
    assert fingerprints == ledger.read(directory.RunPaths(tmp_path / "run").ledger).fingerprints
    assert len(fingerprints) == 5


@pytest.mark.parametrize("sets", [(), ("engine=vllm",)], ids=["by-transformers", "by-vllm"])
def test_a_run_is_verified_by_replay(run: Path, sets: tuple[str, ...]) -> None:
    assert verify_run(run, sets=sets, snapshots=True).matched == (1, 2, 3, 4, 5)


@only("lowrank")
def test_what_a_run_is_shipped_as_needs_no_vllm_and_is_the_same_with_it(
    run: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("seedtune.engines.vllm.compat.require", lambda: pytest.fail("vLLM was asked for"))
        export_run(run, tmp_path / "plain")
        pack_run(run, tmp_path / "run.pack", generation=3)
        apply_pack(tmp_path / "run.pack", tmp_path / "applied", base=str(base))
        evaluate(run, on=["toy"], config=settings_of(run, sets=["engine=transformers"]))
    export_run(run, tmp_path / "served", sets=["engine=vllm"])
    export_run(run, tmp_path / "third", generation=3, sets=["engine=vllm"])
    weights = {
        name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "served", "third", "applied")
    }
    assert weights["plain"] == weights["served"] != weights["third"] == weights["applied"]


@only("gaussian")
def test_a_failure_inside_vllm_leaves_a_ledger_that_a_resume_completes(
    run: Path, base: Path, mode: dict[str, Any], tmp_path: Path
) -> None:
    settings, steps = config(tmp_path / "run", base, "vllm", **mode), 0
    outputs = EngineCore.outputs

    def failing(core: EngineCore, requests: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 9:
            core._core.step = None
        return outputs(core, requests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineCore, "outputs", failing)
        with pytest.raises(EngineError, match=r"vLLM stopped while it generated: .*seedtune resume"):
            train(settings)
    assert len(generations(tmp_path / "run")) < 5
    train(settings, resume=True)
    assert runs.ledger_bytes(tmp_path / "run") == runs.ledger_bytes(run)


@only("lowrank")
def test_an_exported_run_answers_equally_in_transformers_and_in_vllm(
    run: Path, mode: dict[str, Any], tmp_path: Path
) -> None:
    export_run(run, tmp_path / "model")
    work = job(text_prompts("Say a", "Why?"), max_tokens=10, ignore_eos=True)
    plain = {"perturbation": mode["perturbation"]}
    theirs = answers(load_engine(tmp_path / "model", noise=plain), work)
    assert answers(serve(tmp_path / "model", plain), work) == theirs
