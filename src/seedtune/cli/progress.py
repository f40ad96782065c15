"""Progress output of a run: one line per generation, and on a terminal a bar with the remaining time."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from seedtune.cli import interrupted
from seedtune.cli.console import clock
from seedtune.engines.base import EngineInfo
from seedtune.numerics.machine import available_cores
from seedtune.trainer import Trainer

Metrics = dict[str, Any]


class ProgressLines:
    """A trainer callback; the bar is only drawn on a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.first_reward: float | None = None
        self.first_others: dict[str, float | None] = {}

    def say(self, line: str) -> None:
        """Print one line, without wrapping."""
        self.console.print(line, soft_wrap=True)

    def on_start(self, trainer: Trainer, info: EngineInfo, first: int) -> None:
        """Print the plan, and start the bar."""
        config = trainer.config
        self.total, self.every, self.begin, self.first = (
            config.generations,
            config.logging_steps,
            time.time(),
            first,
        )
        self.describe(trainer, info)
        if first:
            self.say(f"resuming after generation {first} of {self.total}")
        if self.console.is_terminal:
            columns = (
                TextColumn("generation"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.job = self.bar.add_task("", total=self.total, completed=first, left="")

    def describe(self, trainer: Trainer, info: EngineInfo) -> None:
        """Print what is trained, and with which settings."""
        config, coverage = trainer.config, info.coverage
        rank = f" rank {config.rank}" if config.perturbation == "lowrank" else ""
        self.say(
            f"model {info.model} ({info.dtype}, {info.device}): {coverage.fraction:.1%} of "
            f"{coverage.total:,} parameters perturbed, {config.perturbation}{rank}"
        )
        if (threads := available_cores.fitting().words) is not None and info.device == "cpu":
            self.say(threads)
        if info.products:
            self.say(f"products: {info.products}")
        for pattern, reason in coverage.unperturbed:
            self.say(f"  not perturbed: {pattern} ({reason})")
        self.say(
            f"task {trainer.task.name}: {config.generations} generations of N = {config.population} × "
            f"{min(config.prompts_per_generation, len(trainer.task.train))} prompts, "
            f"σ {config.sigma:g}, α {config.step_words()}"
        )
        self.say(f"run directory {config.output_dir}")

    def on_generation(self, metrics: Metrics) -> None:
        """Print a line for the generation, and its alarms; KeyboardInterrupt if an interrupt was dropped."""
        generation = metrics["generation"]
        if generation % self.every == 0 or generation == self.total:
            self.say(generation_line(metrics, self.total, self._left(generation)))
        for alarm in metrics["alarms"]:
            self.say(f"  ! {alarm}")
        if self.bar is not None:
            self.bar.update(self.job, completed=generation, left=f"{self._left(generation)} left")
        if interrupted.is_set() and generation < self.total:
            raise KeyboardInterrupt

    def _left(self, generation: int) -> str:
        seconds = (time.time() - self.begin) / max(1, generation - self.first) * (self.total - generation)
        return clock(seconds)

    def on_evaluate(self, metrics: Metrics) -> None:
        """Print the held-out reward, and its first value."""
        for alarm in metrics.get("alarms", ()):
            self.say(f"  ! {alarm}")
        reward = metrics["eval_reward"]
        if reward is None:
            self.say("held out: no answer could be scored")
            return
        change = ""
        if self.first_reward is None:
            self.first_reward = reward
        else:
            change = f" (was {self.first_reward:.4g})"
        length, accuracy = metrics["eval_completions/mean_length"], metrics.get("eval_accuracy")
        right = "" if accuracy is None else f", accuracy {accuracy:.1%}"
        self.say(
            f"held out after generation {metrics['generation']}: reward {reward:.4g}{change}{right}, "
            f"{length:.1f} tokens an answer{self._others(metrics)}"
        )

    def _others(self, metrics: Metrics) -> str:
        """Format other tasks' accuracy, or reward without accuracy, and its first value."""
        told = []
        for name, value in metrics.items():
            task, slash, measure = name.removeprefix("eval_").rpartition("/")
            ranked = measure == "accuracy" or f"eval_{task}/accuracy" not in metrics
            if slash and f"eval_{task}/unscored" in metrics and measure in ("accuracy", "reward") and ranked:
                first = self.first_others.setdefault(name, value)
                told.append(f"{task} {measure} {number(value)} (was {number(first)})")
        return "; " + ", ".join(told) if told else ""

    def on_end(self, trainer: Trainer) -> None:
        """Remove the bar."""
        self.stop()

    def stop(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class ReplayProgress:
    """Progress of a replay: a bar on a terminal, otherwise an occasional line if it takes long."""

    EVERY = 10.0
    """Seconds between two lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None

    def __enter__(self) -> ReplayProgress:
        """Draw nothing before the replay begins."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar if the replay ended early."""
        self._stop()

    def __call__(self, done: int, goal: int) -> None:
        """Show that ``done`` of ``goal`` generations are replayed; KeyboardInterrupt if an interrupt was dropped."""
        if interrupted.is_set():
            raise KeyboardInterrupt
        now = time.monotonic()
        if done == 0:
            self.begin = self.told = now
        left = clock((now - self.begin) / max(1, done) * (goal - done))
        if done == goal:
            self._stop()
        elif self.console.is_terminal:
            self._draw(done, goal, left)
        elif now - self.told >= self.EVERY:
            self.told = now
            self.console.print(f"replayed {done} of {goal} generations, {left} left", soft_wrap=True)

    def _draw(self, done: int, goal: int, left: str) -> None:
        if self.bar is None:
            columns = (TextColumn("replaying"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[left]}"))
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.job = self.bar.add_task("", total=goal, left="")
        self.bar.update(self.job, completed=done, left=f"{left} left" if done else "")

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def generation_line(metrics: Metrics, total: int, left: str) -> str:
    """Format the metrics of one generation as one line."""
    step = max(metrics["step_time"], 1e-9)
    shares = ", ".join(
        f"{name} {metrics[f'time/{name}'] / step:.0%}" for name in ("rollouts", "perturb", "score", "update")
    )
    unperturbed = "" if metrics["reward_unperturbed"] is None else f", unperturbed {metrics['reward_unperturbed']:.4g}"
    reward = "no reward"
    if metrics["reward"] is not None:
        reward = f"reward {metrics['reward']:.4g} ± {metrics['reward_std']:.3g}, best {metrics['reward_best']:.4g}"
    stale = f", staleness {metrics['staleness/mean']:.1f}" if "staleness/mean" in metrics else ""
    return (
        f"generation {metrics['generation']}/{total}: {reward}{unperturbed}{stale}, "
        f"α {metrics['alpha']:.2g}, {metrics['tokens_per_second']:,.0f} tokens/s, {step:.1f} s ({shares}), {left} left"
    )


def number(value: float | None) -> str:
    """Format a number with four digits, None as a dash."""
    return "–" if value is None else f"{value:.4g}"
