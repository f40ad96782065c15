"""The same rollouts by others: the published loop, Hugging Face ``generate`` and vLLM; and the prompts for all."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch

from seedtune.config.config import Config
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Job, Member, Prompt, Sampling

MODEL = "smollm2-135m"
QUESTIONS = (
    "What is the capital of Japan?",
    "How many legs does a spider have?",
    "Name the largest planet.",
    "Which gas do plants absorb from the air?",
)
SIGMA, ALPHA = 0.006, 0.018


def prompts(count: int, limits: list[int] | None = None) -> tuple[Prompt, ...]:
    limit: list[int | None] = list(limits) if limits else [None] * count
    return tuple(
        Prompt(i, ({"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]},), max_tokens=limit[i])
        for i in range(count)
    )


def members(count: int) -> tuple[Member, ...]:
    return tuple(Member(0, pair, sign) for pair in range(count // 2) for sign in (1, -1))


def job(who: tuple[Member, ...], what: tuple[Prompt, ...], tokens: int) -> Job:
    return Job(0, SIGMA, who, what, Sampling(max_tokens=tokens, ignore_eos=True))


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Published:
    """The loop of the published scripts, on the same checkpoint in the same precision."""

    def __init__(self, engine: TransformersEngine, dtype: torch.dtype = torch.bfloat16) -> None:
        self.model = engine.source.load().eval().to(dtype)
        self.tokenizer = engine.source.tokenizer()
        self.tokenizer.padding_side = "left"

    def inputs(self, count: int, repeats: int = 1) -> Any:
        chats = [[{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]}] for i in range(count)] * repeats
        text = self.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, return_tensors="pt", padding=True, add_special_tokens=False)

    @torch.no_grad()
    def noise(self, seed: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=scale)

    @torch.no_grad()
    def generate(self, inputs: Any, tokens: int) -> None:
        pad = self.tokenizer.pad_token_id
        self.model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=pad)

    def member(self, inputs: Any, tokens: int) -> float:
        """Perturb, generate, restore, and this member's part of the update."""

        def work() -> None:
            self.noise(0, SIGMA)
            self.generate(inputs, tokens)
            self.noise(0, -SIGMA)
            self.noise(0, ALPHA / 30)

        return timed(work)


class Peers:
    """What others make of the same 128 rows: Hugging Face in its better type, found with four rows, and vLLM."""

    def __init__(self, engine: TransformersEngine, *, vllm: bool) -> None:
        both = {str(d).removeprefix("torch."): Published(engine, d) for d in (torch.float32, torch.bfloat16)}
        trials = {name: published.inputs(4) for name, published in both.items()}
        for name, published in both.items():
            published.generate(trials[name], 2)
        spent = {name: timed(lambda n=name: both[n].generate(trials[n], 8)) for name in both}
        self.better = min(spent, key=spent.__getitem__)
        self.published, self.vllm = both[self.better], _vllm() if vllm else None

    def seconds(self, tokens: int) -> dict[str, float]:
        """Seconds of each, by its key in the table."""
        inputs = self.published.inputs(4, 32)
        found = {f"h {self.better}": timed(lambda: self.published.generate(inputs, tokens))}
        if self.vllm is not None:
            task = job((UNPERTURBED,) * 32, prompts(4), tokens)
            found["v"] = timed(lambda: list(self.vllm.evaluate([task])))
        return found


def _vllm() -> Any:
    """vLLM with the plain model, after a first batch; None where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return None
    from seedtune.engines.vllm.engine import VllmEngine

    engine = VllmEngine(Config(model=MODEL), noise=Noise(0, perturbation="gaussian"))
    engine.load()
    list(engine.evaluate([job((UNPERTURBED,) * 32, prompts(4), 4)]))
    return engine
