"""What docstrings must say: every public function has one, and it names the errors that the function raises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import seedtune
from seedtune import errors
from seedtune.cli.app import app, ray_app

PACKAGE = Path(seedtune.__file__).parent
ERRORS = {name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, Exception)}
COMMANDS = {
    (command.callback.__module__, command.callback.__name__)
    for typer in (app, ray_app)
    for command in typer.registered_commands
    if command.callback is not None
}
"""(module, name) of the commands, whose docstrings are the help texts."""


@dataclass(frozen=True)
class Function:
    """A public function or method; ``owner`` is the method's class."""

    file: Path
    node: ast.FunctionDef | ast.AsyncFunctionDef
    owner: ast.ClassDef | None = None

    @property
    def place(self) -> str:
        name = self.node.name if self.owner is None else f"{self.owner.name}.{self.node.name}"
        return f"{self.file.relative_to(PACKAGE.parent)}:{self.node.lineno} {name}"

    @property
    def text(self) -> str:
        """The docstring; of a method also the one that it implements, and of an ``__init__`` its class's."""
        texts = [ast.get_docstring(self.node)]
        if self.owner is not None:
            texts += [ast.get_docstring(node) for node in implemented(self.owner, self.node.name)]
            if self.node.name == "__init__":
                texts.append(ast.get_docstring(self.owner))
        return "\n".join(filter(None, texts))


@cache
def trees() -> dict[Path, ast.Module]:
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))}


@cache
def classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for tree in trees().values() for node in tree.body if isinstance(node, ast.ClassDef)}


def methods(owner: ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def implemented(owner: ast.ClassDef, name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the methods of this name of our base classes."""
    for base in owner.bases:
        above = classes().get(ast.unparse(base).split("[")[0].rpartition(".")[2])
        if above is not None:
            yield from (node for node in methods(above) if node.name == name)
            yield from implemented(above, name)


@cache
def public() -> tuple[Function, ...]:
    found = []
    for file, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append(Function(file, node))
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found += [Function(file, method, node) for method in methods(node)]
    return tuple(one for one in found if not one.node.name.startswith("_") or one.node.name == "__init__")


@cache
def makers(file: Path) -> dict[str, str]:
    """Return our errors by the names of the functions, of this file or of `seedtune.errors`, that return them."""
    nodes = [node for source in (PACKAGE / "errors.py", file) for node in ast.walk(trees()[source])]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns]
    returned = {node.name: ast.unparse(node.returns) for node in functions if node.returns is not None}
    return {name: error for name, error in returned.items() if error in ERRORS}


def raised(node: ast.AST, known: Mapping[str, str]) -> Iterator[str]:
    """Yield the names of our errors that the body of a function itself raises, without its inner functions'.

    ``known`` are the errors that functions return.
    """
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call):
            name = ast.unparse(inner.exc.func).rpartition(".")[2]
            if name in ERRORS or name in known:
                yield known.get(name, name)
        yield from raised(inner, known)


def module_of(file: Path) -> str:
    return ".".join(("seedtune", *file.relative_to(PACKAGE).with_suffix("").parts))


def test_every_builtin_task_shows_a_prompt_and_an_answer() -> None:
    folder = PACKAGE / "tasks" / "builtin"
    texts = {file.stem: file.read_text(encoding="utf-8") for file in folder.glob("*.py") if file.stem != "__init__"}
    tasks = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in texts.items() if "-> Task:" in text}
    assert len(tasks) > 10
    assert [name for name, text in tasks.items() if not re.search(r"::\n\n    \S", text)] == []


def test_every_public_function_has_a_docstring() -> None:
    assert [one.place for one in public() if not one.text and one.node.name != "__init__"] == []


def test_docstrings_name_the_errors_that_a_function_raises() -> None:
    assert [
        f"{one.place}: {name}"
        for one in public()
        if (module_of(one.file), one.node.name) not in COMMANDS
        for name in dict.fromkeys(raised(one.node, makers(one.file)))
        if name not in one.text
    ] == []
