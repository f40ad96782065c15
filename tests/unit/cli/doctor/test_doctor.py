"""``seedtune doctor``: whatever is missing or broken is one line with the command that mends it."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest

import runs
from seedtune.cli.doctor import diagnosis, hardware, hub_and_caches, installed_packages, usable_engines
from seedtune.cli.doctor.findings import Finding, guarded
from seedtune.cli.doctor.installed_packages import Requirement

PYPROJECT = Path(__file__).parents[4] / "pyproject.toml"


def stub(folder: Path, **modules: str) -> None:
    """Write modules that are found before the installed ones of their names."""
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)


def missing(name: str) -> str:
    return f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"


def doctor(folder: Path, *arguments: str):
    return runs.cli("doctor", *arguments, PYTHONPATH=os.pathsep.join([str(folder), str(runs.SOURCE)]))


@pytest.mark.parametrize(
    ("torch", "found", "fix"),
    [
        (missing("torch"), "needs the package torch, which is not installed", "pip install 'torch>=2.6'"),
        (
            "raise OSError('libcudart.so.12: cannot open shared object file')\n",
            "OSError: libcudart.so.12: cannot open shared object file",
            "pip install --force-reinstall 'torch>=2.6'",
        ),
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n",
            "failed: the process that imported it was killed by SIGILL",
            "pip install --force-reinstall 'torch>=2.6'",
        ),
    ],
    ids=["missing", "broken", "crashing"],
)
def test_without_a_usable_torch_all_the_rest_is_reported(tmp_path, torch, found, fix):
    stub(tmp_path, torch=torch, vllm="raise ImportError('built for another torch')\n", ray=missing("ray"))
    done = doctor(tmp_path, "--json")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    answer = json.loads(done.stdout)
    checks = {(check["section"], check["subject"]): check for check in answer["findings"]}
    engine = checks["engines", "transformers"]
    assert (engine["ok"], engine["found"], engine["fix"]) == (False, found, fix)
    assert not answer["ok"]
    assert checks["engines", "toy"]["ok"]
    assert "does not import" in checks["engines", "vllm"]["found"]
    assert checks["engines", "vllm"]["fix"].startswith("pip install 'vllm==")
    assert checks["engines", "ray"]["fix"].startswith("pip install 'ray>=")
    assert {"processor", "cores", "memory", "gpus", "python", "packages", "caches", "hub"} <= {one for one, _ in checks}


def test_the_toy_engine_needs_no_torch(tmp_path):
    stub(tmp_path, **{name: missing(name) for name in ("torch", "transformers", "vllm", "ray")})
    done = doctor(tmp_path, "--engine", "toy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("engine=toy works here. Begin with: seedtune init\n")


def test_a_command_line_without_its_own_packages_says_what_to_install(tmp_path):
    stub(tmp_path, typer=missing("typer"))
    done = doctor(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: No module named 'typer'. Install it with: pip install typer   (seedtune doctor checks the rest)\n"
    )


def test_a_check_that_raises_is_a_line():
    def broken():
        yield Finding("hub", "token", "none")
        raise ImportError("no numba", name="numba.core")

    assert [(check.subject, check.ok, check.fix) for check in guarded("hub", broken)] == [
        ("token", None, ""),
        ("hub", False, "pip install --force-reinstall numba"),
    ]


def test_an_unknown_engine_is_refused():
    with pytest.raises(diagnosis.ConfigError, match=r"--engine 'tpu' is not an engine. Give one of: toy, transformers"):
        diagnosis.doctor(engine="tpu")


@pytest.mark.parametrize(
    ("version", "versions", "does"),
    [
        ("2.6.0+cu124", ">=2.6", True),
        ("2.10.1", ">=2.6", True),
        ("2.5.9", ">=2.6", False),
        ("6.0", ">=5,<6", False),
        ("5.23.0rc1", ">=5,<6", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version, versions, does):
    assert installed_packages.fits(version, versions) is does


def test_every_requirement_of_the_package_is_read(monkeypatch):
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"].items()
    lines = [f"{line.partition(';')[0]}; extra == '{extra}'" for extra, more in extras for line in more]
    lines += project["dependencies"]
    monkeypatch.setattr(installed_packages.metadata, "requires", lambda _: lines)
    found = installed_packages.requirements()
    assert {"torch", "numba"} < {one.package for one in found if not one.extra}
    assert {one.extra for one in found} == {"", *project["optional-dependencies"]} - {"dev"}
    assert Requirement.parse("transformers<6,>=5").install() == "pip install 'transformers>=5,<6'"


def test_only_what_a_run_needs_is_a_fault():
    def check(section, subject, found="not installed", ok=False):
        return Finding(section, subject, found, ok)

    assert diagnosis.is_fault(check("packages", "torch"), "transformers")
    assert not diagnosis.is_fault(check("packages", "torch"), "toy")
    assert not diagnosis.is_fault(check("packages", "ray", "1.0, but >=2.50 is needed (for the extra 'ray')"), "ray")
    assert not diagnosis.is_fault(check("engines", "vllm"), "transformers")
    assert diagnosis.is_fault(check("engines", "vllm"), "vllm")
    assert diagnosis.is_fault(check("caches", "seedtune"), "toy")


def test_a_token_is_never_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in (*hub_and_caches.OFFLINE, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert hub_and_caches._token().startswith("none")
    (tmp_path / "token").write_text("hf_secret\n")
    assert hub_and_caches._token() == f"in {tmp_path / 'token'}"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [check.found for check in hub_and_caches.hub()][:2] == ["set by HF_TOKEN", "offline (HF_HUB_OFFLINE=1)"]


def test_a_cache_that_cannot_be_written_is_a_fault(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "file"))
    check = next(iter(hub_and_caches.caches()))
    assert (check.ok, check.fix) == (False, "set SEEDTUNE_CACHE to a folder that you can write")


def test_memory_and_processor_are_read_from_the_kernel(tmp_path):
    for name, text in {
        "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n",
        "proc/cpuinfo": "processor: 0\nmodel name\t: Fast 9000\n",
        "sys/fs/cgroup/memory.max": "2000000000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert hardware.processor_name(tmp_path) == "Fast 9000"
    assert [check.found for check in hardware.memory(tmp_path)] == [
        "8.2 GB, 4.1 GB available",
        "2.0 GB (control group)",
    ]
    assert [check.found for check in hardware.memory(tmp_path / "nowhere")] == ["unknown on this system"]


def test_the_package_of_a_module_is_named_with_its_version():
    assert usable_engines.install("yaml").startswith("pip install 'pyyaml>=")
    assert usable_engines.install("unknown") == "pip install unknown"
