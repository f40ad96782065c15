"""``seedtune probe`` and ``seedtune plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import seedtune
from seedtune.cli.console import as_json, clock, number, say, say_json, say_table
from seedtune.cli.options import AsJson, ConfigFile, Sets, bounded
from seedtune.errors import ConfigError
from seedtune.types import COUNT

if TYPE_CHECKING:
    from seedtune.config.config import Config
    from seedtune.planning.plan import Duration, Forecast, MemoryEstimate
    from seedtune.planning.probe import Level, Probe

SHOWN = 160
"""Maximum characters of a printed sample completion."""

COLUMNS = (
    "σ",
    "loss",
    "mean",
    "std",
    "best − unperturbed",
    "unperturbed − mean",
    "success rate",
    "unchanged",
    "clipped",
    "repeating",
    "empty",
)


def probe(
    config: ConfigFile,
    sigmas: Annotated[
        str | None,
        typer.Option(metavar="S,S,…", help="Evaluate these; by default some around the one found."),
    ] = None,
    members: Annotated[int, bounded(4, COUNT, help="Members at each sigma, in pairs.")] = 16,
    prompts: Annotated[
        int | None, bounded(1, COUNT, help="Training prompts; those of a generation by default.")
    ] = None,
    to_json: AsJson = False,
    sets: Sets = None,
) -> None:
    """Show what perturbations of several sizes do to rewards and answers, and the sigma that a run would take.

    A small population answers the same prompts at every sigma.  A run without sigma finds it by itself; this is
    for those who want to look.  Nothing is written.
    """
    from seedtune.cli.warming import compile_beside
    from seedtune.config.yaml_file import load_config

    settings = load_config(config, sets or ())
    compile_beside(settings)
    found = seedtune.probe_config(settings, sigmas=_numbers(sigmas), members=members, prompts=prompts)
    if to_json:
        say_json(found)
    else:
        show_probe(found)


def plan(
    config: ConfigFile,
    devices: Annotated[
        str, typer.Option(metavar="D,D,…", help="cpu (this machine, measured), h100, 8xa100, gpu-check.json, …")
    ] = "cpu",
    measured: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Take this machine's pace from a run instead of measuring.")
    ] = None,
    share: Annotated[
        float | None, bounded(0, 1, help="Mean length of a completion as a share of max_completion_length.")
    ] = None,
    to_json: AsJson = False,
    sets: Sets = None,
) -> None:
    """What a run will take: rollouts, tokens, memory of each mode, and seconds a generation.

    For accelerators the time follows from datasheet figures and an assumed efficiency, by the formula shown.
    A model's configuration is enough; only for 'cpu' the model is loaded and writes a few tokens.
    """
    from seedtune.config.yaml_file import load_config

    names = [name for name in devices.split(",") if name.strip()]
    found = seedtune.plan_config(load_config(config, sets or ()), devices=names, measured=measured, share=share)
    if not to_json:
        show_forecast(found)
        return
    say_json(
        {
            "model": found.config.model,
            "generations": found.config.generations,
            "rollouts": found.rollouts,
            "tokens": found.tokens * found.full,
            "workload": found.workload,
            "memory": [{**as_json(one), "total": one.total} for one in found.memory],
            "seconds": [{**as_json(one), "generation": one.seconds} for one in found.durations],
            "notes": found.notes,
        }
    )


def _numbers(text: str | None) -> list[float]:
    """Parse ``0.001,0.002`` as numbers; ConfigError names an invalid one."""
    numbers = []
    for piece in (text or "").split(","):
        if not piece.strip():
            continue
        try:
            numbers.append(float(piece))
        except ValueError:
            raise ConfigError(f"--sigmas: {piece.strip()!r} is not a number. Write, say, 0.002,0.004,0.008") from None
    return numbers


def show_probe(found: Probe) -> None:
    """Print the table of σ, a sample completion at each, and the recommendation."""
    from seedtune.evaluation.html_report.answers import prompt_text
    from seedtune.strategies import sigma_rule

    say(f"the same {found.prompts} prompts and members at every σ; unperturbed reward {found.unperturbed:.4g}")
    say_table(COLUMNS, map(_cells, found.levels), right=COLUMNS)
    say(f"answers to: {prompt_text(found.unperturbed_sample.prompt.prompt)}")
    say(f"  unperturbed: {_short(found.unperturbed_sample.completion)}")
    for level in found.levels:
        say(f"  σ {level.sigma:.3g}: {_short(level.sample.completion)}")
    say(f"{found.rollouts:,} rollouts in {found.seconds:.1f} s")
    say(
        f"a run without sigma takes σ {found.sigma:g}: there members find the model's own answers "
        f"{sigma_rule.TARGET:g} nats a token less probable"
    )


def _cells(level: Level) -> list[str]:
    answers = level.answers
    shares = (level.success_rate, answers.unchanged, answers.clipped, answers.repeating, answers.empty)
    rewards = (level.mean, level.spread, level.best_gain, level.gap)
    return [f"{level.sigma:.3g}", f"{level.loss:.3f}", *map(number, rewards), *(f"{share:.0%}" for share in shares)]


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else f"{flat[:SHOWN]} …"


def show_forecast(found: Forecast) -> None:
    """Print rollouts and tokens, the memory of each mode, the time on each device, and the assumptions."""
    config, work, anatomy = found.config, found.workload, found.anatomy
    say(
        f"{config.model}: {anatomy.parameters:,} parameters in {anatomy.dtype}; lowrank and flipout perturb "
        f"{anatomy.linear:,}, gaussian {anatomy.trainable:,}"
    )
    say(
        f"a generation: {work.members} members × {work.prompts} prompts = {work.rollouts:,} rollouts, "
        f"{work.read:,.0f} prompt tokens + {work.written:,.0f} new ones, {work.slots} rows in flight"
    )
    say(
        f"the run: {config.generations} generations, {found.rollouts:,} rollouts, "
        f"{found.tokens * found.full:,.0f} tokens"
    )
    title = "memory (GB) = weights + current weights + cache + factors + logits"
    parts = ("weights", "current weights", "cache", "factors", "logits", "together", "packed copy on a CPU")
    say_table(("mode", *parts), [_sized(memory, config) for memory in found.memory], right=parts, title=title)
    if found.durations:
        parts = ("prefill", "decode", "perturb", "update", "together", "the run", "fits")
        rows = [_timed(duration, found.full) for duration in found.durations]
        say_table(("device", *parts), rows, right=parts, title="seconds of a generation")
    for line in (*(f"{duration.device}: {duration.basis}" for duration in found.durations), *found.notes):
        say(f"  {line}")


def _sized(memory: MemoryEstimate, config: Config) -> list[str]:
    """Return the cells of a mode's memory."""
    own = (memory.perturbation, memory.weights_dtype) == (config.perturbation, config.weights_dtype)
    parts = (memory.weights, memory.current_weights, memory.cache, memory.factors, memory.logits, memory.total)
    mode = f"{memory.perturbation}, weights_dtype {memory.weights_dtype}{' (configured)' if own else ''}"
    return [mode, *(f"{part / 1e9:.3f}" for part in (*parts, memory.packed))]


def _timed(duration: Duration, generations: float) -> list[str]:
    parts = (duration.prefill, duration.decode, duration.perturb, duration.update, duration.seconds)
    fits = {None: "–", True: "yes", False: "no"}[duration.fits]
    return [duration.device, *(f"{part:.3g}" for part in parts), clock(duration.seconds * generations), fits]
