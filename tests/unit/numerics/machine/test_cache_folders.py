"""What is kept on the disk: in a folder that only this user can write, fresh, and never needed."""

from __future__ import annotations

import ast
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import runs
import seedtune
from seedtune.numerics.machine import cache_folders, caching

PACKAGE = Path(seedtune.__file__).parent
NAMES = ("SEEDTUNE_CACHE", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")
NOBODY = 65534
FILL = """
import numpy as np
from seedtune.numerics.kernels import cpu
from seedtune.numerics.noise import Address
out = np.empty(64, np.float32)
cpu.fill_normals(out, Address((1, 2), 0))
from seedtune.numerics.kernels import cpu_compiled
from seedtune.numerics.machine import caching
stats = cpu_compiled.fill.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), caching.folder(), out.sum())
"""


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Own home and temporary files, and no settings."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return tmp_path


def test_the_preferred_folder_is_the_one_that_is_set(places, monkeypatch):
    assert cache_folders.private_folder("x") == places / "home/.cache/seedtune/x"
    monkeypatch.setenv("XDG_CACHE_HOME", str(places / "xdg"))
    assert cache_folders.private_folder("x") == places / "xdg/seedtune/x"
    monkeypatch.setenv("SEEDTUNE_CACHE", str(places / "own"))
    assert cache_folders.private_folder("x") == places / "own/x"
    assert cache_folders.writable_folder("models") == places / "own/models"


def test_without_a_home_the_folder_lies_among_the_temporary_files_closed_to_others(places, monkeypatch):
    (places / "home").write_text("a file")
    found = cache_folders.private_folder("x")
    root = places / "tmp" / f"seedtune-{os.geteuid()}"
    assert found == root / "x"
    assert root.stat().st_mode & 0o777 == 0o700
    assert cache_folders.writable_folder("models") == root / "models"


def test_a_user_whom_the_system_does_not_know_has_a_folder_too(places, monkeypatch):
    monkeypatch.delenv("HOME")

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert cache_folders.private_folder("x") == places / "tmp" / f"seedtune-{os.geteuid()}" / "x"


def test_without_any_place_for_temporary_files_there_is_no_folder(places, monkeypatch):
    (places / "home").write_text("a file")

    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert cache_folders.private_folder("x") is None
    assert cache_folders.writable_folder("models") is None


@pytest.mark.parametrize("planted", ["link", "open"])
def test_a_temporary_folder_that_others_could_have_made_is_not_used(places, planted):
    (places / "home").write_text("a file")
    root = places / "tmp" / f"seedtune-{os.geteuid()}"
    if planted == "link":
        (places / "elsewhere").mkdir(mode=0o700)
        root.symlink_to(places / "elsewhere")
    else:
        root.mkdir()
        root.chmod(0o777)
    assert cache_folders.private_folder("x") is None
    assert cache_folders.writable_folder("models") is None
    assert root not in list(cache_folders.trusted())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_trusted_with_code(places):
    folder = places / "home/.cache/seedtune/x"
    folder.mkdir(parents=True)
    os.chown(folder, NOBODY, NOBODY)
    assert cache_folders.private_folder("x") == places / "tmp" / f"seedtune-{os.geteuid()}" / "x"


def test_a_folder_that_a_user_has_named_is_the_only_one_for_models(places, monkeypatch):
    (places / "file").write_text("")
    monkeypatch.setenv("SEEDTUNE_CACHE", str(places / "file"))
    assert cache_folders.writable_folder("models") is None
    assert list(cache_folders.trusted()) == [places / "file"]


def test_the_digest_covers_every_source_that_compiled_code_is_made_from():
    """All that kernels import of the package, but for errors, types, paths and what serves the cache itself."""
    found = set()
    for file in kernel_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("seedtune"):
                place = node.module.removeprefix("seedtune").strip(".").replace(".", "/")
                files = {f"{place}/{name.name}.py".lstrip("/") for name in node.names}
                found |= files if all((PACKAGE / name).exists() for name in files) else {f"{place}.py"}
    assert all((PACKAGE / name).is_file() for name in found)
    outside = {name for name in found if PACKAGE / name not in kernel_files()}
    assert outside - {"errors.py", "types.py", "activities.py", "config/paths.py"} == set(caching.OUTSIDE)


def test_every_compiled_function_lies_in_a_folder_that_the_digest_covers():
    compiling = re.compile(r"@(nb\.|numba\.)?(njit|jit|inner|intrinsic|vectorize|guvectorize)\b")
    found = {file for file in PACKAGE.rglob("*.py") if compiling.search(file.read_text(encoding="utf-8"))}
    assert found <= kernel_files()
    assert len(found) >= 15


def kernel_files() -> set[Path]:
    return {file for folder in caching.KERNELS for file in (PACKAGE / folder).glob("*.py")}


def test_kernels_use_only_the_cache_that_covers_their_sources():
    for file in kernel_files():
        assert not re.search(r"@(nb|numba)\.njit\([^)]*cache=True", file.read_text(encoding="utf-8")), file


def copied(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "seedtune", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def filled(package: Path, **env: str) -> list[str]:
    """Hits, misses, folder and sum of a process that fills normals."""
    left = {k: v for k, v in os.environ.items() if k not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", FILL], env={**left, "PYTHONPATH": str(package), **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_a_second_process_compiles_nothing_until_an_imported_source_changes(tmp_path):
    package, cache = copied(tmp_path / "package"), str(tmp_path / "cache")
    first = filled(package, SEEDTUNE_CACHE=cache)
    again = filled(package, SEEDTUNE_CACHE=cache)
    assert [first[:2], again[:2]] == [["0", "1"], ["1", "0"]]
    assert not list(package.rglob("*.nbi"))
    with (package / "seedtune/numerics/noise.py").open("a") as file:
        file.write("# edited\n")
    edited = filled(package, SEEDTUNE_CACHE=cache)
    assert edited[:2] == ["0", "1"]
    assert edited[2] != first[2]
    assert edited[3] == first[3]


@pytest.mark.slow
def test_damaged_files_and_missing_folders_only_cost_a_compilation(tmp_path):
    env = {"SEEDTUNE_CACHE": str(tmp_path / "cache")}
    whole = filled(PACKAGE.parent, **env)
    for file in Path(whole[2]).glob("*.nb[ic]"):
        file.write_bytes(file.read_bytes()[:40])
    damaged, mended = filled(PACKAGE.parent, **env), filled(PACKAGE.parent, **env)
    assert [damaged[:2], mended[:2]] == [["0", "1"], ["1", "0"]]
    assert whole[3] == damaged[3] == mended[3]
    (tmp_path / "file").write_text("")
    nowhere = {name: str(tmp_path / "file") for name in (*NAMES, "HOME")}
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / f"seedtune-{os.geteuid()}").write_text("")
    without = filled(PACKAGE.parent, TMPDIR=str(tmp_path / "tmp"), **nowhere)
    assert without == ["0", "1", "None", whole[3]]


DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24


def obey_permissions() -> None:
    """In a child: even root is bound by the permissions of files once it executes something."""
    if os.geteuid() == 0:
        assert ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, DAC_OVERRIDE, 0, 0, 0) == 0


@pytest.mark.slow
def test_without_a_home_and_with_a_package_that_cannot_be_written_a_run_trains_and_is_verified(tmp_path):
    """First with no folder for compiled kernels at all, then with one among the temporary files."""
    package, out, files = copied(tmp_path / "package"), tmp_path / "runs", tmp_path / "tmp"
    for folder in (out, files):
        folder.mkdir()
    blocked = files / f"seedtune-{os.geteuid()}"
    blocked.write_text("not a folder")
    closed = [package, *(folder for folder in package.rglob("*") if folder.is_dir())]
    for folder in closed:
        folder.chmod(0o555)
    env = {k: v for k, v in os.environ.items() if k not in NAMES}
    env |= {"HOME": str(package / "nonexistent"), "PYTHONPATH": str(package), "TMPDIR": str(files)}
    config = runs.write_config(runs.toy(out / "toy", generations=2), tmp_path / "toy.json")
    for arguments, kept in ((("train", config), False), (("verify", out / "toy"), True)):
        if kept:
            blocked.unlink()
        done = subprocess.run(
            runs.command(*arguments), env=env, cwd=out, capture_output=True, text=True, preexec_fn=obey_permissions
        )
        assert done.returncode == 0, done.stderr
        assert bool(list(files.rglob("*.nbi"))) == kept
    for folder in closed:
        folder.chmod(0o755)
    assert not list(package.rglob("*.nbi"))
