"""Tools of an environment: describe them to the model, parse its calls, and run them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

RESERVED = ("reset", "step", "reward", "close")
"""Public methods that are not tools."""

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_LINE = re.compile(r"\s*(?P<name>\w+)\s*(?:\((?P<inner>.*)\)|[: ]\s*(?P<rest>.*))?\s*")

QUOTED = 500
"""Characters of a malformed call that its error message quotes."""

Tools = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A parsed call: the tool's name with named arguments, a ``text`` of positional ones, or the error in ``wrong``."""

    name: str
    named: Mapping[str, Any] | None = None
    text: str = ""
    wrong: str | None = None


def tools_of(environment: Any) -> dict[str, Callable[..., Any]]:
    """Return the public methods of an environment by name, without the reserved ones."""
    methods = inspect.getmembers(environment, inspect.ismethod)
    return {name: method for name, method in methods if not name.startswith("_") and name not in RESERVED}


def schemas(tools: Tools) -> list[dict[str, Any]]:
    """Return JSON schemas for ``tools=`` of chat templates, built from type hints and docstrings as in TRL."""
    from transformers.utils.chat_template_utils import get_json_schema

    return [get_json_schema(method) for method in tools.values()]


def describe(tools: Tools) -> str:
    """Describe the tools in text for a model without a tool template: the call syntax, then a line per tool."""
    lines = ["Call a tool by a line with its name and its arguments in brackets:"]
    for name, method in tools.items():
        parameters, summary = inspect.signature(method).parameters, (inspect.getdoc(method) or "").partition("\n")[0]
        lines.append(f"{name}({', '.join(parameters)}): {summary}")
    return "\n".join(lines)


def calls_in(text: str, tools: Tools) -> list[ToolCall]:
    """Parse the calls in a message: tagged JSON, a message that is JSON, or lines that begin with a tool's name."""
    tagged = _TAGGED.findall(text)
    if tagged:
        return [_of_json(part) for part in tagged]
    if text.strip().startswith("{"):
        return [_of_json(text)]
    matches = [m for line in text.splitlines() if (m := _LINE.fullmatch(line)) and m["name"] in tools]
    return [ToolCall(m["name"], text=m["inner"] or m["rest"] or "") for m in matches]


def _of_json(text: str) -> ToolCall:
    """Parse ``{"name": …, "arguments": {…}}``; some models write ``parameters``."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # brackets 100,000 deep
        return ToolCall("", wrong=f"not a tool call in JSON: {text.strip()[:QUOTED]!r}")
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return ToolCall("", wrong="a tool call needs a name and arguments")
    arguments = found.get("arguments", found.get("parameters", {}))
    if not isinstance(arguments, dict):
        return ToolCall(found["name"], wrong="the arguments of a tool call must be an object")
    return ToolCall(found["name"], arguments)


def run(call: ToolCall, tools: Tools) -> str:
    """Run a call and return the result as text; errors are returned as text for the model, as in TRL."""
    if call.wrong is not None:
        return f"Error: {call.wrong}"
    if call.name not in tools:
        return f"Error: there is no tool {call.name!r}. Known: {', '.join(tools)}"
    tool = tools[call.name]
    try:
        return str(tool(*_positional(call.text, tool)) if call.named is None else tool(**call.named))
    except Exception as error:  # noqa: BLE001 - the named boundary: tools report errors by raising
        return f"Error: {error}"


def _positional(text: str, tool: Callable[..., Any]) -> list[Any]:
    """Split the arguments of a one-line call and convert numbers and booleans; the last may contain commas."""
    parameters = list(inspect.signature(tool, eval_str=True).parameters.values())
    parts = [part.strip() for part in text.split(",", max(0, len(parameters) - 1))] if text.strip() else []
    return [_read(part, parameter.annotation) for part, parameter in zip(parts, parameters, strict=False)]


def _read(text: str, kind: Any) -> Any:
    """Convert an argument to the annotated type and drop quotes around text; raises ValueError for a bad number."""
    if kind in (int, float):
        return kind(text)
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
