"""Three tasks of digits, and the 1M models that know some of each.

    python -m benchmarks.evidence.puzzles --family llama|gpt2|qwen2|qwen3 [--texts chains] --output FOLDER

``countdown`` (see countdown.py), ``products`` of numbers of two digits (``23*47=`` is answered by ``1081``), and
``chains`` (``3:05=`` is answered by three numbers, each 37 more than the one before, modulo 100: ``42 79 16``; only
the last one is rewarded).  A quarter of the prompts of the first two is held out: nothing trains on them, neither here
nor afterwards.  All hundred prompts of a chain's length are trained on and measured: the question there is credit.

As in countdown.py the texts have careless lines among the right ones, so that the models know more than their greedy
answers show, as language models do before they are tuned: a product is written as a sum, and within a chain 37 is
subtracted.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM as Causal

from benchmarks import countdown

Row = dict[str, Any]
Drawn = Iterator[tuple[Row, str]]

STEPS, RATE = 700, 3e-3
"""Of next-token prediction."""

BATCH = {"countdown": 96, "products": 48, "chains": 96}
"""Texts of each task in a step."""

CARELESS = {"products": 0.4, "chains": 0.5}
"""Share of products that are sums, and of numbers in a chain that are 37 less than the one before."""

ADDED = 37

LONGEST = 8
"""Operations of a chain."""


def held_out(prompt: str) -> bool:
    """Whether a prompt is in the quarter without training."""
    return zlib.crc32(prompt.encode()) % 4 == 0


# ------------------------------------------------------------------------------ products


def products(seed: int, *, test: bool = False, careless: float = 0.0) -> Drawn:
    """Products with answers, without end; the held-out ones if ``test``."""
    draw = np.random.default_rng(seed)
    while True:
        a, b = draw.integers(10, 100, 2).tolist()
        prompt = f"{a}*{b}="
        if held_out(prompt) == test:
            answer = a + b if draw.random() < careless else a * b
            yield {"prompt": prompt, "product": a * b}, str(answer)


def right_product(completions: list[str], product: list[int], **_: Any) -> list[float]:
    """The share of the product's digits that are right, counted from the left; a wrong length has none."""
    made = []
    for text, right in zip(completions, product, strict=True):
        wanted, given = str(right), text.strip()
        same = sum(a == b for a, b in zip(wanted, given, strict=False))
        made.append(same / len(wanted) if len(given) == len(wanted) else 0.0)
    return made


# ------------------------------------------------------------------------------ chains


def chains(seed: int, length: int | None = None, *, careless: float = 0.0) -> Drawn:
    """Chains of ``length`` sums (1 to 8 by default), all from any of the hundred numbers; none is held out."""
    draw = np.random.default_rng(seed)
    while True:
        count = length or int(draw.integers(1, LONGEST + 1))
        start = value = int(draw.integers(100))
        written = []
        for _ in range(count):
            value = (value + (-ADDED if draw.random() < careless else ADDED)) % 100
            written.append(f"{value:02d}")
        yield {"prompt": f"{count}:{start:02d}=", "last": (start + count * ADDED) % 100}, " ".join(written)


def right_end(completions: list[str], prompts: list[str], last: list[int], **_: Any) -> list[float]:
    """1 for as many numbers as the chain is long, of which the last one is right: nothing for those before it."""
    made = []
    for text, prompt, right in zip(completions, prompts, last, strict=True):
        numbers = text.split()
        made.append(float(len(numbers) == int(prompt.partition(":")[0]) and numbers[-1] == f"{right:02d}"))
    return made


# ------------------------------------------------------------------------------ rows and models


def rows(drawn: Drawn, count: int) -> list[Row]:
    """Rows of different prompts."""
    found: dict[str, Row] = {}
    for row, _ in drawn:
        found.setdefault(row["prompt"], row)
        if len(found) == count:
            return list(found.values())
    raise AssertionError("the stream has no end")


def corpora(seed: int) -> dict[str, Drawn]:
    """Texts of the three tasks, with careless ones."""
    return {
        "countdown": countdown.corpus(seed),
        "products": products(seed + 10, careless=CARELESS["products"]),
        "chains": chains(seed + 20, careless=CARELESS["chains"]),
    }


def train_model(folder: Path, family: str, kinds: Sequence[str], *, seed: int = 0, steps: int = STEPS) -> Row:
    """Train a model by next-token prediction, write it in bfloat16, and return its shares of right answers."""
    torch.manual_seed(seed)
    words, all_texts = countdown.tokenizer(), corpora(seed)
    texts = {kind: all_texts[kind] for kind in kinds}
    model = Causal.from_config(countdown.FAMILIES[family](len(words)), dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for _ in range(steps):
        for kind, drawn in texts.items():
            (model(**countdown.batch(words, list(islice(drawn, BATCH[kind])))).loss / len(texts)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.generation_config.eos_token_id = 2
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    words.save_pretrained(folder)
    model.to(torch.float32)
    return {name: accuracy(model, words, rows, reward) for name, (rows, reward) in checks().items()}


def checks() -> dict[str, tuple[list[Row], Callable[..., list[float]]]]:
    """Held-out prompts of every task, with their reward."""
    found: dict[str, tuple[list[Row], Callable[..., list[float]]]] = {
        "countdown": (countdown.puzzles(512, 7, test=True), countdown.solved),
        "products": (rows(products(7, test=True), 512), right_product),
    }
    for length in (1, 2, 4, 8):
        found[f"chain of {length}"] = (rows(chains(7, length), 100), right_end)
    return found


def accuracy(model: Any, words: Any, drawn: list[Row], reward: Callable[..., list[float]]) -> float:
    """Mean reward of greedy answers by Hugging Face's own ``generate``."""
    texts = countdown.answers(model, words, drawn, 3 * LONGEST)
    columns = {name: [row[name] for row in drawn] for name in drawn[0] if name != "prompt"}
    return round(float(np.mean(reward(texts, prompts=[row["prompt"] for row in drawn], **columns))), 3)


def main() -> None:
    """Train one model and say how good it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=countdown.FAMILIES, default="llama")
    parser.add_argument("--texts", nargs="+", choices=BATCH, default=["countdown", "products"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    shares = train_model(options.output, options.family, options.texts, steps=options.steps)
    print(f"{options.family}: {shares}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
