"""Environments, the counterpart of a model in conversations: their protocol, tools, rewards and transcripts."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from seedtune.errors import ConfigError, DataError, RewardError, suggest
from seedtune.rewards.execution.call import accepted, awaited
from seedtune.types import Example, Message, begun


class Environment(Protocol):
    """TRL's convention: ``reset``, and every other public method is a tool that the model may call.

    These optional members are not tools:

    * ``step(text: str) -> str | None``: receives a whole message of the model and returns the reply, or None to end
      the conversation.  An environment with ``step`` has no tools;
    * ``reward``: the environment's reward, a number or a method that returns one, read after the conversation; TRL's
      ``get_reward()`` is read instead if there is one;
    * ``close()``: called after that.

    An environment must be deterministic given the columns and the messages, or a resumed run differs from the original.
    """

    def reset(self, **columns: Any) -> str | None:
        """Begin a conversation about a row of the data; a returned text is appended to the prompt."""
        ...


class ToolsAlone:
    """The environment of conversations that have tools only: functions, without a state."""

    def reset(self) -> None:
        """Do nothing."""


Factory = Callable[[], Any]
"""Makes an `Environment`: usually its class."""

EnvironmentFactory = Factory | Mapping[str, Factory]
"""A factory for all rows, or several by name: each row names its own in the column ``environment``."""

COLUMN = "environment"
"""The column that names a row's environment if there are several.  ``reset`` does not get it."""


def factories(given: EnvironmentFactory | None) -> dict[str | None, Factory]:
    """Return the factories by name; the name of one for all rows is None."""
    if isinstance(given, Mapping):
        return dict[str | None, Factory](given.items())
    return {} if given is None else {None: given}


def name_of(given: EnvironmentFactory | None, example: Example) -> str | None:
    """Return the name of a row's environment, None if all rows have the same; DataError if it names none."""
    if not isinstance(given, Mapping):
        return None
    name, known = example.columns.get(COLUMN), f"Known: {', '.join(given)}"
    if name is None:
        raise DataError(
            f"there are several environments, but no column {COLUMN!r} names that of the row. Add it. {known}."
        )
    if not isinstance(name, str) or name not in given:
        near = suggest(name, given) if isinstance(name, str) else ""
        raise DataError(f"{COLUMN}={name!r:.200} is none of the environments.{near} {known}.")
    return name


def check_named(given: EnvironmentFactory | None, examples: Sequence[Example], split: str) -> None:
    """Raise DataError for the first row whose environment is not known."""
    for example in examples if isinstance(given, Mapping) else ():
        try:
            name_of(given, example)
        except DataError as error:
            raise DataError(f"row {example.id} of the {split} data: {error}") from None


def check_factories(given: EnvironmentFactory | None) -> None:
    """Raise ConfigError for a mapping that is empty or holds something other than factories by name."""
    if not isinstance(given, Mapping):
        return
    if not given:
        raise ConfigError("environment_factory={} has no environment. Give {NAME: class}, or leave it out.")
    passed: Mapping[Any, Any] = given
    for name, factory in passed.items():
        if not isinstance(name, str) or not callable(factory):
            raise ConfigError(
                f"environment_factory has {name!r:.100}: {factory!r:.200}, but it takes classes or functions by "
                "name. Give {NAME: class}, with the names that the column 'environment' holds."
            )


def environment_reward(environments: Sequence[Any], **_: Any) -> list[Any]:
    """Return each environment's ``reward``, a number or the result of the method; raise RewardError if it has none."""
    return [_reward(environment) for environment in environments]


@dataclass(frozen=True, slots=True)
class RewardOfSome:
    """The own reward of the environments of these ``names``; None for rows with another."""

    names: frozenset[str]

    def __call__(self, environments: Sequence[Any], environment: Sequence[str], **_: Any) -> list[Any]:
        """Return the reward of each environment, of whose names the column ``environment`` is the list."""
        pairs = zip(environments, environment, strict=True)
        return [_reward(made) if name in self.names else None for made, name in pairs]


def own_rewards(given: EnvironmentFactory, *, beside: bool) -> dict[str, Callable[..., Any]]:
    """Return the functions for the environments' own rewards by name; of several environments one for each class.

    ``beside`` reward functions only classes with ``get_reward`` have one, as in TRL.
    """
    if not isinstance(given, Mapping):
        name = given.__name__ if _has_trl_reward(given) else environment_reward.__name__
        return {} if beside and not _has_trl_reward(given) else {name: environment_reward}
    classes = dict[str, set[str]]()
    for name, factory in given.items():
        if not beside or _has_trl_reward(factory):
            classes.setdefault(factory.__name__ if isinstance(factory, type) else name, set()).add(name)
    return {label: RewardOfSome(frozenset(names)) for label, names in classes.items()}


def _has_trl_reward(factory: Factory) -> TypeGuard[type]:
    return isinstance(factory, type) and callable(getattr(factory, "get_reward", None))


def _reward(environment: Any) -> Any:
    found = getattr(environment, "get_reward" if has(environment, "get_reward") else "reward", None)
    if found is None:
        raise RewardError(
            f"the environment {type(environment).__name__!r} has no 'reward'. Give it one, a number or a method, "
            "or give reward_funcs that take environments=[…]."
        )
    return awaited(found()) if callable(found) else found


RESERVED = ("reset", "step", "reward", "get_reward", "close")
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


def has(environment: Any, method: str) -> bool:
    """Whether an environment defines a method; properties are not evaluated."""
    member = inspect.getattr_static(environment, method, None)
    plain = member is None or callable(member) or isinstance(member, classmethod)
    return plain and inspect.ismethod(getattr(environment, method, None))


def tools_of(environment: Any, functions: Tools) -> dict[str, Callable[..., Any]]:
    """Return the public methods of an environment by name, without the reserved ones, and the ``functions``.

    There are none if it has ``step``.
    """
    if has(environment, "step"):
        return {}
    names = [name for name in dir(environment) if not name.startswith("_") and name not in RESERVED]
    return {**{name: getattr(environment, name) for name in names if has(environment, name)}, **functions}


def named(functions: Sequence[Any]) -> dict[str, Callable[..., Any]]:
    """Return TRL's ``tools`` by name; ConfigError for one that is no function with a name, or if two have one name."""
    found: dict[str, Callable[..., Any]] = {}
    for function in functions:
        name = getattr(function, "__name__", "")
        if not callable(function) or not name.isidentifier() or name in found:
            why = "has the name of another" if name in found else "is no function with a name"
            raise ConfigError(f"the tool {function!r} {why}. Give tools=[function, …], each defined with def.")
        found[name] = function
    return found


def begun_with(given: EnvironmentFactory, example: Example) -> tuple[Any, Any]:
    """Make a row's environment, reset it with the row's columns, and return it with its first observation."""
    name = name_of(given, example)
    environment = factories(given)[name]()
    columns = {"prompt": example.prompt, **example.columns}
    if name is not None:
        del columns[COLUMN]
    return environment, awaited(environment.reset(**accepted(environment.reset, columns)))


def try_out(factory: Factory, functions: Tools, *, templated: bool) -> Tools:
    """Make an environment, describe its tools (to a chat template if ``templated``), close it, and return the tools.

    ``functions`` are further tools.  Raises ConfigError if it has no ``reset``, a tool that cannot be described, or
    ``step`` beside functions.
    """
    environment = factory()
    if not callable(getattr(environment, "reset", None)):
        raise ConfigError(f"the environment {type(environment).__name__!r} has no 'reset': add reset(self, **columns).")
    tools = tools_of(environment, functions)
    if functions and not functions.keys() <= tools.keys():
        raise ConfigError(
            f"the environment {type(environment).__name__!r} has 'step', which reads whole messages, so "
            f"tools={list(functions)} would not be called. Leave tools out, or make its methods tools, without 'step'."
        )
    (schemas if templated else describe)(tools)
    if has(environment, "close"):
        awaited(environment.close())
    return tools


_UNREADABLE = (NameError, AttributeError, TypeError, ValueError, LookupError, SyntaxError)
"""Errors of type hints that cannot be evaluated."""


def _undescribed(tool: str, error: Exception) -> ConfigError:
    why = str(error).strip().partition("\n")[0].rstrip(".!")
    return ConfigError(
        f"the environment's method {tool!r} is a tool, but cannot be described to the model: {why}. Give it type hints "
        "and a docstring with Args:, or begin its name with an underscore if it is no tool."
    )


def schemas(tools: Tools) -> list[dict[str, Any]]:
    """Return JSON schemas for ``tools=`` of chat templates, built from type hints and docstrings as in TRL.

    Raises ConfigError for a tool that lacks them.
    """
    return [_schema(name, method) for name, method in tools.items()]


def _schema(name: str, method: Callable[..., Any]) -> dict[str, Any]:
    from transformers.utils import chat_template_utils as hf

    try:
        return hf.get_json_schema(method)
    except (hf.DocstringParsingException, hf.TypeHintParsingException, *_UNREADABLE) as error:
        raise _undescribed(name, error) from error


def describe(tools: Tools) -> str:
    """Describe the tools in text for a model without a tool template: the call syntax, then a line per tool.

    Raises ConfigError for a tool whose type hints, by which its arguments are read, cannot be evaluated.
    """
    lines = ["Call a tool by a line with its name and its arguments in brackets:"]
    for name, method in tools.items():
        try:
            parameters = inspect.signature(method, eval_str=True).parameters
        except _UNREADABLE as error:
            raise _undescribed(name, error) from error
        summary = (inspect.getdoc(method) or "").partition("\n")[0]
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
        return str(awaited(tool(*_positional(call.text, tool)) if call.named is None else tool(**call.named)))
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


Content = str | tuple[Message, ...]


def introduced(content: Content, text: str) -> Content:
    """Put ``text`` in front of the content: as a first paragraph, or in the system message."""
    if isinstance(content, str):
        return f"{text}\n\n{content}"
    first, rest = content[0], content[1:]
    if first["role"] != "system":
        return ({"role": "system", "content": text}, *content)
    return ({**first, "content": f"{first['content']}\n\n{text}"}, *rest)


def opened(content: Content, observation: str | None) -> Content:
    """Append the first observation to the prompt's text, or to the text of its last message that is not the model's."""
    if observation is None:
        return content
    if isinstance(content, str):
        return content + observation
    place = max(0, len(begun(content)[0]) - 1)
    last = content[place]
    return (*content[:place], {**last, "content": f"{last['content']}{observation}"}, *content[place + 1 :])


def continued(content: Content, answer: str, replies: Sequence[Message]) -> Content:
    """Append the model's message and the replies, each followed by a line break in plain text."""
    if isinstance(content, str):
        return content + "".join(f"{line}\n" for line in (answer, *(reply["content"] for reply in replies)))
    before, beginning = begun(content)
    message = {"role": "assistant", "content": beginning + answer}
    return (*before, message, *replies)


def since(content: Content, prompt: Content) -> str:
    """Return the content after ``prompt``: the text, or a line ``role: message`` per message."""
    if isinstance(content, str):
        return content[len(prompt) :]
    return "\n".join(f"{message['role']}: {message['content']}" for message in content[len(begun(prompt)[0]) :])
