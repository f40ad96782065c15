"""Implementation of ``seedtune probe`` and ``seedtune plan``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from seedtune.cli.console import clock, console
from seedtune.cli.warming import compile_beside
from seedtune.config.yaml_file import load_config
from seedtune.errors import ConfigError
from seedtune.evaluation import report
from seedtune.planning.plan import Duration, Forecast, plan_config
from seedtune.planning.probe import Level, Probe, probe_config

SHOWN = 160
"""Maximum characters of a printed sample completion."""

COLUMNS = (
    "σ",
    "members",
    "mean",
    "std",
    "best − unperturbed",
    "unperturbed − mean",
    "success rate",
    "reliability",
    "unchanged",
    "clipped",
    "repeating",
    "empty",
    "α",
    "gain",
)


def probe_command(config: Path, sigmas: str | None, sizes: tuple[int, int | None], sets: Sequence[str]) -> None:
    """Probe a configuration and print the table, samples and the recommendation; exit code 1 if all σ collapsed."""
    members, prompts = sizes
    settings = load_config(config, sets)
    compile_beside(settings)
    found = probe_config(settings, sigmas=_numbers(sigmas), members=members, prompts=prompts)
    show_probe(found)
    if found.sigma is None:
        raise ConfigError(f"no usable sigma: {found.reason}")
    alpha = "" if found.alpha is None else f" --set alpha={found.alpha:.3g}"
    _say(f"use it with: seedtune train {config} --set sigma={found.sigma:.3g}{alpha}")


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
    _say(f"the same {found.prompts} prompts and members at every σ; unperturbed reward {found.unperturbed:.4g}")
    table = Table()
    for heading in COLUMNS:
        table.add_column(heading, justify="right")
    for level in found.levels:
        table.add_row(*_cells(level))
    console().print(table)
    for level in found.levels:
        if level.collapse is not None:
            _say(f"σ {level.sigma:.3g} is refused: {level.collapse}")
    _say(f"answers to: {report.prompt_text(found.unperturbed_sample[0].prompt)}")
    _say(f"  unperturbed: {_short(found.unperturbed_sample[1])}")
    for level in found.levels:
        _say(f"  σ {level.sigma:.3g}: {_short(level.sample[1])}")
    share = found.rollouts / found.sweep_rollouts
    _say(
        f"{found.rollouts:,} rollouts in {found.seconds:.1f} s: {share:.1%} of a sweep of 5 σ × 10 generations "
        f"({found.sweep_rollouts:,})"
    )
    if found.sigma is not None:
        alpha = "" if found.alpha is None else f", α {found.alpha:.3g}"
        _say(f"recommended: σ {found.sigma:.3g}{alpha}. Why: {found.reason}")


def _cells(level: Level) -> list[str]:
    r, a, stride = level.response, level.answers, level.stride
    shares = (r.success_rate, r.reliability, a.unchanged, a.clipped, a.repeating, a.empty)
    rewards = (r.mean, r.spread, r.best_gain, r.gap)
    step = ("refused", "–") if stride is None else (f"{stride.ratio:.2g} σ", f"{stride.gain:.3g}")
    return [f"{r.sigma:.3g}", str(r.members), *(f"{v:.4g}" for v in rewards), *(f"{v:.0%}" for v in shares), *step]


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else f"{flat[:SHOWN]} …"


def plan_command(config: Path, devices: str, told: tuple[Path | None, float | None], sets: Sequence[str]) -> None:
    """Print the forecast of a run."""
    measured, share = told
    names = [name for name in devices.split(",") if name.strip()]
    show_forecast(plan_config(load_config(config, sets), devices=names, measured=measured, share=share))


def show_forecast(found: Forecast) -> None:
    """Print rollouts and tokens, the memory of each mode, the time on each device, and the assumptions."""
    config, work, anatomy = found.config, found.workload, found.anatomy
    _say(
        f"{config.model}: {anatomy.parameters:,} parameters in {anatomy.dtype}; lowrank perturbs {anatomy.linear:,}, "
        f"gaussian {anatomy.trainable:,}"
    )
    _say(
        f"a generation: {work.members} members × {work.prompts} prompts = {work.rollouts:,} rollouts, "
        f"{work.read:,.0f} prompt tokens + {work.written:,.0f} new ones, {work.slots} rows in flight"
    )
    _say(
        f"the run: {config.generations} generations, {found.rollouts:,} rollouts, "
        f"{found.tokens * found.full:,.0f} tokens"
    )
    _show_memory(found)
    _show_durations(found)
    for note in found.notes:
        _say(f"  {note}")


def _show_memory(found: Forecast) -> None:
    table = Table(title="memory (GB) = weights + current weights + cache + factors + logits", title_justify="left")
    for heading in (
        "mode",
        "weights",
        "current weights",
        "cache",
        "factors",
        "logits",
        "together",
        "packed copy on a CPU",
    ):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    now = (found.config.perturbation, found.config.weights_dtype)
    for memory in found.memory:
        mark = " (configured)" if (memory.perturbation, memory.weights_dtype) == now else ""
        parts = (memory.weights, memory.current_weights, memory.cache, memory.factors, memory.logits, memory.total)
        numbers = (f"{part / 1e9:.3f}" for part in (*parts, memory.packed))
        table.add_row(f"{memory.perturbation}, weights_dtype {memory.weights_dtype}{mark}", *numbers)
    console().print(table)


def _show_durations(found: Forecast) -> None:
    if not found.durations:
        return
    table = Table(title="seconds of a generation", title_justify="left")
    for heading in ("device", "prefill", "decode", "perturb", "update", "together", "the run", "fits"):
        table.add_column(heading, justify="left" if heading == "device" else "right")
    for duration in found.durations:
        table.add_row(*_timed(duration, found.full))
    console().print(table)
    for duration in found.durations:
        _say(f"  {duration.device}: {duration.how}")


def _timed(duration: Duration, generations: float) -> list[str]:
    parts = (duration.prefill, duration.decode, duration.perturb, duration.update, duration.seconds)
    fits = {None: "–", True: "yes", False: "no"}[duration.fits]
    return [duration.device, *(f"{part:.3g}" for part in parts), clock(duration.seconds * generations), fits]


def _say(line: str) -> None:
    console().print(line, soft_wrap=True)
