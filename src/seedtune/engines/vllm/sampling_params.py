"""What is asked of vLLM: the parameters of a completion, and of the log-probabilities of a given one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seedtune.engines.transformers.decoding.decoder import DecodeSequence
from seedtune.errors import EngineError
from seedtune.types import Sampling

KEY = "seedtune"
"""Where a request's parameters hold what is for `logits_processor`."""


def completion(row: DecodeSequence, how: Sampling, eos: frozenset[int]) -> dict[str, Any]:
    """The parameters of a completion; stop strings are looked for outside of vLLM, token by token."""
    told: dict[str, Any] = {
        "temperature": 0.0,
        "max_tokens": row.limit,
        "ignore_eos": True,  # vLLM's own end tokens; ours are all in the list
        "stop_token_ids": [] if how.ignore_eos else sorted(eos),
        "detokenize": False,
        "output_kind": _kind(bool(how.stop)),
    }
    if row.draws is not None:
        uniforms = [float(number) for number in row.draws]
        told["extra_args"] = {KEY: {"uniforms": uniforms, "temperature": how.temperature, "top_p": how.top_p}}
    return told


def forced(written: Sequence[int], *, read: bool) -> dict[str, Any]:
    """The parameters that give the log-probabilities of the tokens ``written`` after a prompt; ``read``: of that, too.

    A completion is read, all at once, but for its last token: so what just fits the model's context can be asked for.
    """
    return {
        "temperature": 0.0,
        "max_tokens": len(written),
        "ignore_eos": True,
        "detokenize": False,
        "prompt_logprobs": 0 if read else None,
        "logprobs": 0,
        "output_kind": _kind(False),
        "extra_args": {KEY: {"forced": list(written)}},
    }


def written_of(output: Any) -> Any:
    """What a request has written; EngineError if vLLM gave it up."""
    (new,) = output.outputs
    if new.finish_reason not in (None, "stop", "length"):
        raise EngineError(
            f"vLLM gave a completion up ({new.finish_reason}). The ledger has everything up to the last complete "
            "generation: seedtune resume goes on from there."
        )
    return new


def logprobs_of(output: Any, completion: Sequence[int]) -> list[float]:
    """The log-probability of every token of a completion, from what vLLM gives for `forced`."""
    written = written_of(output).logprobs
    read = len(completion) - len(written)
    listed = [*(output.prompt_logprobs or [])[-read:], *written] if read else written
    return [float(found[token].logprob) for found, token in zip(listed, completion, strict=True)]


def _kind(streamed: bool) -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY
