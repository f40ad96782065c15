"""What a generation of evolution strategies costs: the published loop, ours, plain inference, the machine's ceiling.

    python benchmarks/generation.py [--quick] [--output benchmarks/results/generation.md]

(a) one generation as the published scripts run it: for each member add ``torch.randn`` noise to every weight,
    Hugging Face ``generate`` on all prompts, subtract the noise again; then the update, member by member.
(b) the same generation by seedtune: the population in one batch, rank-1 perturbations, exact update.
(c) the same rollouts by the same engine without any perturbation (the centre in every row).
(d) the matrix products of the same decode step and nothing else: the machine's ceiling at these shapes.
(h) Hugging Face ``generate`` with all rows in one batch, unperturbed.

Completions run to the token limit everywhere (no stop tokens), so that all of them do the same work.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported

# isort: split
import numpy as np
import torch
import transformers

from seedtune.engines.base import EngineTimes, Noise
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.settings import TransformersSettings
from seedtune.types import CENTRE, Job, Member, Prompt, Sampling, Term, Update

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


def run(engine: TransformersEngine, task: Job) -> tuple[float, EngineTimes]:
    engine.take_times()
    seconds = timed(lambda: list(engine.evaluate([task])))
    return seconds, engine.take_times()


def decode_rate(times: EngineTimes, rows: int) -> float:
    """Tokens per second of the decode steps alone (the first token of each row belongs to the prefill)."""
    return (times.generated_tokens - rows) / times.decode


class Published:
    """The loop of the published scripts, on the same checkpoint in the same precision."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.model = engine.source.load().eval()
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


def ceiling(engine: TransformersEngine, rows: int, repeats: int = 5) -> float:
    """Tokens per second if a decode step were its matrix products alone: plain and packed weights, the faster."""
    return max(rows / min(_products(engine, rows, packed) for _ in range(repeats)) for packed in (False, True))


@torch.no_grad()
def _products(engine: TransformersEngine, rows: int, packed: bool) -> float:
    from seedtune.engines.transformers.linear import LiveWeight

    weights = []
    for group in engine.perturbation.groups:
        live = LiveWeight(None, packed=packed)
        live.set(torch.randn(int(group.ends[-1]), group.inputs, dtype=torch.bfloat16))
        weights.append((live, torch.randn(rows, group.inputs, dtype=torch.bfloat16)))
    embedding = engine.model.get_input_embeddings().weight.detach()
    head = LiveWeight(None, packed=packed)
    head.set(embedding)
    weights.append((head, torch.randn(rows, embedding.shape[1], dtype=torch.bfloat16)))
    for live, x in weights[:8]:
        live(x)
    return min(timed(lambda: [live(x) for live, x in weights]) for _ in range(3))


def published_comparison(engine: TransformersEngine, tokens: int, quick: bool) -> dict[str, float]:
    """(a) against (b): N = 30, 2 prompts.  (a) is measured on a few members and multiplied."""
    published = Published(engine)
    inputs = published.inputs(2)
    published.member(inputs, 4)
    per_member = statistics.median(published.member(inputs, tokens) for _ in range(2 if quick else 3))
    update = Update(0, tuple(Term(0, pair, ALPHA / 30) for pair in range(15)))
    task = job(members(30), prompts(2), tokens)

    def ours() -> None:
        list(engine.evaluate([task]))
        engine.apply(update)
        engine.fingerprint()

    ours()
    seconds = statistics.median(timed(ours) for _ in range(2 if quick else 3))
    return {
        "a: published loop, 30 members": 30 * per_member,
        "b: seedtune": seconds,
        "a/b": 30 * per_member / seconds,
    }


def batch_comparison(engine: TransformersEngine, tokens: int, repeats: int) -> dict[str, float]:
    """(b), (c), (d) and (h) at 32 members × 4 prompts, side by side in turns."""
    published, rows = Published(engine), 128
    inputs = published.inputs(4, 32)
    perturbed, plain = job(members(32), prompts(4), tokens), job((CENTRE,) * 32, prompts(4), tokens)
    rates: dict[str, list[float]] = {name: [] for name in ("b", "c", "b decode", "c decode", "d", "h")}
    run(engine, job(members(32), prompts(4), 4))
    published.generate(inputs, 2)
    for _ in range(repeats):
        for name, task in (("b", perturbed), ("c", plain)):
            seconds, times = run(engine, task)
            rates[name].append(rows * tokens / seconds)
            rates[f"{name} decode"].append(decode_rate(times, rows))
        rates["d"].append(ceiling(engine, rows))
        rates["h"].append(rows * tokens / timed(lambda: published.generate(inputs, tokens)))
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratio = lambda x, y: statistics.median(a / b for a, b in zip(rates[x], rates[y], strict=True))  # noqa: E731
    return {
        "b: seedtune, perturbed (tokens/s)": median["b"],
        "c: no perturbation (tokens/s)": median["c"],
        "h: Hugging Face generate (tokens/s)": median["h"],
        "c, decode only (tokens/s)": median["c decode"],
        "d: matrix products alone (tokens/s)": median["d"],
        "b/c": ratio("b", "c"),
        "b/c in decode": ratio("b decode", "c decode"),
        "c/h": ratio("c", "h"),
        "c/d in decode": ratio("c decode", "d"),
    }


def skew(engine: TransformersEngine, tokens: int, repeats: int) -> dict[str, float]:
    """Useful tokens/s when three rows of four stop at a fifth, against equal lengths.

    128 rows at once and 512 rows through 256 slots; of the decode loop alone, and with the prompts' prefill counted,
    which both cases pay alike and the skewed one spreads over fewer tokens.
    """
    early = max(1, tokens // 5)
    cases = {"equal": [tokens] * 4, "skewed": [early, early, early, tokens]}
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(repeats):
        for name, limits in cases.items():
            for rows in (128, 512):
                seconds, times = run(engine, job(members(rows // 4), prompts(4, limits), tokens))
                useful = rows // 4 * sum(limits)
                rates.setdefault((name, f"{rows} decode"), []).append(useful / times.decode)
                rates.setdefault((name, f"{rows} all"), []).append(useful / seconds)

    def ratio(what: str) -> float:
        return statistics.median(s / e for s, e in zip(rates["skewed", what], rates["equal", what], strict=True))

    return {
        "equal lengths, 128 rows, decode (useful tokens/s)": statistics.median(rates["equal", "128 decode"]),
        "3 of 4 rows stop at a fifth, 128 rows, decode (useful tokens/s)": statistics.median(
            rates["skewed", "128 decode"]
        ),
        "skewed/equal, 128 rows at once, decode": ratio("128 decode"),
        "skewed/equal, 128 rows at once, with prefill": ratio("128 all"),
        "skewed/equal, 512 rows through 256 slots, decode": ratio("512 decode"),
        "skewed/equal, 512 rows through 256 slots, with prefill": ratio("512 all"),
    }


def memory() -> dict[str, float]:
    """Peak resident memory of the engine against weights + centre + key-value cache.

    The same code has run a tiny model of the same architecture before, so that what is left is the model's.
    """
    source = TransformersEngine(MODEL, noise=Noise(0), settings=TransformersSettings()).source
    with tempfile.TemporaryDirectory() as folder:
        _tiny(source, folder)
        run(_engine(folder), job(members(32), prompts(4), 8))
    gc.collect()
    before = resident("VmRSS")
    engine = _engine(MODEL)
    run(engine, job(members(32), prompts(4), 48))
    engine.apply(Update(0, tuple(Term(0, pair, 1e-4) for pair in range(16))))
    run(engine, job(members(32), prompts(4), 48))
    weights = 2 * engine.perturbation.coverage.total / 1e6
    centre = sum(array.nbytes for array in engine.centre.tensors.values()) / 1e6
    cache = sum(x.keys.nbytes + x.values.nbytes for x in engine.attention.cache.layers) / 1e6
    beyond = resident("VmHWM") - before
    return {
        "weights, bfloat16 (MB)": weights,
        "centre, float32 (MB)": centre,
        "key-value cache (MB)": cache,
        "code and libraries (MB)": before,
        "peak beyond code and libraries (MB)": beyond,
        "peak/(weights + centre + cache)": beyond / (weights + centre + cache),
    }


def _engine(model: str) -> TransformersEngine:
    engine = TransformersEngine(model, noise=Noise(0), settings=TransformersSettings(dtype="bfloat16"))
    engine.load()
    return engine


def _tiny(source: ModelSource, folder: str) -> None:
    config = source.config()
    config.update({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1})
    config.update({"num_key_value_heads": 1, "head_dim": 64})
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    source.tokenizer().save_pretrained(folder)


def resident(what: str) -> float:
    """Resident memory in MB (Linux): now (VmRSS) or at its highest (VmHWM)."""
    return int(next(x for x in _lines("/proc/self/status") if x.startswith(what)).split()[1]) / 1e3


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def versions() -> str:
    names = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    listed = ", ".join(f"{name} {version}" for name, version in names.items())
    return f"Python {platform.python_version()}, {listed}; {cpu}, {os.cpu_count()} cores"


def table(title: str, rows: dict[str, float]) -> str:
    lines = [f"## {title}", "", "| measure | value |", "| --- | ---: |"]
    lines += [
        f"| {name} | {value:,.2f} |" if value < 100 else f"| {name} | {value:,.0f} |" for name, value in rows.items()
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and repeats")
    parser.add_argument("--repeats", type=int, default=5, help="side-by-side rounds; medians are printed")
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_only:
        print(table("Memory: 32 members × 4 prompts, 48 tokens", memory()))
        return
    engine = _engine(MODEL)
    tokens, repeats = (24, 2) if options.quick else (48, options.repeats)
    parts = [table(f"32 members × 4 prompts, {tokens} new tokens", batch_comparison(engine, tokens, repeats))]
    print(parts[-1], flush=True)
    for longest in (tokens, 100):
        parts.append(table(f"Skewed lengths, up to {longest} new tokens", skew(engine, longest, repeats)))
        print(parts[-1], flush=True)
    title = "One generation: N = 30, 2 prompts, 100 new tokens (seconds)"
    parts.append(table(title, published_comparison(engine, 100, options.quick)))
    print(parts[-1], flush=True)
    alone = [sys.executable, __file__, "--memory-only"]
    parts.append(subprocess.run(alone, check=True, capture_output=True, text=True).stdout)
    print(parts[-1])
    if options.output:
        flags = "--quick" if options.quick else f"--repeats {repeats}"
        command = f"`python benchmarks/generation.py {flags}`, {time.strftime('%Y-%m-%d')}."
        text = "\n".join(["# What a generation costs", "", f"{command} {MODEL}, bfloat16. {versions()}.", "", *parts])
        options.output.write_text(text)


if __name__ == "__main__":
    main()
