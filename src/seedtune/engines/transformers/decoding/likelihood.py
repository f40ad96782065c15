"""Likelihoods of given completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seedtune.engines.transformers.tokenization import ModelTokenizer
from seedtune.types import Job, Likelihood, Prompt


@dataclass(frozen=True, slots=True)
class ForcedSequence:
    """The token ids of a prompt and its completion, and the position of the member to evaluate.

    ``place``: positions of the prompt and of the answer.
    """

    member: int
    prompt: Sequence[int]
    completion: Sequence[int]
    place: tuple[int, int] = (0, 0)


def forced_sequences(job: Job, tokenizer: ModelTokenizer) -> list[ForcedSequence]:
    """Return every answer of every prompt, for every member of a job; DataError if one exceeds the context."""
    ids, answers = tokenizer.encode(job.prompts), [tokenizer.encode_answers(prompt) for prompt in job.prompts]
    tokenizer.check_answers(job.prompts, ids, [max(encoded, key=len) for encoded in answers])
    return [
        ForcedSequence(member, ids[p], answer, (p, number))
        for member, p in job.pairs
        for number, answer in enumerate(answers[p])
    ]


def only_member(
    prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], tokenizer: ModelTokenizer
) -> list[ForcedSequence]:
    """Return one completion per prompt, for a single member; DataError if one exceeds the context."""
    ids = tokenizer.encode(prompts)
    tokenizer.check_answers(prompts, ids, completions)
    return [ForcedSequence(0, prompt, completion) for prompt, completion in zip(ids, completions, strict=True)]


def likelihood_of(job: Job, sequence: ForcedSequence, logprobs: list[float]) -> Likelihood:
    """Return the likelihood of a completion."""
    prompt, answer = sequence.place
    tokens, member = tuple(sequence.completion), job.members[sequence.member]
    return Likelihood(job.id, member, prompt, answer, tokens, tuple(logprobs), prompt_tokens=len(sequence.prompt))
