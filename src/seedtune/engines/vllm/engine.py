"""The vLLM engine: evaluates the population by continuous batching, on any number of ranks."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import chain, count, groupby
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from seedtune.config.config import Config
from seedtune.engines.base import BASE, Engine, EngineInfo, EngineTimes
from seedtune.engines.transformers.checkpoint import ModelSource, write_model
from seedtune.engines.transformers.decoding.decoder import DecodeSequence, Stop, rollout_of, rows_of
from seedtune.engines.transformers.decoding.likelihood import (
    ForcedSequence,
    forced_sequences,
    likelihood_of,
    only_member,
)
from seedtune.engines.transformers.device import dtype_named
from seedtune.engines.transformers.members.weight_format import weights_dtype
from seedtune.engines.transformers.tokenization import ModelTokenizer
from seedtune.engines.vllm import compat, engine_args, lora, sampling_params
from seedtune.engines.vllm.base_model import BaseModelInfo
from seedtune.engines.vllm.engine_core import EngineCore
from seedtune.engines.vllm.sampling_params import GenerationRequest
from seedtune.engines.vllm.tensor_layout import check_complete
from seedtune.engines.vllm.worker_state import WorkerSettings
from seedtune.errors import SeedtuneError, StorageError
from seedtune.numerics import fingerprint as fp
from seedtune.numerics import tensor_file
from seedtune.numerics.noise import Noise
from seedtune.numerics.weights import FILE
from seedtune.types import UNPERTURBED, Job, Likelihood, Member, Prompt, Rollout, Shift, Term, Update

NUMBERS = 1 << 16
"""Adapters whose numbers are kept; an adapter dropped from this cache is created again under a new number."""

Asked = TypeVar("Asked", DecodeSequence, ForcedSequence)


class JobSequence(NamedTuple, Generic[Asked]):
    """A sequence, and the job that asks for it."""

    job: Job
    sequence: Asked


class VllmEngine(Engine):
    """A decoder-only model in vLLM.  ``model`` is a Hugging Face id, a local folder or a built-in name.

    ``gaussian`` and ``flipout``: each member in turn is written over the live weights, and answers all prompts of its
    job in one batch.  ``lowrank``: members are LoRA adapters, and all members of all jobs answer in one continuous
    batch.
    """

    def __init__(self, config: Config, *, noise: Noise) -> None:
        compat.require()
        engine_args.check(config.vllm)
        self.source = ModelSource.of(config)
        self.tokenizer = ModelTokenizer(self.source, limit=config.vllm.option("max_model_len"))
        self.config, self.noise, self.settings = config, noise, config.vllm
        self._times = EngineTimes()
        self._engine_core: EngineCore | None = None
        self._base_model: BaseModelInfo | None = None
        numbers = count(1)
        self._number = lru_cache(NUMBERS)(lambda _name: next(numbers))  # never reused: vLLM may hold an older adapter
        self._current = False
        self._scratch = ExitStack()

    # ------------------------------------------------------------------------------------------ loading

    def load(self, snapshot: Path | None = None) -> EngineInfo:
        """Read the checkpoint, start vLLM unless it runs, and give every rank its part of the current weights."""
        try:
            return self._load(snapshot)
        except StorageError:  # another snapshot may load, and starting vLLM takes long
            self._scratch.close()
            raise
        except SeedtuneError:
            self.close()
            raise

    def _load(self, snapshot: Path | None) -> EngineInfo:
        if self._engine_core is not None and self._engine_core.failed:
            self.close()
        self._scratch.close()
        engine_args.check_length(self.settings, self.tokenizer.angles_limit)
        base_model = BaseModelInfo.read(self.source, self.noise, tokenizer=self.tokenizer, scratch=self._make_scratch)
        self._base_model = base_model
        self.device = "cpu" if compat.on_cpu() else "cuda"
        self.dtype = dtype_named(self.config.dtype, base_model.dtype, self.device)
        self._weights_dtype = weights_dtype(self.noise, self.dtype)
        dtype = _name(self.dtype)
        if self._engine_core is None:
            engine_args.check_divides(self.source.config().get_text_config(), self.settings.tensor_parallel_size)
            given = engine_args.arguments(self.settings, self.noise, base_model, source=self.source, dtype=dtype)
            angles = {} if self.tokenizer.angles_limit is None else {"max_model_len": self.tokenizer.context_length}
            self._engine_core = EngineCore(given | angles)
        self.tokenizer.limit = self._core.context
        self._core.abort_all()
        self._make_states(base_model)
        if snapshot is not None:
            self._call("restore", tensor_file.expect(snapshot / FILE, self._kinds()))
        self._core.forget_prefixes()
        names = self.source.name, base_model.fingerprint, dtype, self.device
        arithmetic, products = self._arithmetic()
        last = arithmetic, products, self.tokenizer.fingerprint
        return EngineInfo(*names, base_model.coverage, _name(self._weights_dtype), *last)

    def _arithmetic(self) -> tuple[dict[str, Any], str]:
        """Return the arithmetic for the ledger, and for display."""
        library = compat.library() | {"tensor_parallel_size": self.settings.tensor_parallel_size}
        entry = {"products": "library", "attention": "library", "device": compat.device_name(), "library": library}
        return entry, f"library (vLLM {library['version']}, on {entry['device']})"

    def _make_states(self, base_model: BaseModelInfo) -> None:
        settings = WorkerSettings(self.noise, self.dtype, self._weights_dtype, self.settings.weights_memory == "host")
        held = Counter[str]()
        for rank in self._call("make_state", base_model, settings):
            held.update(rank)
        check_complete(held, base_model.shapes)

    def _kinds(self) -> tensor_file.Kinds:
        """Return the element type and shape of every tensor of the current weights."""
        dtype = _name(self._weights_dtype)
        return {name: tensor_file.Kind(dtype, shape) for name, shape in self._loaded.shapes.items()}

    def _call(self, command: str, *arguments: Any) -> list[Any]:
        return self._core.call(command, *arguments)

    @property
    def _core(self) -> EngineCore:
        assert self._engine_core is not None, "load comes first"
        return self._engine_core

    @property
    def _loaded(self) -> BaseModelInfo:
        assert self._base_model is not None, "load comes first"
        return self._base_model

    # ------------------------------------------------------------------------------------------ members

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        """Yield every job's rollouts as they finish."""
        self._current = False  # an earlier call leaves no cached state: a job's results do not depend on it
        for wave in self._waves(jobs, rows_of):
            yield from (rollout_of(job, row, self._stop(job)) for job, row in wave if row.finish is not None)
            listed = [request for request in wave if request.sequence.finish is None]
            if listed:
                self._set_live_weights(*listed[0])
                yield from self._answers(listed)

    def _waves(
        self, jobs: Iterable[Job], asked: Callable[[Job, ModelTokenizer], list[Asked]]
    ) -> Iterator[list[JobSequence[Asked]]]:
        """Yield groups of requests that fit in one batch: one member's, or all members' with the same shift."""
        if self.noise.perturbation != "lowrank":
            for job in jobs:
                for _, mine in groupby(sorted(asked(job, self.tokenizer), key=_member), key=_member):
                    yield [JobSequence(job, sequence) for sequence in mine]
            return
        for _, same in groupby(jobs, lambda job: job.shift):
            wave = [JobSequence(job, sequence) for job in same for sequence in asked(job, self.tokenizer)]
            self._draw({job.members[sequence.member] for job, sequence in wave})
            yield wave

    def _draw(self, members: Iterable[Member]) -> None:
        """Draw the factors of a wave's adapters."""
        started = time.perf_counter()
        self._call("lora.draw", sorted({(member.generation, member.pair) for member in members if member.sign}))
        self._times.perturb += time.perf_counter() - started

    def _set_live_weights(self, job: Job, sequence: DecodeSequence | ForcedSequence) -> None:
        """Set the live weights to a wave's only member, or to the unperturbed model, to which adapters are added."""
        started = time.perf_counter()
        member = job.members[sequence.member] if self.noise.perturbation != "lowrank" else UNPERTURBED
        self._set_member(member, job.sigma, job.shift)
        self._times.perturb += time.perf_counter() - started

    def _set_member(self, member: Member, sigma: float, shift: Shift | Update | None) -> None:
        """Write a member that is perturbed from where ``shift`` leads, unless the live weights hold it already.

        Abandoned requests are aborted first; after an interruption on the way the next call writes the member anew.
        """
        self._core.abort_all()
        current, self._current = self._current, False
        if any(self._call("set_member", member, sigma, shift)) or not current:
            self._core.forget_prefixes()
        self._current = True

    def _lora(self, member: Member, sigma: float) -> Any:
        """Return a member's adapter; None if members are live weights."""
        if self.noise.perturbation != "lowrank" or (member.sign == 0 and not compat.unperturbed_needs_lora()):
            return None
        name = lora.name_of(member, sigma if member.sign else 0.0)
        return compat.lora_request(self._number(name), name)

    def _answers(self, listed: Sequence[JobSequence[DecodeSequence]]) -> Iterator[Rollout]:
        """Yield the rollouts of rows that are all in flight together, as they finish."""
        started = time.perf_counter()
        requests = {index: self._completion(job, row) for index, (job, row) in enumerate(listed)}
        for index, output in self._core.outputs(requests):
            job, row = listed[index]
            if not self._take(output, job, row):
                continue
            if not output.finished:
                self._core.abort(output.request_id)
            self._times.decode += time.perf_counter() - started
            self._times.generated_tokens += len(row.tokens)
            self._times.prompt_tokens += len(row.prompt_ids)
            yield rollout_of(job, row, self._stop(job))
            started = time.perf_counter()

    def _completion(self, job: Job, row: DecodeSequence) -> GenerationRequest:
        adapter = self._lora(job.members[row.member], job.sigma)
        return sampling_params.completion(row, job.sampling, ends=self._stop(job).token_ids, lora=adapter)

    def _stop(self, job: Job) -> Stop:
        return Stop.of(job.sampling, self._loaded.eos, self.tokenizer)

    def _take(self, output: Any, job: Job, row: DecodeSequence) -> bool:
        """Add a request's new tokens to its row; return whether the row ended.  EngineError if vLLM aborted it."""
        new = sampling_params.written_of(output)
        if not job.sampling.stop:
            row.tokens, row.finish = list(new.token_ids), new.finish_reason
            return True
        stop = self._stop(job)
        for token in new.token_ids:
            row.tokens.append(token)
            row.finish = stop.reached(row)
            if row.finish is not None:
                return True
        return False

    # ------------------------------------------------------------------------------------------ reference answers

    def likelihoods(self, jobs: Iterable[Job]) -> Iterator[Likelihood]:
        """Yield every job's likelihoods as they finish."""
        self._current = False
        for wave in self._waves(jobs, forced_sequences):
            if wave:
                self._set_live_weights(*wave[0])
                adapters = [self._lora(job.members[sequence.member], job.sigma) for job, sequence in wave]
                for index, logprobs in self._forced([sequence for _, sequence in wave], adapters):
                    yield likelihood_of(*wave[index], logprobs)

    def _forced(
        self, sequences: Sequence[ForcedSequence], adapters: Sequence[Any]
    ) -> Iterator[tuple[int, list[float]]]:
        """Yield (index, log-probabilities of the completion) of every sequence under its adapter, as they finish."""
        started, by_steps = time.perf_counter(), self._loaded.lora_head
        yield from ((index, []) for index, sequence in enumerate(sequences) if not sequence.completion)
        requests = {
            index: sampling_params.forced(sequence, by_steps=by_steps, lora=lora)
            for index, (sequence, lora) in enumerate(zip(sequences, adapters, strict=True))
            if sequence.completion
        }
        for index, output in self._core.outputs(requests):
            sequence = sequences[index]
            self._times.prefill += time.perf_counter() - started
            self._times.prompt_tokens += len(sequence.prompt) + len(sequence.completion)
            yield index, sampling_params.logprobs_of(output, sequence.completion)
            started = time.perf_counter()

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], *, base: bool = False
    ) -> list[list[float]]:
        """See `Engine`; for ``base`` the live weights are θ₀ until the next call."""
        sequences = only_member(prompts, completions, self.tokenizer)
        self._set_member(UNPERTURBED, 0.0, BASE if base else None)
        adapters = [self._lora(UNPERTURBED, 0.0)] * len(sequences)
        return [found for _, found in sorted(self._forced(sequences, adapters))]

    # ------------------------------------------------------------------------------------------ the weights

    def apply(self, *updates: Update) -> None:
        """Update the current weights on every rank; the live weights follow before the next evaluation."""
        started = time.perf_counter()
        self._core.abort_all()
        self._core.call("apply", *updates, whole=True)
        self._times.update += time.perf_counter() - started

    def norm(self, terms: Sequence[Term]) -> float:
        return float(self._call("weights.norm", terms)[0])

    def drift(self) -> float:
        return math.sqrt(math.fsum(chain(*self._call("weights.squares"))))

    def cosine(self, one: Sequence[Term], other: Sequence[Term]) -> float:
        return float(self._call("weights.cosine", one, other)[0])

    def fingerprint(self) -> str:
        """Return the sum of the ranks' shares, which is the fingerprint of all current weights."""
        return fp.to_hex(fp.combine(self._call("weights.share")))

    def snapshot(self, path: Path) -> None:
        """Write one file of whole tensors; every rank writes its own part of it."""
        self._call("weights.write", tensor_file.reserve(path / FILE, self._kinds()))

    def export(self, path: Path, dtype: str | None = None) -> None:
        """Write a Hugging Face folder of the current model, in the checkpoint's precision or ``dtype``."""
        with tempfile.TemporaryDirectory(prefix=".weights-", dir=path.parent) as scratch:
            self.snapshot(Path(scratch))
            places = tensor_file.contents(Path(scratch) / FILE)
            tensors = {name: tensor_file.window(stored, "r+") for name, stored in places.items()}
            write_model(self.source, tensors, path, dtype=dtype)

    def take_times(self) -> EngineTimes:
        taken, self._times = self._times, EngineTimes()
        return taken

    def close(self) -> None:
        """End vLLM and its workers."""
        if self._engine_core is not None:
            self._engine_core.close()
        self._engine_core = self._base_model = None
        self._scratch.close()

    def _make_scratch(self) -> Path:
        """Create a folder for base weights that are written for the workers."""
        return Path(
            self._scratch.enter_context(tempfile.TemporaryDirectory(prefix="seedtune-", ignore_cleanup_errors=True))
        )


def _member(sequence: DecodeSequence | ForcedSequence) -> int:
    """Return the position of the sequence's member."""
    return sequence.member


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
