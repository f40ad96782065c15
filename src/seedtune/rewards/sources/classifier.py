"""A sequence-classification reward model of transformers, run in this process in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seedtune.config.data_and_rewards import ClassifierSettings
from seedtune.config.paths import id_and_revision
from seedtune.errors import ConfigError, suggest
from seedtune.numerics.model_files import read
from seedtune.rewards.base import content_of, text_of

BATCH = 16
"""Completions per forward pass."""

UNLIMITED = (1 << 31) - 1
"""Tokens of a text where neither model nor tokenizer has a limit."""


class Classifier:
    """A reward function with TRL's signature: the logit of a reward model, or the probability of one label.

    Prompt and completion go through the model's chat template if it has one and the prompt is a conversation, and
    are concatenated as text otherwise.  Texts that are too long are truncated from the left.  Weights load at the
    first call.  Raises ModelError if the model cannot be loaded and ConfigError if the label does not fit it.
    """

    def __init__(self, settings: ClassifierSettings) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.settings = settings
        config = self._read(AutoConfig)
        self.label = _label(settings, config)
        self.tokenizer = self._read(AutoTokenizer)
        self.tokenizer.padding_side, self.tokenizer.truncation_side = "right", "left"
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        if limit is None or limit < 1:  # XLNet's is -1
            limit = UNLIMITED
        self.longest = min(limit, self.tokenizer.model_max_length, UNLIMITED)
        self.reads_last = getattr(config, "summary_type", None) == "last"
        """Whether the score is of a row's last position (XLNet), which padding must not be."""
        self.model: Any = None

    def __repr__(self) -> str:
        return f"Classifier({self.settings.model!r})"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """Return one score per completion."""
        self.longest = min(self.longest, _positions(self._loaded())) if completions else self.longest
        ids = [self._encode(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        size = 1 if self.tokenizer.pad_token_id is None or self.reads_last else BATCH
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        scores = [score for batch in batches for score in self._scores([ids[index] for index in batch])]
        return [score for _, score in sorted(zip(order, scores, strict=True))]

    def check_tokenizer(self, given: Any) -> None:
        """Raise ConfigError if a tokenizer of ``reward_processing_classes`` is not the reward model's own."""
        try:
            same = given.get_vocab() == self.tokenizer.get_vocab()
            same = same and given.chat_template == self.tokenizer.chat_template
        except AttributeError:
            kind = type(given).__name__
            raise ConfigError(f"reward_processing_classes holds a {kind}, not a tokenizer. Leave it out.") from None
        if not same:
            raise ConfigError(
                f"reward_processing_classes has another vocabulary or chat template than {self.settings.model!r}, "
                "whose own tokenizer is used. Save yours with the reward model, or leave it out."
            )

    def _encode(self, prompt: Any, completion: Any) -> list[int]:
        options = {"truncation": True, "max_length": self.longest}
        if self.tokenizer.chat_template is not None and not isinstance(prompt, str):
            messages = [*prompt, {"role": "assistant", "content": text_of(completion)}]
            return list(self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))
        shown = prompt if isinstance(prompt, str) else "\n".join(map(content_of, prompt)) + "\n"
        return list(self.tokenizer(shown + text_of(completion), **options)["input_ids"])

    def _scores(self, ids: Sequence[list[int]]) -> list[float]:
        import torch

        model = self._loaded()
        width, padding = max(map(len, ids)), self.tokenizer.pad_token_id or 0
        tokens = torch.tensor([[*row, *[padding] * (width - len(row))] for row in ids], device=self.settings.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=self.settings.device)
        with torch.inference_mode():
            logits = model(input_ids=tokens, attention_mask=mask).logits.float()
        chosen = logits[:, 0] if self.label is None else logits.softmax(-1)[:, self.label]
        return [float(score) for score in chosen.cpu()]

    def _loaded(self) -> Any:
        if self.model is None:
            from transformers import AutoModelForSequenceClassification

            self.model = self._read(AutoModelForSequenceClassification).eval().to(self.settings.device)
            if self.tokenizer.pad_token_id is not None:
                self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        return self.model

    def _read(self, factory: Any) -> Any:
        name = self.settings.model
        place, options = id_and_revision(name)
        fix = (
            "Give a folder or Hugging Face id of a sequence-classification model; a function is written "
            "file.py:function or module.function."
        )
        return read(factory, place, what=f"the reward model {name!r}", fix=fix, trust_remote_code=False, **options)


def _positions(model: Any) -> int:
    """Return the usable positions of models that number them from after the padding's (RoBERTa: 512 of 514)."""
    from torch.nn import Embedding

    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    usable = (
        table.num_embeddings - table.padding_idx - 1
        for table in tables
        if isinstance(table, Embedding) and table.padding_idx is not None
    )
    return min(usable, default=UNLIMITED)


def _label(settings: ClassifierSettings, config: Any) -> int | None:
    """Return the index of the configured label; None for a model with one logit.  Raises ConfigError."""
    known = {str(name): int(index) for index, name in config.id2label.items()}
    if len(known) == 1:
        if settings.label is not None:
            raise ConfigError(
                f"classifier.label={settings.label!r}: {settings.model!r} has one output only. Leave it out."
            )
        return None
    if settings.label is None:
        raise ConfigError(
            f"{settings.model!r} has {len(known)} labels ({', '.join(known)}). Name one: classifier.label."
        )
    if settings.label not in known:
        raise ConfigError(
            f"classifier.label={settings.label!r} is not a label of {settings.model!r}."
            f"{suggest(settings.label, known)} Known: {', '.join(known)}."
        )
    return known[settings.label]
