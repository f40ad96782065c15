"""Two conversations with one engine: with the base model and with the current model, turn by turn.

One engine holds one model: before an answer of the base model its live weights are set to θ₀, before one of the tuned
model to θ.  A second engine would take the memory of another model; the change takes one pass over the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from seedtune.config.config import Config
from seedtune.engines.base import BASE, Engine
from seedtune.errors import DataError, EngineError
from seedtune.rollouts.prompts import sampling_of
from seedtune.types import UNPERTURBED, Job, Message, Prompt, Update

FULL = "(the conversation fills the model's context; /reset begins a new one)"


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of the base and of the tuned model to one message."""

    base: str
    tuned: str


@dataclass(slots=True)
class Conversation:
    """The messages to both models and the answers of each; each model reads its own answers only."""

    engine: Engine
    config: Config
    temperature: float = 0.0
    max_tokens: int = 256
    _histories: tuple[list[Message], list[Message]] = field(default_factory=lambda: ([], []))

    @property
    def turn(self) -> int:
        """The number of messages answered since the beginning."""
        return sum(message["role"] == "user" for message in self._histories[0])

    def reset(self) -> None:
        """Begin a new conversation."""
        for history in self._histories:
            history.clear()

    def say(self, text: str) -> Answers:
        """Return both models' answers to a message; DataError if the model cannot read it, and then it was not said."""
        before = self.turn
        answers = []
        for history, shift in zip(self._histories, (BASE, None), strict=True):
            answers.append(self._answer([*history, {"role": "user", "content": text}], shift, before))
        for history, answer in zip(self._histories, answers, strict=True):
            history += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return Answers(*(answer or FULL if before else answer for answer in answers))

    def _answer(self, messages: list[Message], shift: Update | None, turn: int) -> str:
        sampling = sampling_of(self.config)
        sampling = replace(sampling, max_tokens=self.max_tokens, temperature=self.temperature, samples=1)
        prompt = Prompt(0, self._content(messages), self.config.chat_template_kwargs, turn=turn)
        job = Job(0, 0.0, (UNPERTURBED,), (prompt,), sampling, shift)
        for rollout in self.engine.evaluate([job]):
            return rollout.text
        raise EngineError("the engine gave no answer. Start the chat again.")

    def _content(self, messages: list[Message]) -> str | tuple[Message, ...]:
        """Return chat messages, or the last message as plain text for a model without a chat template."""
        system = self.config.system_prompt
        first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        chat = (*first, *messages)
        return chat if self.chats() else messages[-1]["content"]

    def chats(self) -> bool:
        """Return whether the model has a chat template; if not, every message is a text that it continues."""
        try:
            self.engine.tokenizer.lengths([Prompt(0, ({"role": "user", "content": "Hello."},))])
        except DataError:
            return False
        return True
