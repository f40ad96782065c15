"""Tokenise prompts: chat messages through the model's template, plain text unchanged."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from string import ascii_letters
from typing import Any

from jinja2 import TemplateError

from seedtune.engines.base import check_readable, check_text
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.errors import ConfigError, DataError, first_line
from seedtune.types import Message, Prompt

log = logging.getLogger("seedtune")

BATCH = 1024
"""Prompts tokenised at once."""

REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors by which a chat template, a program of the model's authors, refuses messages."""


_CHAT = tuple({"role": role, "content": f" {role}: a?\n"} for role in ("system", "user", "assistant", "user"))
PROBES = ("Hello, world! 12345 ÀÉ\u0301ß 你好 🙂\n\n \t  def f(x):\r\n", _CHAT[1:2], _CHAT[:2], _CHAT[1:], _CHAT)
"""A text and chats that tokenizers and chat templates read in different ways."""

DAY = datetime(2024, 7, 26)
"""The date that chat templates print, on every day: the one that Llama's own falls back to."""

_CODES = {f"%{flag}{letter}": DAY.strftime(f"%{flag}{letter}") for flag in ("", "-") for letter in ascii_letters}
_TODAY = (
    "{%- macro strftime_now(format) -%}{{ format | replace('%%', '\\0')"
    + "".join(f" | replace({json.dumps(code)}, {json.dumps(text)})" for code, text in _CODES.items() if text != code)
    + " | replace('\\0', '%') }}{%- endmacro %}\n"
)
"""Template code that defines transformers' ``strftime_now``, for `DAY`; its own is a global that no option replaces."""


warn_once = lru_cache(maxsize=16)(log.warning)


def dated(template: str) -> str:
    """Return a chat template that prints `DAY` for today: a run that reads other prompts tomorrow is not the same."""
    return _TODAY + template if "strftime_now" in template else template


class ModelTokenizer:
    """A model's own tokenizer, read when it is first used; ``limit`` may lower the model's context length."""

    def __init__(self, source: ModelSource, *, limit: int | None = None) -> None:
        self.source, self.limit = source, limit

    @cached_property
    def hf(self) -> Any:
        """The tokenizer of transformers."""
        return self.source.tokenizer()

    @cached_property
    def _config(self) -> Any:
        return self.source.config().get_text_config()

    @cached_property
    def angles_limit(self) -> int | None:
        """Tokens up to which a row's rotary angles are its own; beyond them those of longrope depend on other rows."""
        ropes = getattr(self._config, "rope_parameters", None) or getattr(self._config, "rope_scaling", None) or {}
        mappings = [rope for rope in (ropes, *ropes.values()) if isinstance(rope, Mapping)]
        longs = [rope for rope in mappings if {rope.get("rope_type"), rope.get("type")} & {"longrope", "su"}]
        own = getattr(self._config, "original_max_position_embeddings", None)
        sizes = [rope.get("original_max_position_embeddings", own) for rope in longs]
        found = min((size for size in sizes if size is not None), default=None)
        if found is not None:
            warn_once(f"the model's context is used up to {found} tokens: beyond, longrope turns all tokens otherwise")
        return found

    @property
    def context_length(self) -> int | None:
        """Maximum of prompt plus completion tokens; None if the model does not say."""
        sizes = (getattr(self._config, "max_position_embeddings", None), self.angles_limit, self.limit)
        return min((size for size in sizes if size is not None), default=None)

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Return the number of tokens of each prompt, with its longest answer if it has answers."""
        found = list(map(len, self.encode(prompts)))
        return [
            n + max(map(len, self.encode_answers(p))) if p.answers else n for n, p in zip(found, prompts, strict=True)
        ]

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token ids of each prompt; DataError for the first that the model cannot read."""
        found = list[list[int]]()
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            texts = list(map(self.text, batch))
            for prompt, ids in zip(batch, self.hf(texts, add_special_tokens=False)["input_ids"], strict=True):
                found.append(self._begun(ids, text=isinstance(prompt.content, str)))
                if not found[-1]:
                    raise DataError(f"prompt {prompt.id} has no tokens: {prompt.content!r}. Give it some text.")
                self._check_known(prompt, found[-1])
        return found

    def _check_known(self, prompt: Prompt, ids: Sequence[int]) -> None:
        """Raise DataError for a token that a tokenizer has and its model has not."""
        size, last = self._vocabulary, max(ids, default=0)
        if size is not None and last >= size:
            token = self.hf.convert_ids_to_tokens(last)
            raise DataError(
                f"prompt {prompt.id} has the token {token!r} (id {last}), but the model has only {size}: tokens were "
                "added to its tokenizer, not to the model. Leave the token out, or add it to the model."
            )

    @cached_property
    def _vocabulary(self) -> int | None:
        """The number of the model's tokens; None if it does not say."""
        size: int | None = getattr(self._config, "vocab_size", None)
        return size

    def _begun(self, ids: list[int], *, text: bool) -> list[int]:
        """Put the tokenizer's first tokens before those of a plain text (a template writes them itself), only once."""
        first = self._first
        if text and ids[: len(first)] != first:
            return [*first, *ids]
        while first and ids[: 2 * len(first)] == 2 * first:
            ids = ids[len(first) :]
        return ids

    @cached_property
    def _first(self) -> list[int]:
        """The tokens that the tokenizer puts before a text, such as one for its beginning; never those after it."""
        whole, bare = (list(self.hf("a", add_special_tokens=special)["input_ids"]) for special in (True, False))
        return next((whole[:n] for n in range(len(whole)) if whole[n : n + len(bare)] == bare), [])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the vocabulary, and of the probes' tokens or of their refusal by the chat template."""
        found = hashlib.blake2b(json.dumps(sorted(self.hf.get_vocab().items())).encode(), digest_size=8)
        for content in PROBES:
            try:
                read = str(self.encode([Prompt(0, content)]))
            except DataError:
                read = "refused"
            found.update(read.encode())
        return found.hexdigest()

    def text(self, prompt: Prompt) -> str:
        """Return the text of a prompt that is tokenised: itself, or its messages in the model's chat template.

        Raises DataError if the model has no chat template, if the template refuses the messages, or for half a
        character.
        """
        check_readable(prompt)
        if isinstance(prompt.content, str):
            return prompt.content
        if (prompt.template_kwargs.get("chat_template") or self.hf.chat_template) is None:
            raise DataError(
                f"prompt {prompt.id} is a list of chat messages, but the model has no chat template. "
                "Use plain-text prompts, or an instruction-tuned model."
            )
        messages, kwargs = prompt.content, prompt.template_kwargs
        try:
            template = self._template(kwargs)
            rendered = self._rendered(messages, **{**kwargs, **continuation(messages, kwargs)})
        except REFUSALS as error:
            role, why = self._refused_role(messages, kwargs, error), first_line(error).rstrip(".")
            raise DataError(
                f"prompt {prompt.id} is refused by the model's chat template at a message with the role {role!r}: "
                f"{why}. Change the messages, or give another template (chat_template_kwargs.chat_template)."
            ) from error
        if "strftime_now" in template and "date_string" not in kwargs and messages not in PROBES:
            warn_once(f"the chat template prints the date; in all prompts of seedtune it is {DAY:%d %b %Y}")
        check_text(prompt, rendered)
        return rendered

    def _template(self, options: Mapping[str, Any]) -> str:
        """Return the template, of several the named one or that for tools; DataError without a place for the tools."""
        template: str = self.hf.get_chat_template(options.get("chat_template"), options.get("tools"))
        if "tools" in options and "tools" not in template:
            raise DataError(
                "the model's chat template has no place for the environment's tools. Use conversation.tools=text, or "
                "a model that was trained to call tools."
            )
        return template

    def _rendered(self, messages: Sequence[Message], **kwargs: Any) -> str:
        options = {**kwargs, "chat_template": dated(self._template(kwargs)), "tokenize": False}
        text: str = self.hf.apply_chat_template([dict(message) for message in messages], **options)
        return text

    def _refused_role(self, messages: Sequence[Message], kwargs: Mapping[str, Any], refusal: BaseException) -> str:
        """Return the role of the first message with which the template refuses a prompt."""
        for count in range(1, len(messages)):
            try:
                self._rendered(messages[:count], **{**kwargs, **continuation(messages[:count], kwargs)})
            except REFUSALS as error:
                if str(error) == str(refusal):
                    return messages[count - 1]["role"]
        return messages[-1]["role"]

    def encode_answers(self, prompt: Prompt) -> list[list[int]]:
        """Return the token ids of a prompt's answers, each by itself; DataError without answers, or an empty one."""
        for answer in prompt.answers:
            check_text(prompt, answer)
        found = [list(self.hf(answer, add_special_tokens=False)["input_ids"]) for answer in prompt.answers]
        if not found or not all(found):
            raise DataError(f"prompt {prompt.id} has the answers {list(prompt.answers)!r}. Give it some text each.")
        self._check_known(prompt, [token for ids in found for token in ids])
        return found

    def decode(self, tokens: list[int], *, special: bool = False) -> str:
        """Return the text of tokens, without special ones unless ``special``."""
        text: str = self.hf.decode(tokens, skip_special_tokens=not special)
        return text

    @cached_property
    def _special_texts(self) -> re.Pattern[str]:
        added = [str(token) for token in self.hf.added_tokens_decoder.values() if token.special]
        texts = sorted({*added, *self.hf.all_special_tokens}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, filter(None, texts))) or "(?!)")

    def has_special(self, text: str) -> bool:
        """Whether a text has special tokens."""
        return self._special_texts.search(text) is not None

    def without_special(self, text: str) -> str:
        """Return a text without special tokens."""
        return self._special_texts.sub("", text)

    def check_ids(self, name: str, ids: Sequence[int]) -> None:
        """Raise ConfigError for a token of the setting ``name`` that the model does not have."""
        size = self._vocabulary if ids else None
        wrong = [] if size is None else [token for token in ids if token >= size]
        if wrong:
            raise ConfigError(f"{name}={list(ids)}: the model has {size} tokens, and none is {wrong[0]}. Leave it out.")

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


def continuation(messages: Sequence[Message], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's options for what comes after the messages: an answer, or more of one that they end with.

    As in TRL, a prompt that ends with an assistant message is continued, unless tools were called, which ends it;
    ``kwargs`` may say otherwise.
    """
    begun = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
    begins = kwargs.get("add_generation_prompt")
    continues = begun and kwargs.get("continue_final_message", not begins)
    return {
        "add_generation_prompt": not continues if begins is None else begins,
        "continue_final_message": continues,
    }
