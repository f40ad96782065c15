"""What a generation has to compute: rollouts, prompt tokens, new tokens, rows in flight and decode steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seedtune.config.config import Config
from seedtune.engines.transformers import tokenization
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.engines.transformers.decoding.decoder import slots_for
from seedtune.errors import ConfigError, ModelError
from seedtune.rollouts.objectives import LIKELIHOODS
from seedtune.rollouts.prompts import prompt_of
from seedtune.strategies import populations
from seedtune.tasks.base import Task
from seedtune.types import Example, Prompt

COUNTED = 64
"""Training prompts that are tokenised to know their lengths."""

CHARACTERS = 4
"""Characters of a token, where there is no tokenizer to ask."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One generation of one process."""

    members: int
    """Members that answer, the centre included if it does."""
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
    if task.environment is not None or config.objective in LIKELIHOODS:
        raise ConfigError(
            f"task {task.name!r} with objective={config.objective} cannot be planned: only single completions can, not "
            "conversations or given answers. Train a generation and look at step_time in its metrics."
        )
    lengths, counted = _lengths(config, task.train[:COUNTED])
    members = -(-(max(populations(config)) + config.evaluate_centre) // devices)
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
