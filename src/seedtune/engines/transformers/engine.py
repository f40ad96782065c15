"""The transformers engine: loads a causal language model and evaluates the population in one batch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from seedtune.engines.base import EngineInfo, EngineTimes, Noise
from seedtune.engines.transformers import chat, sampling, support
from seedtune.engines.transformers.attention import Decode, Prefill, SlotAttention
from seedtune.engines.transformers.cache import SlotCache, empty_like_cache
from seedtune.engines.transformers.checkpoint import ModelSource, model_fingerprint, write_model
from seedtune.engines.transformers.decode import Budget, Decoder, Row, Stop, slots_for
from seedtune.engines.transformers.fuse import fuse
from seedtune.engines.transformers.packing import Pack
from seedtune.engines.transformers.population import Population, trace
from seedtune.engines.transformers.settings import TransformersSettings, torch_device, torch_dtype
from seedtune.errors import ModelError
from seedtune.types import Job, Rollout, Sampling, Update
from seedtune.weights import Centre


class TransformersEngine:
    """Any decoder-only causal language model, on the CPU or one CUDA device.

    ``model`` is a Hugging Face id, a local folder or a built-in name; ``noise`` says how it is perturbed.
    """

    def __init__(self, model: str, *, noise: Noise, settings: TransformersSettings) -> None:
        self.source = ModelSource.resolve(model, trust_remote_code=settings.trust_remote_code)
        self.noise, self.settings = noise, settings
        self.device = torch_device(settings)
        self._times = EngineTimes()
        self._stale = False

    def load(self, snapshot: Path | None = None) -> EngineInfo:
        """Read the checkpoint, put population layers in place and round the centre into the live weights."""
        model = self.source.load().eval()
        self.tokenizer = self.source.tokenizer()
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.eos = _end_tokens(model, self.tokenizer)
        base = model_fingerprint(model)
        self.dtype = torch_dtype(self.settings, model.dtype, self.device)
        self._install(model)
        if snapshot is not None:
            self.centre.restore(snapshot)
        self.population.to(self.device)
        self.fused = fuse(self.model, self.attention, dtype=self.dtype, device=self.device)
        coverage = self.population.coverage
        return EngineInfo(self.source.name, base, str(self.dtype).removeprefix("torch."), str(self.device), coverage)

    def _install(self, model: Any) -> None:
        self.attention = SlotAttention(SlotCache(2, 8))
        model.set_attn_implementation(self.attention.name)
        if model.config._attn_implementation != self.attention.name:
            raise ModelError(f"{type(model).__name__} does not support transformers' attention interface.")
        with support.observed(self.attention) as windows:
            calls = trace(model, lambda: self._probe(model))
        support.check(model, self.attention, windows)
        # The probe's cache has the checkpoint's precision and lies on the CPU.
        self.attention.cache = SlotCache(1, 1)
        self.population = Population(model, calls=calls, rows=(5, 2), dtype=self.dtype, device=self.device)
        self.model = _cast(model, self.dtype).to(self.device)
        self.population.freeze_head()
        noise = self.noise
        self.centre = Centre(self.population.tensors, run_seed=noise.run_seed, rank=noise.rank)

    @torch.no_grad()
    def _probe(self, model: Any) -> None:
        """One small packed pass: two prompts of three and two tokens, two head rows."""
        pack = Pack(0)
        pack.add(0, (0, 1, 2), [])
        pack.add(1, (3, 4), [])
        self.attention.current = Prefill.of(pack, model.device)
        model(
            input_ids=torch.tensor([pack.ids]),
            position_ids=torch.tensor([pack.positions]),
            past_key_values=self.attention.cache,
            use_cache=True,
            logits_to_keep=torch.tensor(pack.last()),
        )
        self.position_bytes = self.attention.cache.bytes_per_position()

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        """Every job's rollouts as they finish."""
        for job in jobs:
            yield from self._evaluate(job)

    def _evaluate(self, job: Job) -> Iterator[Rollout]:
        ids = [chat.encode(self.tokenizer, prompt) for prompt in job.prompts]
        limits = [min(job.sampling.max_tokens, p.max_tokens or job.sampling.max_tokens) for p in job.prompts]
        chat.check_lengths(job.prompts, ids, limits=limits, context=self.context)
        self._prepare(job)
        rows = _rows(job, ids, limits)
        longest = max(len(row.prompt_ids) + row.limit for row in rows)
        decoder = Decoder(
            self.model,
            attention=self._attention_for(len(rows), longest),
            population=self.population,
            budget=Budget(self._slots(len(rows), longest), self.settings.prefill_tokens),
            times=self._times,
        )
        for row in decoder.run(rows, job.sampling, self._stop(job.sampling)):
            yield self._rollout(job, row)

    def _prepare(self, job: Job) -> None:
        """The job's factors, and live weights that follow the centre."""
        started = time.perf_counter()
        if self._stale:
            self.population.refresh(self.device)
            self._stale = False
        self.population.set_members(job.members, sigma=job.sigma, centre=self.centre)
        self._times.perturb += time.perf_counter() - started

    def _slots(self, rows: int, longest: int) -> int:
        return slots_for(rows, longest, max_rows=self.settings.max_rows, max_tokens=self.settings.max_batch_tokens)

    def _attention_for(self, rows: int, longest: int) -> SlotAttention:
        self.attention.cache = empty_like_cache(self.attention.cache, self._slots(rows, longest), longest)
        return self.attention

    def _stop(self, how: Sampling) -> Stop:
        return Stop(frozenset() if how.ignore_eos else self.eos, how.stop, self._decode)

    def _decode(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _rollout(self, job: Job, row: Row) -> Rollout:
        text = self._decode(row.tokens)
        for stop in job.sampling.stop:
            text = text.split(stop, 1)[0]
        assert row.finish is not None
        return Rollout(
            job=job.id,
            member=job.members[row.member],
            prompt=row.prompt,
            sample=row.sample,
            text=text,
            token_ids=tuple(row.tokens),
            prompt_tokens=len(row.prompt_ids),
            finish=row.finish,
        )

    def apply(self, update: Update) -> None:
        """Move the centre; the live weights follow before the next evaluation."""
        started = time.perf_counter()
        self.centre.apply(update)
        self._stale = True
        self._times.update += time.perf_counter() - started

    def fingerprint(self) -> str:
        return self.centre.fingerprint()

    def snapshot(self, path: Path) -> None:
        self.centre.save(path)

    def export(self, path: Path, dtype: str | None = None) -> None:
        """A Hugging Face folder of the centre, in the checkpoint's precision or ``dtype``."""
        write_model(self.source, self.centre.tensors, path, dtype=dtype)

    def take_times(self) -> EngineTimes:
        taken, self._times = self._times, EngineTimes()
        return taken

    def close(self) -> None:
        """Drop the model and its cache."""
        self.attention.cache.layers.clear()


def _rows(job: Job, ids: list[list[int]], limits: list[int]) -> list[Row]:
    """One row per member, prompt and sample, members first."""
    how = job.sampling
    shared = {
        (p, s): sampling.draws(how, prompt.id, s) for p, prompt in enumerate(job.prompts) for s in range(how.samples)
    }
    return [
        Row(member, p, s, ids[p], limits[p], shared[p, s])
        for member in range(len(job.members))
        for p in range(len(job.prompts))
        for s in range(how.samples)
    ]


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """What the checkpoint stores, in ``dtype``; computed buffers (rotary frequencies) stay exact.

    Copied, because one tensor left in the memory-mapped checkpoint keeps all of the file resident.
    """
    stored, precision = model.state_dict(keep_vars=True), model.dtype
    for tensor in stored.values():
        tensor.data = tensor.data.to(dtype if tensor.dtype == precision else tensor.dtype, copy=True)
    return model


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that end a turn, from the generation config and the tokenizer."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None)


__all__ = ["Decode", "TransformersEngine"]
