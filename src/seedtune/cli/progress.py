"""Progress output of a run: one line per generation, and on a terminal a bar with the remaining time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import seedtune
from seedtune.activities import interrupted
from seedtune.cli.console import clock, number

if TYPE_CHECKING:
    from seedtune.engines.base import EngineInfo

Metrics = dict[str, Any]


class Bar:
    """A bar of the generations done, and the remaining time; only drawn on a terminal."""

    def __init__(self, console: Console, what: str) -> None:
        self.console, self.what = console, what
        self.drawn: Progress | None = None

    def draw(self, done: int, goal: int, left: str) -> None:
        """Show that ``done`` of ``goal`` are complete; ``left`` describes the remaining time."""
        if self.drawn is None and self.console.is_terminal:
            columns = (TextColumn(self.what), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[left]}"))
            self.drawn = Progress(*columns, console=self.console, transient=True)
            self.drawn.start()
            self.drawn.add_task("", total=goal, left="")
        if self.drawn is not None:
            self.drawn.update(self.drawn.task_ids[0], completed=done, left=left)

    def stop(self) -> None:
        """Remove the bar."""
        if self.drawn is not None:
            self.drawn.stop()
            self.drawn = None


class ProgressLines:
    """A trainer callback that prints a line for every generation and evaluation."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Bar(console, "generation")
        self.firsts: dict[str, float | None] = {}
        """Metric → its first value."""

    def say(self, line: str) -> None:
        """Print one line, without wrapping."""
        self.console.print(line, soft_wrap=True)

    def on_start(self, trainer: seedtune.ESTrainer, info: EngineInfo, first: int) -> None:
        """Print the plan, and start the bar."""
        config = trainer.config
        self.total, self.config, self.begin, self.first = config.generations, config, time.time(), first
        self.describe(trainer, info)
        if first:
            self.say(f"resuming after generation {first} of {self.total}")
        self.bar.draw(first, self.total, "")

    def describe(self, trainer: seedtune.ESTrainer, info: EngineInfo) -> None:
        """Print what is trained, and with which settings."""
        from seedtune.numerics.machine import available_cores

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
            f"{config.sigma_words()}, {config.step_words()}"
        )
        if measured := trainer.session.measured:
            losses = ", ".join(f"{loss:.3g} at {sigma:.3g}" for sigma, loss in measured)
            self.say(f"  σ by the loss of members in nats a token: {losses}")
        if not trainer.task.test:
            self.say("no prompts are held out: nothing will be evaluated")
        self.say(f"run directory {config.output_dir}")

    def on_generation(self, metrics: Metrics) -> None:
        """Print a line for the generation, and its alarms; KeyboardInterrupt if an interrupt was dropped."""
        generation = metrics["generation"]
        if self.config.due(generation, self.config.logging_steps):
            self.say(generation_line(metrics, self.total, self._left(generation)))
        for alarm in metrics["alarms"]:
            self.say(f"  ! {alarm}")
        self.bar.draw(generation, self.total, f"{self._left(generation)} left")
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
        change = f" (was {self.firsts['eval_reward']:.4g})" if "eval_reward" in self.firsts else ""
        self.firsts.setdefault("eval_reward", reward)
        length, accuracy = metrics["eval_completions/mean_length"], metrics.get("eval_accuracy")
        right = "" if accuracy is None else f", accuracy {accuracy:.1%}"
        self.say(
            f"held out after generation {metrics['generation']}: reward {reward:.4g}{change}{right}, "
            f"{length:.1f} tokens an answer{self._others(metrics)}"
        )

    def _others(self, metrics: Metrics) -> str:
        """Format other tasks' accuracy, or reward without accuracy, and its first value."""
        changes = []
        for name, value in metrics.items():
            task, slash, measure = name.removeprefix("eval_").rpartition("/")
            ranked = measure == "accuracy" or f"eval_{task}/accuracy" not in metrics
            if slash and f"eval_{task}/unscored" in metrics and measure in ("accuracy", "reward") and ranked:
                first = self.firsts.setdefault(name, value)
                changes.append(f"{task} {measure} {number(value)} (was {number(first)})")
        return "; " + ", ".join(changes) if changes else ""

    def on_end(self, trainer: seedtune.ESTrainer) -> None:
        """Remove the bar."""
        self.bar.stop()


class ReplayProgress:
    """Progress of a replay: a bar on a terminal, otherwise an occasional line if it takes long."""

    EVERY = 10.0
    """Seconds between two lines."""

    def __init__(self, console: Console) -> None:
        self.console, self.bar = console, Bar(console, "replaying")

    def __enter__(self) -> ReplayProgress:
        """Draw nothing before the replay begins."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar if the replay ended early."""
        self.bar.stop()

    def __call__(self, done: int, goal: int) -> None:
        """Show that ``done`` of ``goal`` generations are replayed; KeyboardInterrupt if an interrupt was dropped."""
        if interrupted.is_set():
            raise KeyboardInterrupt
        now = time.monotonic()
        if done == 0:
            self.begin = self.printed = now
        left = clock((now - self.begin) / max(1, done) * (goal - done))
        if done == goal:
            self.bar.stop()
        elif self.console.is_terminal:
            self.bar.draw(done, goal, f"{left} left" if done else "")
        elif now - self.printed >= self.EVERY:
            self.printed = now
            self.console.print(f"replayed {done} of {goal} generations, {left} left", soft_wrap=True)


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
