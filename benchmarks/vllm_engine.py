"""What the vLLM engine's overheads are: rollouts of a population in one wave, member by member, and without members.

    python benchmarks/vllm_engine.py [--model smollm2-135m] [--tokens 32] [--repeats 3] [--output FILE]

All cases run in one process, in turn, ``--repeats`` times; the table has medians, and what counts are the ratios.  The
file is not called ``vllm.py``, because Python would then import it instead of vLLM.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported
from seedtune.config.config import Config

# isort: split
import torch

from seedtune.engines.base import Engine
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.engines.vllm import compat
from seedtune.engines.vllm.engine import VllmEngine
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Job, Member, Prompt, Sampling, Term, Update

QUESTIONS = (
    "What is the capital of Japan?", "How many legs does a spider have?", "Name a fruit that is yellow.",
    "Who wrote Hamlet?", "What do bees make?", "How many days has a week?", "What is frozen water called?",
    "Which planet is called the red one?",
)  # fmt: skip
MEMBERS = tuple(Member(1, pair, sign) for pair in range(4) for sign in (1, -1))
SIGMA = 0.004
WAVE = "vLLM, lowrank: 8 members × 8 prompts in one wave"
ALONE = "vLLM, lowrank: the same, member by member"
UPDATE = Update(1, tuple(Term(1, pair, 1e-4) for pair in range(4)))


def job(tokens: int, members: tuple[Member, ...], number: int = 0) -> Job:
    """Eight questions to these members; all completions have the same length."""
    prompts = tuple(Prompt(i, ({"role": "user", "content": text},)) for i, text in enumerate(QUESTIONS))
    return Job(number, SIGMA, members, prompts, Sampling(max_tokens=tokens, ignore_eos=True))


def rollouts(engine: Engine, *jobs: Job) -> float:
    """Seconds to evaluate them, each job before the next is asked for."""
    started = time.perf_counter()
    for one in jobs:
        assert len(list(engine.evaluate([one]))) == len(one.members) * len(one.prompts) * one.sampling.samples
    return time.perf_counter() - started


def cases(model: str, tokens: int) -> dict[str, Callable[[], float]]:
    """Name → what runs it and gives seconds; every case writes 64 completions."""
    served = {mode: vllm_engine(model, mode) for mode in ("lowrank", "gaussian")}
    plain = TransformersEngine(Config(model=model), noise=Noise(7))
    plain.load()
    wave, alone = job(tokens, MEMBERS), [job(tokens, (member,)) for member in MEMBERS]
    unperturbed = job(tokens, (UNPERTURBED,))
    unperturbed = replace(unperturbed, prompts=unperturbed.prompts * 8)
    return {
        "vLLM without members: 64 completions of the unperturbed model": lambda: rollouts(
            served["gaussian"], unperturbed
        ),
        WAVE: lambda: rollouts(served["lowrank"], wave),
        ALONE: lambda: rollouts(served["lowrank"], *alone),
        "vLLM, gaussian: the same, member by member": lambda: rollouts(served["gaussian"], wave),
        "transformers engine, lowrank: one batch": lambda: rollouts(plain, wave),
    } | {f"{name} ({mode})": call for mode in served for name, call in parts(served[mode]).items()}


def vllm_engine(model: str, mode: str) -> VllmEngine:
    engine = VllmEngine(Config(model=model), noise=Noise(7, perturbation=mode))
    engine.load()
    return engine


def parts(engine: VllmEngine) -> dict[str, Callable[[], float]]:
    """The engine's own work between two waves, on one rank."""
    state = engine._core._core.model_executor.driver_worker.worker._seedtune
    found: dict[str, Callable[[], float]] = {
        "update by 4 pairs": lambda: timed(lambda: engine.apply(UPDATE)),
        "live weights of the unperturbed model, packed": lambda: timed(lambda: rewrite(engine, UNPERTURBED)),
        "packing alone": lambda: timed(lambda: [pack() for pack in state._packers]),
        "fingerprint": lambda: timed(engine.fingerprint),
    }
    if engine.noise.perturbation == "gaussian":
        found["live weights of a member, packed"] = lambda: timed(lambda: rewrite(engine, MEMBERS[0]))
    else:
        found["an adapter"] = lambda: timed(lambda: state.lora.make(1, f"1:0:1:{SIGMA.hex()}"))
    return found


def rewrite(engine: VllmEngine, member: Member) -> None:
    """Write live weights that are another member's."""
    engine._call("set_member", member, SIGMA)


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(model: str, tokens: int, repeats: int) -> dict[str, float]:
    """Median seconds of every case, after one turn that does not count."""
    listed = cases(model, tokens)
    seconds: dict[str, list[float]] = {name: [] for name in listed}
    for turn in range(repeats + 1):
        for name, run in listed.items():
            found = run()
            if turn:
                seconds[name].append(found)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(found: dict[str, float], tokens: int, arguments: argparse.Namespace) -> str:
    written, rows = 64 * tokens, []
    for name, seconds in found.items():
        rate = f"{written / seconds:,.0f}" if "(" not in name else ""
        rows.append(f"| {name} | {seconds:.3f} | {rate} |")
    ratio = found[ALONE] / found[WAVE]
    command = f"--model {arguments.model} --tokens {tokens} --repeats {arguments.repeats}"
    versions = f"vLLM {compat.require().__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return "\n".join(
        [
            "# The vLLM engine's overheads",
            "",
            f"`python benchmarks/vllm_engine.py {command}`, {time.strftime('%Y-%m-%d')}. Python "
            f"{platform.python_version()}, {versions}, CPU. Seconds are those of this machine; compare "
            "ratios.",
            "",
            f"One wave is **{ratio:.2f}×** as fast as member by member (rank 1).",
            "",
            f"| case (64 completions of {tokens} tokens, median of {arguments.repeats}) | seconds | tokens/s |",
            "| --- | ---: | ---: |",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    text = table(measure(arguments.model, arguments.tokens, arguments.repeats), arguments.tokens, arguments)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
