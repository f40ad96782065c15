"""User code by name: files and modules give functions, and every mistake says what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from reward_calls import rewards
from seedtune.config.config import Config
from seedtune.errors import ConfigError
from seedtune.rewards.sources import build, user_code
from seedtune.rewards.sources.adapters import load
from seedtune.tasks.builtin.conciseness import length_error

GOOD = """
from beside import FACTOR

def score(completions, **_):
    return [FACTOR * len(text) for text in completions]

class Scorer:
    def method(self, completions, **_):
        return [0.0] * len(completions)

scorer = Scorer()
constant = 3
"""


@pytest.fixture(autouse=True)
def _own_path(monkeypatch):
    """What loading adds to the import path goes away again."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "beside.py").write_text("FACTOR = 2\n")
    (tmp_path / "rewards.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    return tmp_path


def error_of(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


def test_a_function_of_a_file_may_import_what_lies_beside_it(folder):
    assert load("rewards.py:score")(completions=["abc"]) == [6]


NEIGHBOURS = {
    "helpers": ("helpers.py", "from helpers import score"),
    "a package": ("lib/__init__.py", "import lib.sub as sub\nfrom lib.sub import score"),
    "a folder": ("lib/sub.py", "import lib.sub\nscore = lib.sub.score"),
    "a relative import": ("helpers.py", "from .helpers import score"),
    "at the first call": (
        "helpers.py",
        "def score(completions):\n    from helpers import score\n    return score(completions)",
    ),
    "through another": ("common.py", "import beside\nscore = beside.common.score"),
    "an installed package": ("pydantic.py", "from pydantic import score"),
    "installed, in a package": ("yaml/__init__.py", "from yaml.sub import score"),
}


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_every_file_has_the_neighbours_of_its_own_folder(tmp_path, kind):
    """Also where two folders hold neighbours of one name, or a neighbour is called like an installed package."""
    file, text = NEIGHBOURS[kind]
    for number, name in enumerate("AB"):
        place = tmp_path / name / file
        place.parent.mkdir(parents=True)
        made = f"def score(completions): return [{number}.0]\n"
        place.write_text("" if place.stem == "__init__" else made)
        (place.parent / "sub.py").write_text(made)
        (tmp_path / name / "beside.py").write_text("import common\n" if kind == "through another" else "")
        (tmp_path / name / "rewards.py").write_text(text)
    first, second = (load(f"{tmp_path / name}/rewards.py:score") for name in "AB")
    assert (first(completions=["x"]), second(completions=["x"])) == ([0.0], [1.0])
    assert hasattr(sys.modules["pydantic"], "BaseModel")
    assert not list(tmp_path.rglob("__pycache__"))


@pytest.mark.parametrize("place", ["common.py", "common/__init__.py", "common/scores.py"])
def test_a_module_is_that_of_the_working_directory(tmp_path, monkeypatch, place):
    """Also where an earlier working directory held one of its name; installed packages and Python's own come first."""
    name = ".".join(part for part in Path(place).with_suffix("").parts if part != "__init__")
    found = []
    for number, folder in enumerate("ABA"):
        file = tmp_path / folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(f"def score(completions): return [{number}.0]\n" if number < 2 else file.read_text())
        (tmp_path / folder / "yaml.py").write_text("safe_load = None\n")
        monkeypatch.chdir(tmp_path / folder)
        found += user_code.load(f"{name}.score", "reward")(completions=["x"])
        assert user_code.load("yaml.safe_load", "reward") is sys.modules["yaml"].safe_load
    assert found == [0.0, 1.0, 0.0]
    sys.modules.pop("common", None)


def test_neighbours_are_shared_by_the_files_of_a_folder_and_hide_nothing_else(folder):
    (folder / "state.py").write_text("seen = []\n")
    for name in ("one", "yaml"):
        (folder / f"{name}.py").write_text(
            "import statistics, yaml, state, json\nfrom json import decoder\nimport json.decoder as again\n"
            "def f(completions):\n    state.seen.append(1)\n    assert again is decoder\n"
            "    return [len(state.seen), statistics.mean([3]), hasattr(yaml, 'safe_load')]\n"
        )
    (folder / "statistics.py").write_text("raise SystemExit('Python has one')\n")
    (folder / "data").mkdir()
    assert load("yaml.py:f")(completions=["x"]) == [1, 3, True]  # the file itself is no neighbour
    assert load("one.py:f")(completions=["x"]) == [2, 3, False]


def test_a_package_that_imports_itself_by_name_is_loaded_once(folder):
    (folder / "mylib").mkdir()
    (folder / "mylib" / "__init__.py").write_text("from mylib.types import Answer\n")
    (folder / "mylib" / "types.py").write_text("class Answer: pass\n")
    (folder / "mylib" / "parse.py").write_text("from mylib.types import Answer\ndef parse(text): return Answer()\n")
    (folder / "rewards.py").write_text(
        "from mylib import Answer\nfrom mylib.parse import parse\n"
        "def score(completions): return [isinstance(parse(text), Answer) for text in completions]\n"
    )
    assert load("rewards.py:score")(completions=["x"]) == [True]
    assert "mylib" not in sys.modules


SQUARES = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from beside import square
import rewards

def own(number):
    return number * rewards.FACTOR

def score(completions, **_):
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return list(pool.map(square, [3])) + list(pool.map(own, [3]))

FACTOR = 5
"""


def test_processes_that_a_reward_spawns_find_its_functions_and_those_of_neighbours(folder):
    (folder / "beside.py").write_text("def square(number): return number**2\n")
    (folder / "rewards.py").write_text(SQUARES)
    assert load("rewards.py:score")(completions=["a", "b"]) == [9, 15]


def test_a_file_that_imports_its_own_name_means_itself_whatever_was_loaded_before(folder, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    for place, factor in ((tmp_path / "other", 2), (folder, 5)):
        (place / "rewards.py").write_text(f"import rewards\nFACTOR = {factor}\ndef score(): return rewards.FACTOR\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(folder))])
    assert load(f"{tmp_path / 'other' / 'rewards.py'}:score")() == 2
    assert load("rewards.py:score")() == 5


def test_a_file_of_any_name_is_run(folder):
    for name in ("my-rewards v1.2.py", "script"):
        (folder / name).write_text("from beside import FACTOR\ndef score(completions): return [FACTOR]\n")
        assert load(f"{folder}/{name}:score")(completions=["x"]) == [2]


def test_a_file_and_its_neighbour_may_import_each_other_and_packages_of_the_working_directory(folder):
    (folder / "lib").mkdir()
    (folder / "lib" / "beside.py").write_text("import two\ndef value(): return two.FACTOR\n")
    (folder / "lib" / "two.py").write_text(
        "FACTOR = 7\nfrom beside import value\nfrom lib.three import ONE\n"
        "def score(completions): return [value() + ONE]\n"
    )
    (folder / "lib" / "three.py").write_text("ONE = 1\n")
    assert load("lib/two.py:score")(completions=["x"]) == [8]


def test_an_absolute_path_a_method_and_a_dotted_path_are_found(folder):
    assert load(f"{folder}/rewards.py:scorer.method")(completions=["x"]) == [0.0]
    assert load("seedtune.tasks.builtin.conciseness.length_error") is length_error
    assert load("seedtune.tasks.builtin.conciseness:length_error") is length_error


def test_modules_of_the_working_directory_can_be_named(folder):
    (folder / "my_package").mkdir()
    (folder / "my_package" / "other.py").write_text("def one(completions): return [1.0]\n")
    assert load("my_package.other.one")(completions=["x"]) == [1.0]


def test_a_file_is_read_again_when_it_has_changed_and_leaves_no_cache_beside_it(folder):
    first = load("rewards.py:score")
    assert load("rewards.py:score") is first
    (folder / "rewards.py").write_text("def score(completions): return [7.0]\n")
    assert load("rewards.py:score")(completions=["x"]) == [7.0]
    assert not list(folder.glob("__pycache__/rewards*"))


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("reward.py:score", ["there is no file 'reward.py'", "Did you mean 'rewards.py'?"]),
        ("nowhere/rewards.py:score", ["there is no file 'nowhere/rewards.py'", "Check the path; "]),
        ("rewards.py:scor", ["there is no 'scor' in it", "Did you mean 'score'?", "It has: Scorer, score"]),
        ("rewards.py:constant", ["is of type int, not a function or class"]),
        ("rewards.py:Scorer", ["is a class, not a function"]),
        ("rewards.py", ["names a file, but nothing in it", "Write rewards.py:NAME"]),
        ("score", ["does not name a function in a file or module", "file.py:NAME"]),
        ("no.such.module.f", ["the reward 'no.such.module.f': there is no module 'no'", "name a file"]),
        ("seedtune.rewards.nothing.f", ["there is no module 'seedtune.rewards.nothing'"]),
        ("seedtune.tasks.builtin.conciseness.length_eror", ["Did you mean 'length_error'?"]),
    ],
    ids=str,
)
def test_a_reward_that_cannot_be_found_is_named_with_the_nearest(folder, path, parts):
    message = error_of(path)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1 / 0\n",
            r"the reward 'bad\.py:f': importing 'bad\.py' raised ZeroDivisionError: division by zero \(line 1 of ",
        ),
        ("def f(:\n", "raised SyntaxError: "),
        ("import sys\nsys.exit(3)\n", r"raised SystemExit: 3 \(line 2 of "),
        ("import not_installed_anywhere\n", "raised ModuleNotFoundError: No module named 'not_installed_anywhere'"),
    ],
)
def test_a_file_that_cannot_be_imported_says_what_it_raised_and_where(folder, text, message):
    (folder / "bad.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load("bad.py:f")
    (folder / "bad.py").write_text("def f(completions): return [5.0]\n")
    assert load("bad.py:f")(completions=["x"]) == [5.0]


def test_rewards_keep_where_they_come_from_so_that_another_process_can_load_them(folder):
    settings = ["rewards.py:score", {"path": "rewards.py:score", "adapter": "pair", "target": "x"}]
    config = Config.create({"reward_funcs": settings, "reward_weights": [1.0, 0.5]})
    plain, adapted = build.build(config, [])
    assert (plain.source, plain.weight, plain.inline) == (f"{folder}/rewards.py:score", 1.0, False)
    assert (adapted.source, adapted.name, adapted.weight) == (f"pair=x@{folder}/rewards.py:score", "score_2", 0.5)
    (folder / "two.py").write_text("def same(output, target): return output == target\n")
    again = load("pair=x@two.py:same")
    assert again(prompts=["p", "p"], completions=["a", "b"], x=["a", "c"]) == [True, False]
    assert load("reasoning_gym@").__name__ == "reasoning_gym"


def test_functions_given_in_python_have_no_source():
    (reward,) = rewards(lambda completions: [1.0])
    assert (reward.source, reward.inline, reward.weight) == (None, False, 1.0)
