"""Tokenise prompts: chat messages through the model's template, plain text unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seedtune.errors import ConfigError, DataError
from seedtune.types import Message, Prompt


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Return the prompt's token ids; DataError if the model has no chat template or no tokens are left."""
    content = prompt.content
    ids = _plain(tokenizer, content) if isinstance(content, str) else _render(tokenizer, prompt, content)
    if not ids:
        raise DataError(f"prompt {prompt.id} has no tokens: {prompt.content!r}. Give it some text.")
    return ids


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def _render(tokenizer: Any, prompt: Prompt, content: Sequence[Message]) -> list[int]:
    if tokenizer.chat_template is None:
        raise DataError(
            f"prompt {prompt.id} is a list of chat messages, but the model has no chat template. "
            "Use plain-text prompts, or an instruction-tuned model."
        )
    if "tools" in prompt.template_kwargs and "tools" not in str(tokenizer.chat_template):
        raise DataError(
            "the model's chat template has no place for the environment's tools. Use conversation.tools=text, or a "
            "model that was trained to call tools."
        )
    messages = [dict(message) for message in content]
    options = {
        "add_generation_prompt": True,
        "tokenize": True,
        "return_dict": False,
        **prompt.template_kwargs,
    }
    return list(tokenizer.apply_chat_template(messages, **options))


def context_of(config: Any) -> int | None:
    """Return the maximum context of a model with this configuration; None if it does not say."""
    context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return context


def check_same(own: Any, given: Any) -> None:
    """Raise ConfigError if a given tokenizer does not behave like the model's own (padding aside)."""
    try:
        same = given.get_vocab() == own.get_vocab() and given.chat_template == own.chat_template
    except AttributeError:
        raise ConfigError(f"processing_class is a {type(given).__name__}, not a tokenizer. Leave it out.") from None
    if not same:
        raise ConfigError(
            "processing_class has another vocabulary or chat template than the model's own tokenizer, which is read "
            "from the model's folder. Save yours there (processing_class.save_pretrained(folder)) and leave this out."
        )


def limits(prompts: Sequence[Prompt], ids: Sequence[list[int]], *, most: int, context: int | None) -> list[int]:
    """Return the maximum new tokens of each prompt, at most ``most``.

    A later turn of a conversation gets the remaining context, which may be zero.  Raises DataError for a prompt whose
    limit exceeds the model's context.
    """
    wanted = [most if prompt.max_tokens is None else min(most, prompt.max_tokens) for prompt in prompts]
    if context is None:
        return wanted
    found = []
    for prompt, tokens, new in zip(prompts, ids, wanted, strict=True):
        if prompt.turn == 0 and len(tokens) + new > context:
            raise DataError(
                f"prompt {prompt.id} has {len(tokens)} tokens; with max_completion_length={new} that exceeds the "
                f"model's context of {context}. Shorten the prompt or lower max_completion_length."
            )
        found.append(max(0, min(new, context - len(tokens))))
    return found


def check_answers(
    prompts: Sequence[Prompt], ids: Sequence[list[int]], answers: Sequence[Sequence[int]], *, context: int | None
) -> None:
    """Raise DataError for the first answer that, together with its prompt, exceeds the model's context."""
    for prompt, tokens, answer in zip(prompts, ids, answers, strict=True):
        if context is not None and len(tokens) + len(answer) > context:
            raise DataError(
                f"prompt {prompt.id} has {len(tokens)} tokens; with an answer of {len(answer)} that exceeds the "
                f"model's context of {context}. Shorten the prompt or the answer."
            )


def encode_answers(tokenizer: Any, prompt: Prompt) -> list[list[int]]:
    """Return the token ids of a prompt's answers, each by itself; DataError if it has none, or one has no tokens."""
    found = [list(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in prompt.answers]
    if not found or not all(found):
        raise DataError(f"prompt {prompt.id} has the answers {list(prompt.answers)!r}. Give it some text each.")
    return found


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end a turn, from the generation config and the tokenizer."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None)
