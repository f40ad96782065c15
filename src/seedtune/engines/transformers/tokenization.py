"""Tokenise prompts: chat messages through the model's template, plain text unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.errors import ConfigError, DataError
from seedtune.types import Message, Prompt


class ModelTokenizer:
    """A model's own tokenizer, read when it is first used; ``limit`` may lower the model's context length."""

    def __init__(self, source: ModelSource, *, limit: int | None = None) -> None:
        self.source, self.limit = source, limit

    @cached_property
    def hf(self) -> Any:
        """The tokenizer of transformers."""
        return self.source.tokenizer()

    @cached_property
    def _model_context(self) -> int | None:
        context: int | None = getattr(self.source.config().get_text_config(), "max_position_embeddings", None)
        return context

    @property
    def context_length(self) -> int | None:
        """Maximum of prompt plus completion tokens; None if the model does not say."""
        return min((size for size in (self._model_context, self.limit) if size is not None), default=None)

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Return the number of tokens of each prompt."""
        return list(map(len, self.encode(prompts)))

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token ids of each prompt; DataError if the model has no chat template or no tokens are left."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: Prompt) -> list[int]:
        content = prompt.content
        ids = list(self.hf(content)["input_ids"] if isinstance(content, str) else self._render(prompt, content))
        if not ids:
            raise DataError(f"prompt {prompt.id} has no tokens: {content!r}. Give it some text.")
        return ids

    def _render(self, prompt: Prompt, content: Sequence[Message]) -> Sequence[int]:
        if self.hf.chat_template is None:
            raise DataError(
                f"prompt {prompt.id} is a list of chat messages, but the model has no chat template. "
                "Use plain-text prompts, or an instruction-tuned model."
            )
        if "tools" in prompt.template_kwargs and "tools" not in str(self.hf.chat_template):
            raise DataError(
                "the model's chat template has no place for the environment's tools. Use conversation.tools=text, or "
                "a model that was trained to call tools."
            )
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False, **prompt.template_kwargs}
        ids: Sequence[int] = self.hf.apply_chat_template([dict(message) for message in content], **options)
        return ids

    def encode_answers(self, prompt: Prompt) -> list[list[int]]:
        """Return the token ids of a prompt's answers, each by itself; DataError without answers, or an empty one."""
        found = [list(self.hf(answer, add_special_tokens=False)["input_ids"]) for answer in prompt.answers]
        if not found or not all(found):
            raise DataError(f"prompt {prompt.id} has the answers {list(prompt.answers)!r}. Give it some text each.")
        return found

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens, without special ones."""
        text: str = self.hf.decode(tokens, skip_special_tokens=True)
        return text

    def end_tokens(self, model: Any) -> frozenset[int]:
        """Return the ids that end a turn, from the model's generation config and the tokenizer."""
        configured = model.generation_config.eos_token_id if model.generation_config is not None else None
        listed = configured if isinstance(configured, list) else [configured]
        return frozenset(int(token) for token in [*listed, self.hf.eos_token_id] if token is not None)

    def limits(self, prompts: Sequence[Prompt], ids: Sequence[list[int]], *, most: int) -> list[int]:
        """Return the maximum new tokens of each prompt, at most ``most``.

        A later turn of a conversation gets the remaining context, which may be zero.  Raises DataError for a prompt
        whose limit exceeds the model's context.
        """
        wanted = [most if prompt.max_tokens is None else min(most, prompt.max_tokens) for prompt in prompts]
        context = self.context_length
        if context is None:
            return wanted
        for prompt, tokens, new in zip(prompts, ids, wanted, strict=True):
            if prompt.turn == 0 and len(tokens) + new > context:
                raise DataError(
                    f"prompt {prompt.id} has {len(tokens)} tokens; with max_completion_length={new} that exceeds the "
                    f"model's context of {context}. Shorten the prompt or lower max_completion_length."
                )
        return [max(0, min(new, context - len(tokens))) for tokens, new in zip(ids, wanted, strict=True)]

    def check_answers(
        self, prompts: Sequence[Prompt], ids: Sequence[list[int]], answers: Sequence[Sequence[int]]
    ) -> None:
        """Raise DataError for the first answer that, together with its prompt, exceeds the model's context."""
        context = self.context_length
        for prompt, tokens, answer in zip(prompts, ids, answers, strict=True):
            if context is not None and len(tokens) + len(answer) > context:
                raise DataError(
                    f"prompt {prompt.id} has {len(tokens)} tokens; with an answer of {len(answer)} that exceeds the "
                    f"model's context of {context}. Shorten the prompt or the answer."
                )

    def check_same(self, given: Any) -> None:
        """Raise ConfigError if a given tokenizer does not behave like this one (padding aside)."""
        try:
            same = given.get_vocab() == self.hf.get_vocab() and given.chat_template == self.hf.chat_template
        except AttributeError:
            raise ConfigError(f"processing_class is a {type(given).__name__}, not a tokenizer. Leave it out.") from None
        if not same:
            raise ConfigError(
                "processing_class has another vocabulary or chat template than the model's own tokenizer, which is "
                "read from the model's folder. Save yours there (processing_class.save_pretrained(folder)) and leave "
                "this out."
            )
