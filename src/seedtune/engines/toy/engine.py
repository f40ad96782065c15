"""The toy engine: two small matrices in numpy, the whole pipeline in a second, no torch.

Its "language model" answers a prompt with the number  w·tanh(W₀ f(prompt))  where f is a fixed random
feature vector of the prompt's text and w the first row of W₁.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seedtune.config.sections import ToySettings
from seedtune.engines.base import EngineInfo, LocalEngine
from seedtune.errors import DataError
from seedtune.numerics import fingerprint as fp
from seedtune.numerics import noise as addressed
from seedtune.numerics import tensor_file
from seedtune.numerics.noise import Noise
from seedtune.numerics.rounding import ARRAYS, nearest, widen
from seedtune.numerics.trainable import select
from seedtune.numerics.weights import WeightArray, Weights, factors, tensor_fingerprint
from seedtune.types import UNPERTURBED, Coverage, Job, Likelihood, Member, Prompt, Rollout, Update

NAMES = ("layers.0.weight", "layers.1.weight")
CERTAINTY = 0.9
"""The probability of the next byte of the model's own answer."""


class Characters:
    """The toy engine's tokenizer: every character of a prompt is a token."""

    context_length = None

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Return the number of characters of each prompt."""
        return [len(str(prompt.content)) for prompt in prompts]


class ToyEngine(LocalEngine):
    """An engine with the protocol, weights and ledger of the real ones; ``model`` names (and seeds) base weights."""

    def __init__(self, model: str, *, noise: Noise, settings: ToySettings) -> None:
        super().__init__()
        self.model, self.noise, self.settings = model, noise, settings
        self.tokenizer = Characters()

    def load(self, snapshot: Path | None = None) -> EngineInfo:
        """Draw the base weights, and read the current weights from ``snapshot`` if given."""
        size, dtype, noise = self.settings.size, self.settings.dtype, self.noise
        drawn = {name: _normals(f"{self.model} {name}", size * size).reshape(size, size) * 0.5 for name in NAMES}
        self._base = {name: nearest(array.astype(np.float32), dtype) for name, array in drawn.items()}
        base = fp.to_hex(fp.combine(tensor_fingerprint(name, array) for name, array in self._base.items()))
        kept = "float32" if noise.weights_dtype == "float32" else dtype
        chosen = select(NAMES, noise.trainable, noise.freeze)
        tensors = {name: nearest(widen(self._base[name]).copy(), kept).copy() for name in chosen}
        self.weights = Weights(tensors, noise, anchor=lambda name: widen(self._base[name]))
        if snapshot is not None:
            self.weights.restore(snapshot)
        count, unperturbed = size * size, [(name, "frozen") for name in NAMES if name not in chosen]
        coverage = Coverage(len(chosen) * count, len(NAMES) * count, tuple(unperturbed))
        return EngineInfo(self.model, base, dtype, "cpu", coverage, kept, *_arithmetic())

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        """Yield every job's rollouts in order."""
        for job in jobs:
            time.sleep(self.settings.delay)
            for member, prompt, weights in self._rows(job):
                for sample in range(job.sampling.samples):
                    text = self._text(*weights, job.prompts[prompt])
                    yield _rollout(job, job.members[member], (prompt, sample), text)
                    self._times.generated_tokens += len(text)

    def likelihoods(self, jobs: Iterable[Job]) -> Iterator[Likelihood]:
        """Yield every job's likelihoods in order."""
        for job in jobs:
            for member, place, weights in self._rows(job):
                prompt = job.prompts[place]
                own = self._text(*weights, prompt).encode()
                for number, answer in enumerate(_given(prompt)):
                    ids, tokens = tuple(answer.encode()), len(str(prompt.content))
                    logprobs = tuple(_logprobs(own, ids))
                    yield Likelihood(job.id, job.members[member], place, number, ids, logprobs, tokens)

    def _rows(self, job: Job) -> Iterator[tuple[int, int, tuple[WeightArray, WeightArray]]]:
        """Yield the positions of every member and prompt of a job, with the member's weights, built once per member."""
        place = self._place(self.weights.step(job.shift))
        made: dict[int, tuple[WeightArray, WeightArray]] = {}
        for member, prompt in job.pairs:
            if member not in made:
                started = time.perf_counter()
                first, second = (self._perturbed(place, name, job.members[member], job.sigma) for name in NAMES)
                made = {member: (first, second)}
                self._times.perturb += time.perf_counter() - started
            yield member, prompt, made[member]

    def _place(self, step: Update | None) -> Weights:
        """Return the current weights, or a copy moved by an update."""
        if step is None:
            return self.weights
        place = self.weights.part({name: array.copy() for name, array in self.weights.tensors.items()})
        place.apply(step)
        return place

    def _perturbed(self, place: Weights, name: str, member: Member, sigma: float) -> WeightArray:
        """Return one perturbed matrix of a member around ``place``, as float32 that the model's dtype can represent."""
        dtype = self.settings.dtype
        if name not in place.tensors:
            return widen(self._base[name])
        weights = place.tensors[name]
        if member.sign == 0:
            return widen(nearest(widen(weights), dtype))
        if self.noise.perturbation == "gaussian":
            out = np.empty(weights.size, ARRAYS[dtype])
            place.perturb(name, member, sigma, out)
            return widen(out).reshape(weights.shape)
        a, b = factors(place, name, [(member.generation, member.pair)])
        how = {"rank": self.noise.rank, "subspaces": self.noise.subspaces}
        scale = np.float32(addressed.amplitude(member.sign * sigma, **how))
        return widen(nearest(widen(weights), dtype)) + scale * (a[0] @ b[0].T)

    def _text(self, first: WeightArray, second: WeightArray, prompt: Prompt) -> str:
        return f"{self._answer(first, second, prompt):.6f}"

    def _answer(self, first: WeightArray, second: WeightArray, prompt: Prompt) -> float:
        size = self.settings.size
        features = _normals(f"features {prompt.content}", size)
        hidden = np.tanh(first @ features / math.sqrt(size))
        return float(second[0] @ hidden / math.sqrt(size))

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], *, base: bool = False
    ) -> list[list[float]]:
        """Return stand-in values: CERTAINTY for the byte of the model's own answer; the other bytes share the rest."""
        place = self.weights
        if base:
            place = place.part({name: self._base[name] for name in place.tensors})
        first, second = (self._perturbed(place, name, UNPERTURBED, 0.0) for name in NAMES)
        texts = (self._text(first, second, prompt) for prompt in prompts)
        return [_logprobs(text.encode(), ids) for text, ids in zip(texts, completions, strict=True)]

    def export(self, path: Path, dtype: str | None = None) -> None:
        """Write ``model.safetensors`` with the two matrices in their own dtype or ``dtype``."""
        kept = {name: widen(self.weights.tensors.get(name, self._base[name])) for name in NAMES}
        path.mkdir(parents=True, exist_ok=True)
        arrays = {name: nearest(array, dtype or self.settings.dtype) for name, array in kept.items()}
        tensor_file.write(path / "model.safetensors", arrays)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _arithmetic() -> tuple[dict[str, Any], str]:
    """Return the arithmetic for the ledger, and for display."""
    library = {"name": "numpy", "version": np.__version__}
    told = {"products": "library", "attention": "library", "device": "cpu", "library": library}
    return told, f"library (numpy {np.__version__})"


def _normals(name: str, count: int) -> WeightArray:
    return addressed.normals(addressed.Address(addressed.key_for(0, addressed.Purpose.TOY_MODEL, name)), 0, count)


def _given(prompt: Prompt) -> tuple[str, ...]:
    """Return a prompt's reference answers; DataError if it has none, or one is empty."""
    if not prompt.answers or not all(prompt.answers):
        raise DataError(f"prompt {prompt.id} has the answers {list(prompt.answers)!r}. Give it some text each.")
    return prompt.answers


def _logprobs(text: bytes, ids: Sequence[int]) -> list[float]:
    """Return log-probabilities of bytes ``ids`` for a model that answers ``text``; uniform after its end."""
    own = [None if place >= len(text) else token == text[place] for place, token in enumerate(ids)]
    chances = {True: CERTAINTY, False: (1.0 - CERTAINTY) / 255, None: 1.0 / 256}
    return [math.log(chances[known]) for known in own]


def _rollout(job: Job, member: Member, place: tuple[int, int], text: str) -> Rollout:
    return Rollout(
        job=job.id,
        member=member,
        prompt=place[0],
        sample=place[1],
        text=text,
        token_ids=tuple(text.encode()),
        prompt_tokens=len(str(job.prompts[place[0]].content)),
        finish="stop",
    )
