"""Likelihoods of reference completions: passes over prompts and completions of all members, without generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedtune.engines.transformers.decoding.prefix_packing import PrefixPack, packed
from seedtune.engines.transformers.decoding.slot_attention import Prefill, SlotAttention
from seedtune.engines.transformers.members.perturbation import Perturbation
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


ROWS = 256
"""Rows of the vocabulary converted to float32 at a time."""


class Forced:
    """Computes log p(token | preceding tokens) at temperature 1, for the members that the model holds now.

    The caller has set these members; ``tokens`` bounds the tokens computed in one pass.
    """

    def __init__(self, model: Any, *, attention: SlotAttention, perturbation: Perturbation, tokens: int) -> None:
        self.model, self.attention, self.perturbation, self.tokens = model, attention, perturbation, tokens

    @torch.no_grad()
    def of(self, sequences: Sequence[ForcedSequence]) -> Iterator[list[float]]:
        """Yield the completions' log-probabilities, one list per completion with one number per token.

        A shared prefix of consecutive prompts of a member is computed once.
        """
        while sequences:
            whole = [(one.member, [*one.prompt, *one.completion]) for one in sequences[: self.attention.cache.slots]]
            pack, count = packed(0, whole, tokens=self.tokens, padded=self.tokens)
            yield from self._pass(pack, sequences[:count])
            sequences = sequences[count:]

    def _pass(self, pack: PrefixPack, sequences: Sequence[ForcedSequence]) -> Iterator[list[float]]:
        spans = [path[len(one.prompt) - 1 : -1] for path, one in zip(pack.paths, sequences, strict=True)]
        keep, rows = np.unique(np.concatenate(spans).astype(np.int64), return_inverse=True)
        if not keep.size:
            yield from ([] for _ in sequences)
            return
        targets = np.concatenate([np.asarray(one.completion, np.int64) for one in sequences])
        found = iter(_chosen(self._logits(pack, keep), rows, targets))
        for one in sequences:
            yield [next(found) for _ in one.completion]

    def _logits(self, pack: PrefixPack, keep: np.ndarray) -> Tensor:
        """Return logits (kept tokens, vocabulary) of a pack."""
        device = self.model.device
        members = np.array(pack.members)
        self.perturbation.set_rows(members, members[keep])
        self.attention.current = Prefill.of(pack, device)
        output = self.model(
            input_ids=torch.tensor([pack.ids], device=device),
            position_ids=torch.tensor([pack.positions], device=device),
            past_key_values=self.attention.cache,
            use_cache=True,
            logits_to_keep=torch.from_numpy(keep).to(device),
        )
        logits: Tensor = output.logits[0]
        return logits


def _chosen(logits: Tensor, rows: np.ndarray, targets: np.ndarray) -> Iterator[float]:
    """Yield log softmax(logits[row])[target] for every row and target."""
    for first in range(0, rows.size, ROWS):
        its, target = (torch.from_numpy(x[first : first + ROWS]).to(logits.device) for x in (rows, targets))
        chances = logits[its].float().log_softmax(-1)
        yield from chances.gather(1, target[:, None])[:, 0].tolist()


def forced_sequences(job: Job, tokenizer: ModelTokenizer) -> list[ForcedSequence]:
    """Return every answer of every prompt, for every member of a job; DataError if one exceeds the context."""
    ids, answers = tokenizer.encode(job.prompts), [tokenizer.encode_answers(prompt) for prompt in job.prompts]
    tokenizer.check_answers(job.prompts, ids, [max(its, key=len) for its in answers])
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
    return [ForcedSequence(0, its, completion) for its, completion in zip(ids, completions, strict=True)]


def likelihood_of(job: Job, sequence: ForcedSequence, logprobs: list[float]) -> Likelihood:
    """Return the likelihood of a completion."""
    prompt, answer = sequence.place
    tokens, member = tuple(sequence.completion), job.members[sequence.member]
    return Likelihood(job.id, member, prompt, answer, tokens, tuple(logprobs), prompt_tokens=len(sequence.prompt))
