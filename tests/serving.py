"""Tiny models that vLLM's CPU build can run (heads of 32), and engines of them that tests lend each other."""

from __future__ import annotations

import atexit
import gc
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import transformers as hf

from models import BOS, EOS, PAD, VOCABULARY, save_model
from seedtune.config.config import Config
from seedtune.engines.base import EngineInfo
from seedtune.engines.vllm import compat
from seedtune.engines.vllm.engine import VllmEngine
from seedtune.engines.vllm.engine_core import EngineCore
from seedtune.numerics.noise import Noise


def start(arguments: Mapping[str, Any], start: Callable[[Mapping[str, Any]], Any] = compat.start) -> Any:
    """Start vLLM without a process for every architecture that only imports vLLM once more, to look at its class.

    Nor does a start look through all that vLLM imports: for garbage, and for kernels that the first start replaced.
    """
    with compat.quiet():
        from vllm.model_executor.models import registry
        from vllm.platforms import current_platform

    registry._run_in_subprocess = lambda look: look()
    current_platform.register_triton_kernel_overrides = cache(current_platform.register_triton_kernel_overrides)
    gc.freeze()
    return start(arguments)


compat.start = start

SMALL = {"kv_cache_memory_bytes": 32 << 20, "max_num_seqs": 64, "max_num_batched_tokens": 512, "block_size": 32}
"""Little memory; and blocks short enough that short prompts share them."""

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


def longrope(original: int) -> Any:
    """A configuration whose rotary angles are others beyond ``original`` tokens."""
    factors = {"short_factor": [1.0] * 16, "long_factor": [8.0 + i for i in range(16)], "factor": 64 / original}
    rope = {"rope_type": "longrope", **factors, "original_max_position_embeddings": original}
    return hf.LlamaConfig(**_SMALL, head_dim=32, rope_scaling=rope)


SERVED: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**_SMALL, head_dim=32, tie_word_embeddings=True),
    "llama-untied": lambda: hf.LlamaConfig(**_SMALL, head_dim=32, tie_word_embeddings=False),
    "llama-one-head": lambda: hf.LlamaConfig(
        **{**_SMALL, "num_key_value_heads": 1}, head_dim=32, attention_bias=True, tie_word_embeddings=True
    ),
    "qwen2": lambda: hf.Qwen2Config(**{**_SMALL, "num_attention_heads": 2}, tie_word_embeddings=True),
    "qwen2-untied": lambda: hf.Qwen2Config(**{**_SMALL, "num_attention_heads": 2}, tie_word_embeddings=False),
    "qwen3": lambda: hf.Qwen3Config(**_SMALL, head_dim=32, tie_word_embeddings=True),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **_SMALL,
        head_dim=32,
        sliding_window=32,
        query_pre_attn_scalar=32,
        tie_word_embeddings=True,
        layer_types=["sliding_attention", "full_attention"],
    ),
}
"""Family → configuration: two layers; two heads of keys and values, or one, that two ranks must both have."""


class Lent(VllmEngine):
    """Starting vLLM takes seconds: one that is closed, or forgotten, lends its running vLLM to the next one like it.

    ``load`` gives that new weights, and is what is tested; ``test_vllm_process`` starts and ends vLLM.
    """

    spare: ClassVar[dict[str, list[EngineCore]]] = {}
    started: ClassVar[list[EngineCore]] = []

    @property
    def _kind(self) -> str:
        return repr((self.source, self.noise, self.settings, self.config.dtype))

    def load(self, snapshot: Path | None = None) -> EngineInfo:
        if self._engine_core is None and self.spare.get(self._kind):
            self._engine_core = self.spare[self._kind].pop()
        info = super().load(snapshot)
        if self._core not in self.started:
            self.started.append(self._core)
        return info

    def close(self) -> None:
        if self._engine_core is not None and not self._engine_core.failed:
            self.spare.setdefault(self._kind, []).append(self._engine_core)
            self._engine_core = None
        super().close()

    def __del__(self) -> None:
        self.close()


def end_all() -> None:
    """End every vLLM that was started here, in use or not, and collect once what each of them would collect."""
    Lent.spare.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *_: 0)
        while Lent.started:
            Lent.started.pop().close()
    gc.collect()


def serve(folder: Path, noise: Mapping[str, Any] = {}, *, dtype: str = "auto", **settings: Any) -> VllmEngine:
    """An engine of that model, float32, loaded."""
    engine = Lent(Config(model=str(folder), dtype=dtype, vllm={**SMALL, **settings}), noise=Noise(7, **noise))
    engine.load()
    return engine


def save_served(family: str, folder: Path, **options: Any) -> Path:
    return save_model(SERVED[family](), folder, **options)


@cache
def _protocol_model() -> Path:
    """A model for as long as the tests run."""
    kept = tempfile.TemporaryDirectory(prefix="seedtune-protocol-")
    atexit.register(kept.cleanup)
    return save_served("qwen2", Path(kept.name))


def maker(**noise: Any) -> Callable[[], VllmEngine]:
    """Makes engines of one model, not yet loaded."""
    return lambda: Lent(Config(model=str(_protocol_model()), vllm=SMALL), noise=Noise(7, **noise))
