"""The transformers engine: loads a causal language model and evaluates the population in one batch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from seedtune.config.config import Config
from seedtune.engines.base import BASE, EngineInfo, LocalEngine
from seedtune.engines.transformers import product_choice, product_speed, unsupported
from seedtune.engines.transformers.base_weights import BaseWeights
from seedtune.engines.transformers.checkpoint import ModelSource, write_model
from seedtune.engines.transformers.decoding.cache_size import free_on, position_bytes, size_for
from seedtune.engines.transformers.decoding.decoder import (
    Decoder,
    DecodeSequence,
    Stop,
    rollout_of,
    rows_of,
)
from seedtune.engines.transformers.decoding.likelihood import (
    ForcedSequence,
    forced_sequences,
    likelihood_of,
    only_member,
)
from seedtune.engines.transformers.decoding.prefix_packing import PrefixPack
from seedtune.engines.transformers.decoding.slot_attention import SlotAttention
from seedtune.engines.transformers.decoding.slot_cache import SlotCache, large_enough
from seedtune.engines.transformers.device import (
    dtype_name,
    dtype_named,
    home_of,
    memory_limits_named,
    torch_device,
    wait_for,
)
from seedtune.engines.transformers.fused.fuse import fuse
from seedtune.engines.transformers.members.flipout import Flipout
from seedtune.engines.transformers.members.gaussian import Gaussian
from seedtune.engines.transformers.members.linear_members import LinearMembers
from seedtune.engines.transformers.members.lowrank import LowRank
from seedtune.engines.transformers.members.population_linear import ProductForm
from seedtune.engines.transformers.members.weight_format import WeightFormat, weights_dtype
from seedtune.engines.transformers.tokenization import ModelTokenizer
from seedtune.engines.transformers.tracing import trace, weight_of
from seedtune.errors import ConfigError, ModelError
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Job, Likelihood, Prompt, Rollout, Shift, Update

Asked = TypeVar("Asked", DecodeSequence, ForcedSequence)
"""A request to a member: generate a completion, or compute the likelihood of a given one."""


KINDS: dict[str, type[Gaussian | LinearMembers]] = {"gaussian": Gaussian, "lowrank": LowRank, "flipout": Flipout}
"""Members by the name of their perturbation."""


class TransformersEngine(LocalEngine):
    """Any decoder-only causal language model, on the CPU or one CUDA device.

    ``noise`` describes the perturbation.
    """

    def __init__(self, config: Config, *, noise: Noise) -> None:
        super().__init__()
        self.source = ModelSource.of(config)
        self.tokenizer = ModelTokenizer(self.source)
        self.config, self.noise, self.settings = config, noise, config.transformers
        self.device = torch_device(self.settings)
        self._stale = self._loaded = False

    def load(self, snapshot: Path | None = None) -> EngineInfo:
        """Read the checkpoint, install population layers and round the current weights into the live weights."""
        self.close()
        model = self.source.load().eval()
        self.eos = self.tokenizer.end_tokens(model)
        self.anchor = BaseWeights(self.source, model, home_of(self.device))
        self.dtype = dtype_named(self.config.dtype, model.dtype, self.device.type)
        self.arithmetic = product_choice.resolve(self.config.products, self.dtype, self.device)
        self._install(model)
        if self.device.type != "cpu":
            self.arithmetic = replace(self.arithmetic, sizes=self.size.to_json())
        if snapshot is not None:
            self.weights.restore(snapshot)
        self.perturbation.install(self.model)
        self.fused = fuse(self.model, self.attention, dtype=self.dtype, device=self.device)
        self._stale, self._loaded = False, True
        self._shift: Shift | Update | None = None
        return EngineInfo(
            self.source.name,
            self.anchor.fingerprint,
            dtype_name(self.dtype),
            str(self.device),
            self.perturbation.coverage,
            dtype_name(weights_dtype(self.noise, self.dtype)),
            self.arithmetic.to_json(),
            self._products(),
            self.tokenizer.fingerprint,
        )

    def _install(self, model: Any) -> None:
        self.attention = SlotAttention(SlotCache(2, 8, compiled=False))
        model.set_attn_implementation(self.attention.name)
        if model.config._attn_implementation != self.attention.name:
            raise ModelError(f"{type(model).__name__} does not support transformers' attention interface.")
        with unsupported.checked(model, self.attention):
            seen = trace(model, lambda: self._probe(model), tokens=5, heads=2)
        self._shapes = seen.shapes(model)
        position = position_bytes(self.attention.cache, self.dtype)
        vocabulary = len(weight_of(model.get_output_embeddings()))
        # The probe's cache is on the CPU, in the checkpoint's precision.
        self.attention.cache = SlotCache(1, 1)
        current = weights_dtype(self.noise, self.dtype)
        place = WeightFormat(self.dtype, self.device, self._form(), current, self._weights_folder())
        kind = KINDS[self.noise.perturbation]
        self.perturbation = kind(model, seen, noise=self.noise, anchor=self.anchor, place=place)
        self.weights = self.perturbation.weights
        self.model = _cast(model, self.dtype).to(self.device)
        self.size = size_for(self.settings, free_on(self.device, position=position, vocabulary=vocabulary))
        self.prefill_tokens = self.size.prefill_tokens

    def _weights_folder(self) -> Path | None:
        """Return the folder in which the current weights are memory-mapped, if they are."""
        name = self.settings.weights_folder
        if name is None:
            return None
        folder = Path(name)
        if self.device.type != "cpu":
            raise ConfigError(f"transformers.weights_folder={name!r} is for the CPU, but the device is {self.device}.")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"transformers.weights_folder={name!r} is a file. Give a folder.")
        return folder

    def _form(self) -> ProductForm:
        """Return how live weights are multiplied; packed copies are made unless memory must be saved."""
        return ProductForm(self.arithmetic.kind, self.device.type == "cpu" and self.noise.weights_dtype == "float32")

    def _products(self) -> str:
        """Describe the matrix products for display, and on a CPU their speed."""
        line, speed = self.arithmetic.line(), None
        if self.device.type == "cpu" and self._shapes:
            speed = product_speed.measured(self._form(), self._shapes, self.dtype)
        return line if speed is None else f"{line}, {speed:,.0f} GFLOP/s at {product_speed.ROWS[-1]} rows"

    @torch.no_grad()
    def _probe(self, model: Any) -> None:
        """Run one small packed pass: two prompts of three and two tokens, two head rows."""
        pack = PrefixPack(0)
        pack.add(0, (0, 1, 2), [])
        pack.add(1, (3, 4), [])
        self.attention.prefill(model, pack, np.array(pack.last()))

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        """Yield every job's rollouts as they finish; EngineError if the device's memory is too small."""
        for job in jobs:
            rows, stop = rows_of(job, self.tokenizer), Stop.of(job.sampling, self.eos, self.tokenizer)
            yield from (rollout_of(job, row, stop) for row in rows if row.finish is not None)
            for batch, mine in self._batches(job, [row for row in rows if row.finish is None]):
                with memory_limits_named(self.device, **self.size.to_json()):
                    self._set_members(job, batch)
                    yield from self._answer(job, mine, stop)

    def _batches(self, job: Job, rows: Sequence[Asked]) -> Iterator[tuple[range, list[Asked]]]:
        """Yield the members that share a batch, with their requests; members without requests are left out."""
        size = max(1, len(job.members)) if self.perturbation.together else 1
        for batch in (range(first, first + size) for first in range(0, len(job.members), size)):
            mine = [row for row in rows if row.member in batch]
            if mine:
                yield batch, mine

    def likelihoods(self, jobs: Iterable[Job]) -> Iterator[Likelihood]:
        """Yield every job's likelihoods, all members of a batch in the same passes; EngineError as in `evaluate`."""
        for job in jobs:
            for batch, mine in self._batches(job, forced_sequences(job, self.tokenizer)):
                with memory_limits_named(self.device, **self.size.to_json()):
                    self._set_members(job, batch)
                    found = self._forced(mine)
                yield from map(likelihood_of, repeat(job), mine, found)

    def _forced(self, given: Sequence[ForcedSequence]) -> list[list[float]]:
        """Return log-probabilities of completions by the members that the model holds."""
        started = self._now()
        lengths = [len(sequence.prompt) + len(sequence.completion) for sequence in given]
        found = list(self._decoder(len(given), max(lengths, default=1)).logprobs(given))
        self._times.prefill += self._now() - started
        self._times.prompt_tokens += sum(lengths)
        return found

    def _answer(self, job: Job, rows: list[DecodeSequence], stop: Stop) -> Iterator[Rollout]:
        """Yield the rollouts of members that share a batch, as they finish."""
        sampling, longest = job.sampling, max(len(row.prompt_ids) + row.limit for row in rows)
        for row in self._decoder(len(rows), longest).run(rows, sampling, stop):
            yield rollout_of(job, row, stop)

    def _set_members(self, job: Job, batch: range) -> None:
        """Set the live weights, or the factors beside them, to a batch of members."""
        started = self._now()
        self._apply_shift(job.shift)
        self.perturbation.set_members(job.members, batch, sigma=job.sigma)
        self._times.perturb += self._now() - started

    def _apply_shift(self, where: Shift | Update | None) -> None:
        """Set the live weights to the current ones, or to the current ones moved by a shift or an update."""
        if self._stale or where != self._shift:
            self._stale = True
            self.perturbation.sync(self.weights.step(where))
            self._shift, self._stale = where, False

    def _decoder(self, rows: int, longest: int) -> Decoder:
        """Return a decoder for that many sequences of up to ``longest`` tokens, with a cache that is large enough."""
        slots = self.size.slots(rows, longest)
        self.attention.cache = large_enough(self.attention.cache, slots, longest)
        return Decoder(self.model, self.attention, self.perturbation, slots, longest, self.prefill_tokens, self._times)

    def _now(self) -> float:
        wait_for(self.device)
        return time.perf_counter()

    def apply(self, *updates: Update) -> None:
        """Update the current weights; the live weights follow before the next evaluation."""
        super().apply(*updates)
        self._stale = True

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], *, base: bool = False
    ) -> list[list[float]]:
        """See `Engine`; for ``base`` the live weights are θ₀ until the next call.  EngineError as in `evaluate`."""
        sequences = only_member(prompts, completions, self.tokenizer)
        with memory_limits_named(self.device, **self.size.to_json()):
            self._apply_shift(BASE if base else None)
            self.perturbation.set_members((UNPERTURBED,), [0], sigma=0.0)
            return self._forced(sequences)

    def export(self, path: Path, dtype: str | None = None) -> None:
        """Write a Hugging Face folder of the current model, in the checkpoint's precision or ``dtype``."""
        write_model(self.source, self.weights.tensors, path, dtype=dtype)

    def close(self) -> None:
        """Release the model and its cache, and unregister from transformers."""
        if self._loaded:
            self.attention.close()
            del self.model, self.perturbation, self.weights
            self._loaded = False


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """Cast the checkpoint's parameters to ``dtype``; computed buffers (rotary frequencies) stay exact."""
    stored, precision = model.state_dict(keep_vars=True), model.dtype
    for tensor in stored.values():
        tensor.data = tensor.data.to(dtype if tensor.dtype == precision else tensor.dtype)
    return model
