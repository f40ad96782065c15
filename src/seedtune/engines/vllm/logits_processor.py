"""A logits processor for vLLM: choose tokens by the draws that all members share, or force given tokens.

vLLM's own generators would depend on its version and on the batch.  Here a request carries its uniform numbers (or
the token it must write); the processor picks the token as the transformers engine does, and masks all others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from seedtune.engines.transformers.decoding import sampling
from seedtune.engines.vllm import compat
from seedtune.engines.vllm.sampling_params import KEY
from seedtune.types import Sampling

compat.pass_over_llvmlite()  # first import of this package by vLLM, here and in its workers
compat.count_ranks_plainly()
with compat.quiet():
    from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates


class Wanted(NamedTuple):
    """A request's sampling options or its forced tokens, and its tokens so far (vLLM appends to the list)."""

    forced: list[int]
    uniforms: list[float]
    rule: tuple[float, float]
    """(temperature, top_p)"""
    written: list[int]


class TokenProcessor(LogitsProcessor):
    """Leaves one token to every request that has its own choice of tokens."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, Wanted] = {}

    def is_argmax_invariant(self) -> bool:
        """Return False: it decides the token."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Update the rows for requests that were added, removed or moved."""
        process_dict_updates(self._rows, batch_update, _wanted)

    def apply(self, logits: Tensor) -> Tensor:
        """Return logits (requests, vocabulary) with −∞ for all but the chosen tokens."""
        by_rule: dict[tuple[float, float], list[int]] = {}
        left: dict[int, int] = {}
        for row, wanted in self._rows.items():
            if wanted.forced:
                left[row] = wanted.forced[len(wanted.written)]
            elif len(wanted.written) < len(wanted.uniforms):
                by_rule.setdefault(wanted.rule, []).append(row)
        for (temperature, top_p), rows in by_rule.items():
            points = [self._rows[row].uniforms[len(self._rows[row].written)] for row in rows]
            rule = Sampling(max_tokens=1, temperature=temperature, top_p=top_p)
            chosen = sampling.choose(logits[rows], rule, torch.tensor(points, device=logits.device))
            left |= zip(rows, chosen.tolist(), strict=True)
        if left:
            rows_left, tokens = torch.tensor([list(left), list(left.values())], device=logits.device)
            logits.index_fill_(0, rows_left, -torch.inf)[rows_left, tokens] = 0.0
        return logits


def _wanted(params: Any, _prompt: list[int] | None, written: list[int]) -> Wanted | None:
    extra = (params.extra_args or {}).get(KEY)
    if extra is None:
        return None
    rule = (extra.get("temperature", 0.0), extra.get("top_p", 1.0))
    return Wanted(extra.get("forced", []), extra.get("uniforms", []), rule, written)
