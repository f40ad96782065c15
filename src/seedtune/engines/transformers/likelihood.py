"""How likely given completions are: one pass over prompts and completions, without generating."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedtune.engines.transformers.attention import Prefill, SlotAttention
from seedtune.engines.transformers.packing import Pack, packed
from seedtune.engines.transformers.perturbation import Perturbation

Pair = tuple[Sequence[int], Sequence[int]]
"""The token ids of a prompt and of a completion."""

ROWS = 256
"""Rows of the vocabulary that are float32 at a time."""


class Likelihood:
    """log p(token | what stands before it), temperature 1, by the weights that the model holds now.

    The caller has made the centre the only member; ``tokens`` bounds what one pass computes.
    """

    def __init__(self, model: Any, *, attention: SlotAttention, perturbation: Perturbation, tokens: int) -> None:
        self.model, self.attention, self.perturbation, self.tokens = model, attention, perturbation, tokens

    @torch.no_grad()
    def of(self, pairs: Sequence[Pair]) -> Iterator[list[float]]:
        """The completions' log-probabilities, a list per pair and a number per token."""
        while pairs:
            whole = [(0, [*prompt, *completion]) for prompt, completion in pairs[: self.attention.cache.slots]]
            pack, count = packed(0, whole, tokens=self.tokens, padded=self.tokens)
            yield from self._pass(pack, pairs[:count])
            pairs = pairs[count:]

    def _pass(self, pack: Pack, pairs: Sequence[Pair]) -> Iterator[list[float]]:
        spans = [path[len(prompt) - 1 : -1] for path, (prompt, _) in zip(pack.paths, pairs, strict=True)]
        keep, rows = np.unique(np.concatenate(spans).astype(np.int64), return_inverse=True)
        if not keep.size:
            yield from ([] for _ in pairs)
            return
        targets = np.concatenate([np.asarray(completion, np.int64) for _, completion in pairs])
        found = iter(_chosen(self._logits(pack, keep), rows, targets))
        for _, completion in pairs:
            yield [next(found) for _ in completion]

    def _logits(self, pack: Pack, keep: np.ndarray) -> Tensor:
        """Logits (kept tokens, vocabulary) of a pack."""
        device = self.model.device
        self.perturbation.set_rows(np.array(pack.members), np.zeros(keep.size, np.int64))
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
    """Of every row and target: log softmax(logits[row])[target]."""
    for first in range(0, rows.size, ROWS):
        its, target = (torch.from_numpy(x[first : first + ROWS]).to(logits.device) for x in (rows, targets))
        chances = logits[its].float().log_softmax(-1)
        yield from chances.gather(1, target[:, None])[:, 0].tolist()
