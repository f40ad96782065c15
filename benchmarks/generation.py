"""What a generation of evolution strategies costs: the published loop, ours, plain inference, the machine's ceiling.

    python benchmarks/generation.py [--quick] [--isa own,avx2] [--dtype bfloat16] [--products auto]
                                    [--output benchmarks/results/generation.md]

(a) one generation as the published scripts run it: for each member add ``torch.randn`` noise to every weight,
    Hugging Face ``generate`` on all prompts, subtract the noise again; then the update, member by member.
(b) the same generation by seedtune: the population in one batch, rank-1 perturbations, exact update.
(c) the same rollouts by the same engine without any perturbation (the unperturbed model in every row).
(d) the matrix products of the same decode step by seedtune's own kernels, and nothing else.
(e) the same products by torch in float32, (f) by torch in bfloat16, packed by oneDNN where it can.
(h) Hugging Face ``generate`` with all rows in one batch, unperturbed, in float32 or bfloat16, whichever is faster.
(v) vLLM's CPU build with the same rows, unperturbed (left out for a narrower instruction set: its code is fixed).

Completions run to the token limit everywhere (no stop tokens), so that all of them do the same work.  ``--isa`` runs
everything once for each instruction set, in a process that torch, oneDNN, MKL and numba are told to limit: ``avx2`` on
a processor with AVX-512 shows what a processor without it gets, as far as its clock is the same.
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
from pathlib import Path
from typing import Any

import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported
from seedtune.config.config import Config

# isort: split
import numpy as np
import torch
import transformers

from seedtune.engines.base import EngineTimes
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.engines.transformers.members.population_linear import LiveWeight, ProductForm
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Job, Term, Update

from peers import ALPHA, MODEL, Peers, Published, job, members, prompts, timed  # isort: skip


def run(engine: TransformersEngine, task: Job) -> tuple[float, EngineTimes]:
    engine.take_times()
    seconds = timed(lambda: list(engine.evaluate([task])))
    return seconds, engine.take_times()


def decode_rate(times: EngineTimes, rows: int) -> float:
    """Tokens per second of the decode steps alone (the first token of each row belongs to the prefill)."""
    return (times.generated_tokens - rows) / times.decode


def ceiling(engine: TransformersEngine, rows: int, form: ProductForm, dtype: torch.dtype) -> float:
    """Tokens per second if a decode step were its matrix products alone, of that form and type."""
    return rows / min(_products(engine, rows, form, dtype) for _ in range(2))


@torch.no_grad()
def _products(engine: TransformersEngine, rows: int, form: ProductForm, dtype: torch.dtype) -> float:
    weights = []
    for group in engine.perturbation.groups:
        live = LiveWeight(form)
        live.set(torch.randn(int(group.ends[-1]), group.inputs, dtype=dtype))
        weights.append((live, torch.randn(rows, group.inputs, dtype=dtype)))
    embedding = engine.model.get_input_embeddings().weight.detach().to(dtype)
    head = LiveWeight(form)
    head.set(embedding)
    weights.append((head, torch.randn(rows, embedding.shape[1], dtype=dtype)))
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


def batch_comparison(engine: TransformersEngine, tokens: int, repeats: int, peers: Peers) -> dict[str, float]:
    """(b) to (h) and (v) at 32 members × 4 prompts, side by side in turns."""
    rows, rates = 128, dict[str, list[float]]()
    perturbed, plain = job(members(32), prompts(4), tokens), job((UNPERTURBED,) * 32, prompts(4), tokens)
    run(engine, job(members(32), prompts(4), 4))
    own = engine.perturbation._place.form
    ceilings = {
        "d": (own, engine.dtype),
        "e": (ProductForm(), torch.float32),
        "f": (ProductForm("library", True), torch.bfloat16),
    }
    for _ in range(repeats):
        for name, task in (("b", perturbed), ("c", plain)):
            seconds, times = run(engine, task)
            rates.setdefault(name, []).append(rows * tokens / seconds)
            rates.setdefault(f"{name} decode", []).append(decode_rate(times, rows))
        for name, (form, dtype) in ceilings.items():
            rates.setdefault(name, []).append(ceiling(engine, rows, form, dtype))
        for name, seconds in peers.seconds(tokens).items():
            rates.setdefault(name, []).append(rows * tokens / seconds)
    return _rates(rates) | _ratios(rates)


def _rates(rates: dict[str, list[float]]) -> dict[str, float]:
    """Medians, by their full names."""
    names = {
        "b": "b: seedtune, perturbed",
        "b decode": "b, decode only",
        "c": "c: no perturbation",
        "c decode": "c, decode only",
        "d": "d: own matrix products alone",
        "e": "e: torch's float32 products alone",
        "f": "f: torch's bfloat16 products alone",
        "h float32": "h: Hugging Face generate, float32",
        "h bfloat16": "h: Hugging Face generate, bfloat16",
        "v": "v: vLLM's CPU build",
    }
    return {f"{name} (tokens/s)": statistics.median(rates[key]) for key, name in names.items() if key in rates}


def _ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Medians of ratios within a round."""
    rates = rates | {"h": next(rates[name] for name in ("h float32", "h bfloat16") if name in rates)}
    wanted = {
        "b/c": ("b", "c"),
        "b/c in decode": ("b decode", "c decode"),
        "b/h": ("b", "h"),
        "c/h": ("c", "h"),
        "b/v": ("b", "v"),
        "b/d in decode": ("b decode", "d"),
        "b/e in decode": ("b decode", "e"),
        "c/d in decode": ("c decode", "d"),
        "d/e": ("d", "e"),
        "d/f": ("d", "f"),
    }
    return {
        name: statistics.median(x / y for x, y in zip(rates[one], rates[other], strict=True))
        for name, (one, other) in wanted.items()
        if one in rates and other in rates
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
    """Peak resident memory of the engine against weights + current weights + key-value cache.

    The same code has run a tiny model of the same architecture before, so that what is left is the model's.
    """
    source = TransformersEngine(Config(model=MODEL), noise=Noise(0)).source
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
    current = sum(array.nbytes for array in engine.weights.tensors.values()) / 1e6
    cache = sum(x.keys.nbytes + x.values.nbytes for x in engine.attention.cache.layers) / 1e6
    beyond = resident("VmHWM") - before
    return {
        "weights, bfloat16 (MB)": weights,
        "current weights, float32 (MB)": current,
        "key-value cache (MB)": cache,
        "code and libraries (MB)": before,
        "peak beyond code and libraries (MB)": beyond,
        "peak/(weights + current weights + cache)": beyond / (weights + current + cache),
    }


def _engine(model: str, **settings: Any) -> TransformersEngine:
    engine = TransformersEngine(Config(model=model, **settings), noise=Noise(0))
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
    lines = [f"### {title}", "", "| measure | value |", "| --- | ---: |"]
    lines += [
        f"| {name} | {value:,.2f} |" if value < 100 else f"| {name} | {value:,.0f} |" for name, value in rows.items()
    ]
    return "\n".join([*lines, ""])


AVX2 = (
    "+64bit,+avx,+avx2,+bmi,+bmi2,+cmov,+cx16,+cx8,+f16c,+fma,+fxsr,+lzcnt,+mmx,+movbe,+popcnt,"
    "+sse,+sse2,+sse3,+sse4.1,+sse4.2,+ssse3,+xsave"
)
ISA = {
    "own": {},
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": AVX2,
    },
}
"""Instruction set → what limits the libraries to it."""


def section(options: argparse.Namespace) -> None:
    """Print the tables of one instruction set, in a process that is limited to it."""
    engine = _engine(MODEL, dtype=options.dtype, products=options.products)
    tokens, repeats = (24, 2) if options.quick else (48, options.repeats)
    print(f"Products: {engine._products()}; the model in {str(engine.dtype).removeprefix('torch.')}.\n")
    peers = Peers(engine, vllm=options.child == "own" and not options.quick)
    compared = batch_comparison(engine, tokens, repeats, peers)
    print(table(f"32 members × 4 prompts, {tokens} new tokens", compared), flush=True)
    if options.part == "batch":
        return
    del peers
    for longest in (tokens, 100):
        print(table(f"Skewed lengths, up to {longest} new tokens", skew(engine, longest, repeats)), flush=True)
    title = "One generation: N = 30, 2 prompts, 100 new tokens (seconds)"
    print(table(title, published_comparison(engine, 100, options.quick)), flush=True)
    alone = [sys.executable, __file__, "--memory-only"]
    print(subprocess.run(alone, check=True, capture_output=True, text=True).stdout)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and repeats, no vLLM")
    parser.add_argument("--repeats", type=int, default=5, help="side-by-side rounds; medians are printed")
    parser.add_argument("--isa", default="own", help=f"instruction sets, of {', '.join(ISA)}, divided by commas")
    parser.add_argument("--dtype", default="auto", help="the setting dtype")
    parser.add_argument("--products", default="auto", help="the setting products")
    parser.add_argument("--part", choices=["all", "batch"], default="all", help="batch: the first table only")
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=ISA, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.isa.split(",")) - set(ISA)
    if unknown:
        parser.error(f"--isa {options.isa}: {', '.join(sorted(unknown))} is unknown; there are {', '.join(ISA)}")
    return options


def main() -> None:
    options = parsed()
    if options.memory_only:
        print(table("Memory: 32 members × 4 prompts, 48 tokens", memory()))
        return
    if options.child:
        section(options)
        return
    parts = []
    for isa in options.isa.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--child", isa]
        done = subprocess.run(command, env={**os.environ, **ISA[isa]}, check=True, stdout=subprocess.PIPE, text=True)
        parts.append(f"## Instruction set: {isa}\n\n{done.stdout}")
        print(parts[-1], flush=True)
    if options.output:
        flags = " ".join(argument for argument in sys.argv[1:] if argument not in ("--output", str(options.output)))
        command = f"`python benchmarks/generation.py {flags}`, {time.strftime('%Y-%m-%d')}."
        text = "\n".join(["# What a generation costs", "", f"{command} {MODEL}. {versions()}.", "", *parts])
        options.output.write_text(text)


if __name__ == "__main__":
    main()
