"""The transcript of a conversation: plain text that grows line by line, or a list of messages."""

from __future__ import annotations

from collections.abc import Sequence

from seedtune.types import Message

Content = str | tuple[Message, ...]

EnvironmentMessage = tuple[str, str]
"""(role, text) of an environment's reply."""


def introduced(content: Content, text: str) -> Content:
    """Put ``text`` in front of the content: as a first paragraph, or in the system message."""
    if isinstance(content, str):
        return f"{text}\n\n{content}"
    first, rest = content[0], content[1:]
    if first["role"] != "system":
        return ({"role": "system", "content": text}, *content)
    return ({**first, "content": f"{first['content']}\n\n{text}"}, *rest)


def opened(content: Content, told: str | None) -> Content:
    """Append the first observation to the prompt's text, or to the text of its last message."""
    if told is None:
        return content
    if isinstance(content, str):
        return content + told
    last = content[-1]
    return (*content[:-1], {**last, "content": f"{last['content']}{told}"})


def continued(content: Content, answer: str, replies: Sequence[EnvironmentMessage]) -> Content:
    """Append the model's message and the replies, each followed by a line break in plain text."""
    if isinstance(content, str):
        return content + "".join(f"{line}\n" for line in (answer, *(text for _, text in replies)))
    said = ({"role": "assistant", "content": answer}, *({"role": role, "content": text} for role, text in replies))
    return (*content, *said)


def since(content: Content, prompt: Content) -> str:
    """Return the content after ``prompt``: the text, or a line ``role: message`` per message."""
    if isinstance(content, str):
        return content[len(prompt) :]
    return "\n".join(f"{message['role']}: {message['content']}" for message in content[len(prompt) :])
