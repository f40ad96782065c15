"""A small accuracy task with a small model: countdown puzzles of three numbers, and a 1M Llama that knows some.

A puzzle ``3 5 7=22:`` is answered by an expression of all three numbers with + - and * that has the value.  The
model is trained for ``STEPS`` steps of ordinary next-token prediction and solves a part of the puzzles; what ES adds
is measured from there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = "0123456789 =+-*:"
STEPS, BATCH, LARGEST, TOP = 100, 128, 12, 99
Row = dict[str, Any]


def value(expression: str, numbers: list[int]) -> int | None:
    """What an expression like ``3*5+7`` is worth; None unless it uses exactly ``numbers``.  Parsed, never run."""
    if not re.fullmatch(r"\d{1,2}([-+*]\d{1,2}){2}", expression):
        return None
    parts = re.split(r"([-+*])", expression)
    if sorted(map(int, parts[::2])) != sorted(numbers):
        return None
    total, sign, product = 0, 1, int(parts[0])
    for operator, number in zip(parts[1::2], map(int, parts[2::2]), strict=True):
        if operator == "*":
            product *= number
        else:
            total, sign, product = total + sign * product, 1 if operator == "+" else -1, number
    return total + sign * product


def puzzle(draw: np.random.Generator) -> tuple[Row, str]:
    """A puzzle and one of its solutions."""
    while True:
        numbers = draw.integers(1, LARGEST + 1, 3).tolist()
        (a, b, c), (x, y) = draw.permutation(numbers), draw.choice(list("+-*"), 2)
        solution = f"{a}{x}{b}{y}{c}"
        target = value(solution, numbers)
        if target is not None and 0 <= target <= TOP:
            prompt = f"{' '.join(map(str, numbers))}={target}:"
            return {"prompt": prompt, "numbers": numbers, "target": target}, solution


def puzzles(count: int, seed: int) -> list[Row]:
    """Puzzles with prompt, numbers and target."""
    draw = np.random.default_rng(seed)
    return [puzzle(draw)[0] for _ in range(count)]


def solved(completions: list[str], numbers: list[list[int]], target: list[int], **_: Any) -> list[float]:
    """1 for an expression of exactly the numbers that has the value, else 0."""
    return [float(value(c, n) == t) for c, n, t in zip(completions, numbers, target, strict=True)]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
    made = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def train_model(folder: Path, seed: int = 0) -> None:
    """Train the model on random puzzles and write it as a Hugging Face folder."""
    torch.manual_seed(seed)
    words, draw = tokenizer(), np.random.default_rng(seed + 1)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    for _ in range(STEPS):
        model(**_batch(words, draw)).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def _batch(words: PreTrainedTokenizerFast, draw: np.random.Generator) -> dict[str, torch.Tensor]:
    """Puzzles with solutions; only the solutions are learned."""
    rows = []
    for _ in range(BATCH):
        row, solution = puzzle(draw)
        rows.append((words.encode(row["prompt"]), [*words.encode(solution), 2]))
    longest = max(len(p) + len(s) for p, s in rows)
    fill = [longest - len(p) - len(s) for p, s in rows]
    ids = torch.tensor([[*p, *s, *[0] * n] for (p, s), n in zip(rows, fill, strict=True)])
    labels = torch.tensor([[*[-100] * len(p), *s, *[-100] * n] for (p, s), n in zip(rows, fill, strict=True)])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}
