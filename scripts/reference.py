"""Hook of mkdocs: writes the pages of the public names and of every setting, from docstrings and the schema."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import seedtune
from seedtune.config.config import Config
from seedtune.config.sections import section_in

API, SETTINGS = "api.md", "settings.md"
_NUMBERS = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text", Any: "anything"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_LARGE = 10_000
"""Bounds beyond this only catch slips, and are not shown."""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for name, write in ((API, api_page), (SETTINGS, settings_page)):
        files.append(File.generated(config, name, content=write()))
    return files


# ------------------------------------------------------------------------------------------------------ settings


def settings_page() -> str:
    """Return the page of every setting."""
    parts = [
        "# Every setting",
        "In YAML, after `--set` on the command line (`--set sigma=0.006`, `--set ray.workers=4`), or as keywords of "
        "`ESConfig` in Python. All have defaults. This page is made from the schema that checks them.",
        table(Config),
    ]
    for name, section in sections(Config):
        parts += [f"## {name}", cell(inspect.getdoc(section) or ""), table(section)]
    return "\n\n".join(parts) + "\n"


def sections(owner: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the sections of a configuration and theirs, each with the setting that holds it."""
    for name, field in owner.model_fields.items():
        section = section_in(field.annotation)
        if section is not None:
            yield name, section
            yield from sections(section)


def table(owner: type[BaseModel]) -> str:
    """Return a table of the settings of a section."""
    rows = [
        f"| `{name}` | {values(field)} | {default(field)} | {cell(field.description or '')} |"
        for name, field in owner.model_fields.items()
    ]
    return "\n".join(["| setting | values | default | meaning |", "| --- | --- | --- | --- |", *rows])


def values(field: FieldInfo) -> str:
    """Return which values a setting takes."""
    bounds = " and ".join(bounds_of(field.metadata))
    name, rest, _ = kind(field.annotation).partition(" or none")
    return name + (f" {bounds}" if bounds else "") + rest


def bounds_of(metadata: list[Any]) -> Iterator[str]:
    """Yield the bounds of a number that a person may meet."""
    for bound in metadata:
        for name, sign in _BOUNDS.items():
            value = getattr(bound, name, None)
            if value is not None and abs(value) < _LARGE:
                yield f"{sign} {value:g}"


def kind(annotation: Any) -> str:
    """Return the name of a type in plain English."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin in (Union, UnionType):
        return " or ".join("none" if part is type(None) else kind(part) for part in parts)
    if origin is tuple:
        return f"list of {kind(parts[0])}"
    if origin is dict:
        return "mapping"
    if origin is not None:  # Annotated
        return kind(parts[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        name = next(name for name, section in sections(Config) if section is annotation)
        return f"[mapping](#{name})"
    return _NUMBERS.get(annotation, "anything")


def default(field: FieldInfo) -> str:
    """Return the default of a setting as it stands in YAML."""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if value is None:
        return "none"
    if field.is_required():
        return "required"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else cell(str(value))}`"


def cell(text: str) -> str:
    """Return a docstring as one line of Markdown, for the cell of a table."""
    return markdown(re.sub(r"\s+", " ", text.strip())).replace("|", "\\|")


def markdown(text: str) -> str:
    """Return a docstring, which writes code in two backticks and names of ours in one, as Markdown."""
    return re.sub(r"``(.+?)``", r"`\1`", text)


# ------------------------------------------------------------------------------------------------- public names


def api_page() -> str:
    """Return the page of all public names."""
    parts = [
        "# Python API",
        "Everything that `import seedtune` offers, from its docstrings.",
    ]
    for name in seedtune.__all__:
        parts += list(entry(name, getattr(seedtune, name)))
    return "\n\n".join(parts) + "\n"


def entry(name: str, item: Any) -> Iterator[str]:
    """Yield the parts of a public name's entry."""
    yield f"## `{name}`"
    if isinstance(item, str):
        yield "The version of the package."
        return
    if item is Config:
        yield markdown(inspect.getdoc(item) or "")
        yield f"Its keywords are [the settings]({SETTINGS}). They are frozen; `replace(**changes)` returns a copy."
        return
    if not isinstance(item, type) or not (issubclass(item, Exception) or getattr(item, "_is_protocol", False)):
        yield signature(name, item)
    yield markdown(inspect.getdoc(item) or "")
    if isinstance(item, type):
        yield from members(item)


def members(owner: type) -> Iterator[str]:
    """Yield the attributes of a class that have a docstring, and its public methods."""
    found = dict(attributes(owner))
    if found:
        yield "\n".join(f"* `{name}`: {cell(text)}" for name, text in found.items())
    for name, item in vars(owner).items():
        item = getattr(item, "__func__", item)
        if not name.startswith("_") and inspect.isfunction(item) and item.__doc__:
            yield f"### `{owner.__name__}.{name}`"
            yield signature(name, item)
            yield markdown(inspect.getdoc(item) or "")


def attributes(owner: type) -> Iterator[tuple[str, str]]:
    """Yield the fields and properties of a class with the docstrings that follow or are in them."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if said and not node.target.id.startswith("_"):
                yield node.target.id, inspect.cleandoc(str(after.value.value))  # type: ignore[union-attr]
    for name, item in vars(owner).items():
        if isinstance(item, property) and not name.startswith("_") and item.__doc__:
            yield name, inspect.getdoc(item) or ""


def signature(name: str, item: Any) -> str:
    """Return the signature as a block of code, a parameter on each line if it is long."""
    found = inspect.signature(item)
    parameters = [one for one in found.parameters.values() if one.name != "self"]
    text = str(found.replace(parameters=parameters)).replace("'", "")
    if len(name + text) > 100:
        starred = any(one.kind is one.VAR_POSITIONAL for one in parameters)
        lines, keyword = [], False
        for one in parameters:
            if one.kind is one.KEYWORD_ONLY and not keyword and not starred:
                keyword = True
                lines.append("    *,")
            lines.append(f"    {one},".replace("'", ""))
        returns = found.return_annotation
        end = "" if returns is inspect.Signature.empty else f" -> {str(returns).replace(chr(39), '')}"
        text = "\n".join(["(", *lines, f"){end}"])
    return f"```python\n{name}{text}\n```"
