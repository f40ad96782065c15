"""What members of each perturbation cost, side by side: decoding in one batch, a whole generation, an update.

    python benchmarks/perturbations.py [--quick] [--output benchmarks/results/perturbations.md]

SmolLM2-135M, 32 members × 4 prompts (128 rows), in turns: low rank, flipout with one and eight shared noises, full rank
(gaussian, a member at a time), and the same rows unperturbed.  Products are the matrix products of the unperturbed
decode step alone.  An update has 16 pairs; its memory is the highest during the update above that before it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported

# isort: split
import torch

from seedtune.config.config import Config
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Term, Update

from generation import ceiling, decode_rate, resident, run, versions  # isort: skip
from peers import MODEL, job, members, prompts, timed  # isort: skip

ROWS = 128
WAYS: dict[str, dict[str, Any]] = {
    "lowrank": {"perturbation": "lowrank"},
    "flipout, 1 shared": {"perturbation": "flipout"},
    "flipout, 8 shared": {"perturbation": "flipout", "shared_noise": 8},
    "gaussian": {"perturbation": "gaussian"},
}


def engine_of(noise: dict[str, Any]) -> TransformersEngine:
    """A loaded engine with members of this kind."""
    engine = TransformersEngine(Config(model=MODEL), noise=Noise(0, **noise))
    engine.load()
    return engine


def update(engine: TransformersEngine, number: int) -> tuple[float, float]:
    """Seconds of an update of 16 pairs, and the megabytes that it needs meanwhile."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
    step = Update(number, tuple(Term(number, pair, 1e-5) for pair in range(16)))
    seconds = timed(lambda: engine.apply(step))
    return seconds, resident("VmHWM") - before


def measured(tokens: int, repeats: int) -> tuple[list[dict[str, Any]], float, float]:
    """Rates and updates of every way, tokens/s of the unperturbed rows in decode, and those of the products alone."""
    engines = {name: engine_of(noise) for name, noise in WAYS.items()}
    task, plain = job(members(32), prompts(4), tokens), job((UNPERTURBED,) * 32, prompts(4), tokens)
    first = engines["lowrank"]
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in (*WAYS, "unperturbed")}
    products = []
    for turn in range(repeats + 1):
        for name, engine in {**engines, "unperturbed": first}.items():
            seconds, times = run(engine, plain if name == "unperturbed" else task)
            if turn:  # the first compiles
                rates[name].append((decode_rate(times, ROWS), ROWS * tokens / seconds))
        products.append(ceiling(first, ROWS, first.perturbation._place.form, first.dtype))
    found = []
    for name, engine in engines.items():
        update(engine, 0)
        seconds, memory = min(update(engine, number) for number in range(1, 4))
        copy = sum(array.size for array in engine.weights.tensors.values()) * 4 / 1e6
        decode, whole = (statistics.median(values) for values in zip(*rates[name], strict=True))
        found.append({"name": name, "decode": decode, "whole": whole, "update": seconds, "memory": memory / copy})
    return found, statistics.median(decode for decode, _ in rates["unperturbed"]), statistics.median(products)


def main() -> None:
    """Print the page, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    tokens, repeats = (24, 2) if options.quick else (48, 3)
    rows, plain, products = measured(tokens, repeats)
    lines = [
        "# What perturbations cost",
        "",
        f"`python benchmarks/perturbations.py{' --quick' * options.quick}`, {time.strftime('%Y-%m-%d')}. {MODEL} in "
        f"bfloat16, 32 members × 4 prompts, {tokens} new tokens, median of {repeats}; "
        f"{torch.get_num_threads()} threads. {versions()}.",
        "",
        f"The same rows unperturbed decode {plain:,.0f} tokens/s, their step's matrix products alone {products:,.0f}.",
        "",
        "| members | tokens/s in decode | time / unperturbed | time / products | tokens/s of a generation "
        "| update of 16 pairs, s | memory of an update / a float32 copy of the weights |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {row['name']} | {row['decode']:,.0f} | {plain / row['decode']:.2f} | {products / row['decode']:.2f} "
            f"| {row['whole']:,.0f} | {row['update']:.2f} | {row['memory']:.2f} |"
            for row in rows
        ),
        "",
    ]
    print("\n".join(lines))
    if options.output is not None:
        options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
