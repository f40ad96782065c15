"""The house: how many files lie where, what they are called, what they import, and how short functions are."""

from __future__ import annotations

import ast
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import seedtune

PACKAGE = Path(seedtune.__file__).parent
FOLDERS = {
    *("cli", "config", "engines", "evaluation", "numerics", "planning", "rewards", "rollouts", "run", "strategies"),
    "tasks",
}
BESIDE = {"__init__.py", "__main__.py"}
SHARED_NAMES = {"base", "engine"}
"""Names of modules that several folders have."""


def folders() -> list[Path]:
    return sorted({file.parent for file in PACKAGE.rglob("*.py")})


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.py") if file.name not in BESIDE)


def name_of(file: Path) -> str:
    parts = ("seedtune", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {name_of(file): file for file in PACKAGE.rglob("*.py")}


def imported(file: Path) -> set[str]:
    """Modules of ours that a file imports anywhere: inside functions and for type checking, too.

    What the functions of `seedtune.engines` import is left out: they make engines, and the one on Ray calls them to
    make others.
    """
    found, tree = set(), ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if name_of(file) == "seedtune.engines" else ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules().keys()


def test_few_files_lie_at_the_top() -> None:
    assert len(files(PACKAGE)) <= 4
    assert {folder.relative_to(PACKAGE).parts[0] for folder in folders() if folder != PACKAGE} == FOLDERS


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.relative_to(PACKAGE.parent).as_posix())
def test_a_folder_has_at_most_twelve_files_and_says_what_it_is_for(folder: Path) -> None:
    assert len(files(folder)) <= 12
    text = (folder / "__init__.py").read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))


def test_no_module_name_is_there_twice() -> None:
    count = Counter(file.stem for file in modules().values() if file.name not in BESIDE)
    assert {name for name, times in count.items() if times > 1} <= SHARED_NAMES


def types_of(file: Path) -> list[tuple[str, str]]:
    """(name, what it is) of the classes and the aliases of types that a file defines at its top."""
    found = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found.append((node.name, f"class of {file.relative_to(PACKAGE)}"))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():
                found.append((name, ast.unparse(node.value)))
    return found


def test_no_two_classes_have_one_name_and_no_alias_of_a_type_means_two() -> None:
    meanings: dict[str, set[str]] = {}
    for file in modules().values():
        for name, what in types_of(file):
            meanings.setdefault(name, set()).add(what)
    assert {name: sorted(what) for name, what in meanings.items() if len(what) > 1} == {}


def test_no_imports_run_in_a_circle() -> None:
    """``seedtune`` itself is left out: its `__init__` names the public classes for type checkers."""
    graph = {name: imported(file) - {"seedtune"} for name, file in modules().items() if name != "seedtune"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def aliases(tree: ast.Module) -> dict[str, ast.expr]:
    """Return the values of the names that a file sets at its top, among them its aliases of types."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def unlike(annotation: ast.AST, known: Mapping[str, ast.expr]) -> Iterator[str]:
    """Yield the tuples of unlike things in an annotation, with ``known`` aliases resolved.

    What a function passes or returns that is itself an argument is left out, and so are the words of `Literal`.
    """
    name = ast.unparse(annotation).rpartition(".")[2] if isinstance(annotation, ast.Name | ast.Attribute) else ""
    if name in known:
        yield from unlike(known[name], {other: value for other, value in known.items() if other != name})
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Callable", "Literal"):
        return
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "tuple":
        parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if len({ast.unparse(part) for part in parts} - {"..."}) > 1:
            yield ast.unparse(annotation)
        yield from (found for part in parts for found in unlike(part, known))
    else:
        yield from (found for child in ast.iter_child_nodes(annotation) for found in unlike(child, known))


IMPOSED_TUPLES = {"config/foreign_data.py single_keys": "json passes an object's pairs to its object_pairs_hook"}
"""Functions that take a tuple of unlike things because a library passes one, and which."""


def test_no_function_takes_a_tuple_of_unlike_things() -> None:
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in modules().values()}
    everywhere = {name: value for tree in trees.values() for name, value in aliases(tree).items() if name[0].isupper()}
    found = {}
    for file, tree in trees.items():
        known = everywhere | aliases(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                taken = [arg.annotation for arg in ast.walk(node.args) if isinstance(arg, ast.arg) and arg.annotation]
                tuples = [text for annotation in taken for text in unlike(annotation, known)]
                if tuples:
                    found[f"{file.relative_to(PACKAGE)} {node.name}"] = f"line {node.lineno}: {', '.join(tuples)}"
    assert {place: what for place, what in found.items() if place not in IMPOSED_TUPLES} == {}
    assert found.keys() >= IMPOSED_TUPLES.keys(), "an exemption is no longer needed"


def test_functions_have_a_median_of_at_most_eight_lines() -> None:
    lines = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for file in modules().values()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert statistics.median(lines) <= 8


def test_unit_tests_lie_in_the_folders_of_what_they_test() -> None:
    tests = Path(__file__).parent
    for file in tests.rglob("test_*.py"):
        assert (PACKAGE / file.parent.relative_to(tests)).is_dir(), file


def test_prose_names_its_subjects() -> None:
    """CONTRIBUTING's vocabulary: no headless sentences in what users and readers see."""
    root = Path(__file__).parents[2]
    files = [root / "README.md", *(root / "src").rglob("*.py"), *(root / "docs").rglob("*.md")]
    found = [file.name for file in files if re.search("that is none|whoever|nobody|somebody", file.read_text(), re.I)]
    assert not found
