"""vLLM sampling parameters: for a completion, and for the log-probabilities of a given completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seedtune.engines.transformers.decoding.decoder import DecodeSequence
from seedtune.engines.transformers.decoding.likelihood import ForcedSequence
from seedtune.errors import EngineError
from seedtune.types import Sampling

KEY = "seedtune"
"""The key of a request's parameters for `logits_processor`."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request to vLLM: the prompt's token ids, sampling parameters, and the member's adapter if it has one."""

    ids: Sequence[int]
    params: Mapping[str, Any]
    lora: Any = None


def completion(row: DecodeSequence, sampling: Sampling, *, ends: frozenset[int], lora: Any) -> GenerationRequest:
    """Return the request for a completion; stop strings are searched outside of vLLM, token by token."""
    params: dict[str, Any] = {
        "temperature": 0.0,
        "max_tokens": row.limit,
        "ignore_eos": True,  # ignores vLLM's own end tokens; all of ours are in the list
        "stop_token_ids": sorted(ends),
        "detokenize": False,
        "output_kind": _kind(bool(sampling.stop)),
    }
    if row.draws is not None:
        uniforms = [float(number) for number in row.draws]
        params["extra_args"] = {
            KEY: {"uniforms": uniforms, "temperature": sampling.temperature, "top_p": sampling.top_p}
        }
    return GenerationRequest(row.prompt_ids, params, lora)


def forced(sequence: ForcedSequence, *, by_steps: bool, lora: Any) -> GenerationRequest:
    """Return the request for the log-probabilities of a completion that is not empty.

    It is read in one pass except for its last token, so a sequence that just fits the context is possible; or
    ``by_steps``, token by token.
    """
    read, written = ((), sequence.completion) if by_steps else (sequence.completion[:-1], sequence.completion[-1:])
    params = {
        "temperature": 0.0,
        "max_tokens": len(written),
        "ignore_eos": True,
        "detokenize": False,
        "prompt_logprobs": 0 if read else None,
        "logprobs": 0,
        "output_kind": _kind(False),
        "extra_args": {KEY: {"forced": list(written)}},
    }
    return GenerationRequest([*sequence.prompt, *read], params, lora)


def written_of(output: Any) -> Any:
    """Return a request's output tokens; EngineError if vLLM aborted it."""
    (new,) = output.outputs
    if new.finish_reason not in (None, "stop", "length"):
        raise EngineError(
            f"vLLM gave a completion up ({new.finish_reason}). The ledger has everything up to the last complete "
            "generation: seedtune resume goes on from there."
        )
    return new


def logprobs_of(output: Any, completion: Sequence[int]) -> list[float]:
    """Return the log-probability of every token of a completion, from vLLM's output for `forced`."""
    written = written_of(output).logprobs
    read = len(completion) - len(written)
    listed = [*(output.prompt_logprobs or [])[-read:], *written] if read else written
    return [float(found[token].logprob) for found, token in zip(listed, completion, strict=True)]


def _kind(streamed: bool) -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY
