"""What a generation has to compute: rollouts, prompt tokens, new tokens, rows in flight and decode steps.

How fast something is, measured: the configured engine for a few tokens, or a run that was.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from seedtune import engines
from seedtune.config.config import Config
from seedtune.engines.base import Engine, EngineTimes
from seedtune.engines.transformers import tokenization
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.engines.transformers.decoding.decoder import slots_for
from seedtune.errors import ConfigError, ModelError, RunError
from seedtune.rollouts.prompts import prompt_of
from seedtune.run import directory, recorded_config
from seedtune.strategies import populations
from seedtune.tasks.base import Task
from seedtune.types import Example, Job, Member, Prompt, Sampling, Term, Update

COUNTED = 64
"""Training prompts that are tokenised to know their lengths."""

CHARACTERS = 4
"""Characters of a token, where there is no tokenizer to ask."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One generation of one process."""

    members: int
    """Members that answer, the unperturbed one included if it does."""
    prompts: int
    """Completions of a member: every sample of every prompt."""
    prompt_tokens: float
    """Mean tokens of a prompt."""
    longest: int
    new_tokens: float
    """Expected tokens of a completion."""
    limit: int
    batch_slots: int
    """Rows in flight where all members share a batch."""
    member_slots: int
    """Rows in flight of a member alone."""
    alone: bool
    """Members one after the other (``gaussian``) instead of all in one batch."""
    counted: bool
    """Whether prompts were tokenised; if not, a token is four characters."""

    @property
    def slots(self) -> int:
        """Rows in flight."""
        return self.member_slots if self.alone else self.batch_slots

    @property
    def rollouts(self) -> int:
        """Completions of a generation."""
        return self.members * self.prompts

    @property
    def read(self) -> float:
        """Prompt tokens of a generation."""
        return self.rollouts * self.prompt_tokens

    @property
    def written(self) -> float:
        """New tokens of a generation."""
        return self.rollouts * self.new_tokens

    @property
    def steps(self) -> float:
        """Decode steps: some row of a batch reaches the limit; rows that wait fill the slots in between."""
        batches, rows = (self.members, self.prompts) if self.alone else (1, self.rollouts)
        waiting = max(0, rows - self.slots) * self.new_tokens / self.slots
        return batches * (waiting + self.limit - 1)

    @property
    def row_steps(self) -> float:
        """Tokens that decode steps make: all but the first of each completion."""
        return self.rollouts * max(0.0, self.new_tokens - 1)


def workload_of(config: Config, task: Task, *, share: float, devices: int = 1) -> Workload:
    """The workload of one of ``devices`` that share the members, in the largest generation of the run.

    Completions fill ``share`` of their limit.
    """
    if task.environment is not None or config.uses_likelihood:
        raise ConfigError(
            f"task {task.name!r} with objective={config.objective} cannot be planned: only single completions can, not "
            "conversations or reference answers. Train a generation and look at step_time in its metrics."
        )
    lengths, counted = _lengths(config, task.train[:COUNTED])
    members = -(-(max(populations(config)) + config.evaluate_unperturbed) // devices)
    prompts = min(config.prompts_per_generation, len(task.train)) * config.samples_per_prompt
    limit, longest = config.max_completion_length, max(lengths)
    return Workload(
        members=members,
        prompts=prompts,
        prompt_tokens=sum(lengths) / len(lengths),
        longest=longest,
        new_tokens=max(1.0, share * limit),
        limit=limit,
        batch_slots=_slots(config, (members, prompts), longest + limit),
        member_slots=_slots(config, (1, prompts), longest + limit),
        alone=config.perturbation == "gaussian",
        counted=counted,
    )


def _slots(config: Config, batch: tuple[int, int], positions: int) -> int:
    """Rows in flight of a batch of (members, prompts) whose rows have that many positions."""
    members, prompts = batch
    if config.engine == "vllm":
        return min(config.vllm.max_num_seqs, min(members, config.vllm.max_loras) * prompts)
    own = config.transformers
    return slots_for(members * prompts, positions, max_rows=own.max_rows, max_tokens=own.max_batch_tokens)


def _lengths(config: Config, examples: Sequence[Example]) -> tuple[list[int], bool]:
    """Tokens of each prompt, and whether a tokenizer counted them."""
    prompts = [prompt_of(config, example) for example in examples]
    source = ModelSource.resolve(config.model, trust_remote_code=_trusts(config))
    try:
        tokenizer = source.tokenizer()
    except ModelError:
        return [max(1, _characters(prompt) // CHARACTERS) for prompt in prompts], False
    return [len(tokenization.encode(tokenizer, prompt)) for prompt in prompts], True


def _trusts(config: Config) -> bool:
    return (config.vllm if config.engine == "vllm" else config.transformers).trust_remote_code


def _characters(prompt: Prompt) -> int:
    if isinstance(prompt.content, str):
        return len(prompt.content)
    return sum(len(message["content"]) for message in prompt.content)


GENERATION = 2**31 + 1
"""Noise of no training generation and no probe."""

NEW = 9
"""Tokens decoded for a measurement."""

QUARTER = 4
"""The second measurement has a quarter of the members: what a step costs whatever its rows, and what each row adds."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of this engine: a prompt token, a decode step and a row in it, perturbing, and an update."""

    prompt_token: float
    step: float
    row: float
    perturb: float
    """All of a generation's perturbing."""
    update: float


@dataclass(frozen=True, slots=True)
class Pace:
    """A run as it was: seconds per token read or written, and new tokens of a completion."""

    token: float
    new_tokens: float
    generations: int


def measure_engine(config: Config, task: Task, work: Workload) -> Speed:
    """Load the engine, let the population write a few tokens, update once, and let go of it.

    Attention over a long context is not in it: the tokens are the first of a completion.
    """
    with closing(engines.create(config)) as engine:
        engine.load()
        steps = min(NEW, config.max_completion_length) - 1
        few = _members(work, 1 if work.alone else -(-work.members // QUARTER))
        full = few if work.alone else _members(work, min(work.members, max(1, work.slots // work.prompts)))
        other = Member(GENERATION, work.members, 1)
        _answer(engine, config, task, ((other,), work.prompts))  # what compiles on first use does so here
        small = _answer(engine, config, task, (few, work.prompts))
        large = small if work.alone else _answer(engine, config, task, (full, work.prompts))
        update = [_moved(engine, config) for _ in range(2)][1]
    step, row = _line(*((t.decode / max(1, steps), len(m) * work.prompts) for t, m in ((small, few), (large, full))))
    return Speed(
        prompt_token=large.prefill / max(1, large.prompt_tokens),
        step=step,
        row=row,
        perturb=large.perturb * (work.members / len(full)),
        update=update,
    )


def _members(work: Workload, count: int) -> tuple[Member, ...]:
    return tuple(Member(GENERATION, pair // 2, -1 if pair % 2 else 1) for pair in range(count))


def _answer(engine: Engine, config: Config, task: Task, size: tuple[tuple[Member, ...], int]) -> EngineTimes:
    """The times of ``members`` that answer ``prompts`` prompts with a few tokens, stop tokens passed over."""
    members, prompts = size
    how = Sampling(min(NEW, config.max_completion_length), ignore_eos=True)
    engine.take_times()
    job = Job(0, config.sigma, members, tuple(prompt_of(config, e) for e in task.train[:prompts]), how)
    for _ in engine.evaluate([job]):
        pass
    return engine.take_times()


def _moved(engine: Engine, config: Config) -> float:
    """Seconds of an update of a generation's size; of no account, for the engine is let go."""
    pairs = max(populations(config)) // (2 if config.antithetic else 1)
    engine.apply(Update(GENERATION, tuple(Term(GENERATION, pair, 1e-12) for pair in range(pairs))))
    return engine.take_times().update


def _line(small: tuple[float, int], large: tuple[float, int]) -> tuple[float, float]:
    """Seconds of a step without rows, and of each row, from (seconds, rows) of two sizes; neither is negative."""
    (first, rows), (second, many) = small, large
    if many <= rows:
        return second, 0.0
    row = min(max(0.0, (second - first) / (many - rows)), second / many)
    return second - row * many, row


def pace_of(run: Path) -> Pace:
    """What a run took per token; RunError if it has no generation to measure."""
    config = recorded_config.run_config(run)
    rows = [row for row in directory.read_lines(directory.RunPaths(run).metrics) if "step_time" in row]
    tokens = sum(row["num_tokens"] for row in rows)
    if not rows or tokens == 0:
        raise RunError(f"{run} has no measured generation yet. Let it finish one, or leave --measured out.")
    lengths = [row["completions/mean_length"] for row in rows]
    return Pace(
        token=sum(row["step_time"] for row in rows) / tokens,
        new_tokens=min(sum(lengths) / len(lengths), float(config.max_completion_length)),
        generations=len(rows),
    )
