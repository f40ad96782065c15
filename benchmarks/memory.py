"""Memory of one whole generation and update of a large architecture, on the CPU.

    python benchmarks/memory.py [--case 7b-lowrank | 1.5b-gaussian] [--output benchmarks/results/memory.md]

Each case builds the real Qwen2.5 architecture with random weights in bfloat16, loads it into the engine, lets four
members (two antithetic pairs) and the unperturbed model answer two prompts of eight new tokens, applies the update, and
evaluates the updated model once more.  Each runs in a process of its own; its highest resident memory, libraries
included, is what is reported, as the kernel counts it (VmHWM).
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported

# isort: split
import numpy as np
import torch
import transformers
from transformers.initialization import no_init_weights

from seedtune import strategies
from seedtune.config.config import Config
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.engines.transformers.members.weight_format import as_weights
from seedtune.numerics import noise
from seedtune.numerics.kernels import cpu
from seedtune.numerics.noise import Noise
from seedtune.strategies.base import Feedback, update_of
from seedtune.types import UNPERTURBED, Job, Prompt, Sampling

MEMBERS, NEW_TOKENS = 4, 8
QUESTIONS = ("What is the capital of Japan?", "How many legs does a spider have?")
QWEN = {"num_hidden_layers": 28, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-6}
SIZES = {
    "Qwen2.5-7B": transformers.Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        **QWEN,
    ),
    "Qwen2.5-1.5B": transformers.Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        **QWEN,
    ),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A model and how it is perturbed."""

    model: str
    perturbation: str
    weights_dtype: str


CASES = {
    "7b-lowrank": Case("Qwen2.5-7B", "lowrank", "model"),
    "1.5b-lowrank": Case("Qwen2.5-1.5B", "lowrank", "model"),
    "1.5b-lowrank-float32": Case("Qwen2.5-1.5B", "lowrank", "float32"),
    "1.5b-gaussian-model": Case("Qwen2.5-1.5B", "gaussian", "model"),
    "1.5b-gaussian": Case("Qwen2.5-1.5B", "gaussian", "float32"),
}


@dataclass(frozen=True, slots=True)
class RandomModel:
    """Stands where a checkpoint does: an architecture with random weights, and SmolLM2's tokenizer."""

    name: str
    location: str = ""

    def load(self) -> Any:
        """The model in bfloat16: N(0, 0.02) matrices, norms of 1, biases of 0."""
        with no_init_weights(), torch.no_grad():
            model = transformers.AutoModelForCausalLM.from_config(SIZES[self.name], dtype=torch.bfloat16)
            model.tie_weights()
        for name, parameter in model.named_parameters():
            parameter.data.fill_(1.0 if "norm" in name else 0.0)
            if parameter.ndim > 1:
                flat = as_weights(parameter).reshape(-1)
                cpu.perturb(flat, flat, 0.02, noise.Address(noise.key(0, name)))
        return model

    def tokenizer(self) -> Any:
        """Any tokenizer whose ids the vocabulary holds."""
        return ModelSource.resolve("smollm2-135m").tokenizer()


def resident(what: str) -> float:
    """Resident memory in GB (Linux): now (VmRSS) or at its highest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(what)).split()[1]) / 1e6


def measure(case: Case) -> dict[str, float]:
    """One generation, one update, one evaluation of the updated model."""
    noise = Noise(0, case.perturbation, weights_dtype=case.weights_dtype)
    engine = TransformersEngine(Config(), noise=noise)
    engine.source = RandomModel(case.model)  # type: ignore[assignment]
    libraries, started = resident("VmRSS"), time.perf_counter()
    info = engine.load()
    loaded = time.perf_counter()
    strategy = strategies.create(Config(population=MEMBERS, sigma=0.001, alpha=0.0005))
    plan = strategy.ask({}, 0)
    prompts = tuple(Prompt(i, ({"role": "user", "content": text},)) for i, text in enumerate(QUESTIONS))
    sampling = Sampling(max_tokens=NEW_TOKENS, ignore_eos=True)
    rollouts = list(engine.evaluate([Job(0, plan.sigma, (*plan.members, UNPERTURBED), prompts, sampling)]))
    answered = time.perf_counter()
    scores = np.array([[sum(r.token_ids) % 97 for r in rollouts if r.member == m] for m in plan.members], np.float64)
    step = strategy.tell({}, plan, Feedback(scores))
    update = update_of(plan, step.coefficients, step.alpha)
    engine.apply(update)
    updated = time.perf_counter()
    list(engine.evaluate([Job(1, plan.sigma, (UNPERTURBED,), prompts, sampling)]))
    weights = 2 * info.coverage.total / 1e9
    assert len(rollouts) == (MEMBERS + 1) * len(prompts)
    assert update.terms
    return {
        "parameters (billions)": info.coverage.total / 1e9,
        "share perturbed": info.coverage.fraction,
        "weights, bfloat16 (GB)": weights,
        "libraries before loading (GB)": libraries,
        "peak resident memory (GB)": resident("VmHWM"),
        "peak / weights": resident("VmHWM") / weights,
        "bytes per parameter at the peak": resident("VmHWM") / info.coverage.total * 1e9,
        "building and loading (s)": loaded - started,
        "evaluating 5 members (s)": answered - loaded,
        "updating, 2 terms (s)": updated - answered,
    }


def table(title: str, rows: dict[str, float]) -> str:
    """One case as Markdown."""
    lines = [f"## {title}", "", "| measure | value |", "| --- | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {value:,.2f} |" for name, value in rows.items()), ""])


def versions() -> str:
    """What it ran on."""
    found = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{os.cpu_count()} cores. Python {platform.python_version()}, {found}"


def main() -> None:
    """Every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="one case; all of them, each in its own process, by default")
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    options = parser.parse_args()
    if options.case and options.output:
        parser.error("--output is for all cases: leave --case out")
    if options.case:
        case = CASES[options.case]
        print(
            table(f"{case.model}, {case.perturbation}, weights_dtype {case.weights_dtype}", measure(case)), flush=True
        )
        return
    parts = []
    for name in CASES:
        run = subprocess.run([sys.executable, __file__, "--case", name], check=True, stdout=subprocess.PIPE, text=True)
        parts.append(run.stdout)
        print(run.stdout, flush=True)
    if options.output:
        command = f"`python benchmarks/memory.py`, {time.strftime('%Y-%m-%d')}. {versions()}."
        options.output.write_text("\n".join(["# Memory of a generation", "", command, "", *parts]))


if __name__ == "__main__":
    main()
