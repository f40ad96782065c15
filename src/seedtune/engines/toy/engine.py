"""The toy engine: two small matrices in numpy, the whole pipeline in a second, no torch.

Its "language model" answers a prompt with the number  w·tanh(W₀ f(prompt))  where f is a fixed random
feature vector of the prompt's text and w the first row of W₁.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from seedtune.config.config import Config
from seedtune.engines.base import EngineInfo, LocalEngine, check_readable
from seedtune.errors import DataError
from seedtune.numerics import fingerprint as fp
from seedtune.numerics import noise as addressed
from seedtune.numerics import tensor_file
from seedtune.numerics.noise import Noise
from seedtune.numerics.rounding import ARRAYS, nearest, widen
from seedtune.numerics.trainable import select
from seedtune.numerics.weights import WeightArray, Weights, factors, tensor_fingerprint
from seedtune.types import UNPERTURBED, Coverage, Job, Likelihood, Member, Prompt, Rollout

NAMES = ("layers.0.weight", "layers.1.weight")
CERTAINTY = 0.9
"""The probability of the next byte of the model's own answer."""

DEVIATION = 0.1
"""Standard deviation of the numbers that the model finds probable."""


class Characters:
    """The toy engine's tokenizer: every character of a prompt is a token."""

    context_length = None

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the characters' code points; DataError for a prompt that is not text."""
        for prompt in prompts:
            check_readable(prompt)
        return [list(map(ord, str(prompt.content))) for prompt in prompts]

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Return the number of characters of each prompt; DataError for one that is not text."""
        return list(map(len, self.encode(prompts)))


class ToyEngine(LocalEngine):
    """An engine with the protocol, weights and ledger of the real ones; ``model`` names (and seeds) base weights."""

    def __init__(self, config: Config, *, noise: Noise) -> None:
        super().__init__()
        self.model, self.noise, self.settings = config.model, noise, config.toy
        self.dtype = "float32" if config.dtype == "auto" else config.dtype
        self.tokenizer = Characters()

    def load(self, snapshot: Path | None = None) -> EngineInfo:
        """Draw the base weights, and read the current weights from ``snapshot`` if given."""
        size, dtype, noise = self.settings.size, self.dtype, self.noise
        drawn = {name: _normals(f"{self.model} {name}", size * size).reshape(size, size) * 0.5 for name in NAMES}
        self._base = {name: nearest(array.astype(np.float32), dtype) for name, array in drawn.items()}
        base = fp.to_hex(fp.combine(tensor_fingerprint(name, array) for name, array in self._base.items()))
        kept = "float32" if noise.weights_dtype == "float32" else dtype
        chosen = select(NAMES, noise.trainable)
        tensors = {name: nearest(widen(self._base[name]).copy(), kept).copy() for name in chosen}
        self.weights = Weights(tensors, noise, anchor=lambda name: widen(self._base[name]))
        if snapshot is not None:
            self.weights.restore(snapshot)
        count, unperturbed = size * size, [(name, "frozen") for name in NAMES if name not in chosen]
        coverage = Coverage(len(chosen) * count, len(NAMES) * count, tuple(unperturbed))
        library = {"name": "numpy", "version": np.__version__}
        arithmetic = {"products": "library", "attention": "library", "device": "cpu", "library": library}
        return EngineInfo(
            self.model,
            base,
            dtype,
            "cpu",
            coverage,
            kept,
            arithmetic,
            f"library (numpy {np.__version__})",
            "characters",
        )

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        """Yield every job's rollouts in order."""
        for job in jobs:
            time.sleep(self.settings.delay)
            for member, prompt, text in self._texts(job):
                for sample in range(job.sampling.samples):
                    yield Rollout(
                        job=job.id,
                        member=job.members[member],
                        prompt=prompt,
                        sample=sample,
                        text=text,
                        token_ids=tuple(text.encode()),
                        prompt_tokens=len(str(job.prompts[prompt].content)),
                        finish="stop",
                    )
                    self._times.generated_tokens += len(text)

    def likelihoods(self, jobs: Iterable[Job]) -> Iterator[Likelihood]:
        """Yield every job's likelihoods in order; DataError for a prompt without answers, or with an empty one."""
        for job in jobs:
            for member, place, text in self._texts(job):
                prompt = job.prompts[place]
                if not prompt.answers or not all(prompt.answers):
                    raise DataError(
                        f"prompt {prompt.id} has the answers {list(prompt.answers)!r}. Give it some text each."
                    )
                for number, answer in enumerate(prompt.answers):
                    ids, tokens = tuple(answer.encode()), len(str(prompt.content))
                    logprobs = tuple(_logprobs(text, ids))
                    yield Likelihood(job.id, job.members[member], place, number, ids, logprobs, tokens)

    def _texts(self, job: Job) -> Iterator[tuple[int, int, str]]:
        """Yield the positions of every member and prompt of a job, with its answer; members are built once each."""
        step = self.weights.step(job.shift)
        place = self.weights if step is None else self.weights.moved(step)
        for member, pairs in groupby(job.pairs, key=itemgetter(0)):
            started = time.perf_counter()
            weights = self._perturbed(place, job.members[member], job.sigma)
            self._times.perturb += time.perf_counter() - started
            yield from ((member, prompt, self._text(weights, job.prompts[prompt])) for _, prompt in pairs)

    def _perturbed(self, place: Weights, member: Member, sigma: float) -> list[WeightArray]:
        """Return a member's matrices around ``place``, as float32 that the model's dtype can represent."""
        return [
            self._matrix(place, name, member, sigma) if name in place.tensors else widen(self._base[name])
            for name in NAMES
        ]

    def _matrix(self, place: Weights, name: str, member: Member, sigma: float) -> WeightArray:
        weights, dtype = place.tensors[name], self.dtype
        if member.sign and self.noise.perturbation != "lowrank":
            out = np.empty(weights.size, ARRAYS[dtype])
            place.perturb(name, member, sigma, out)
            return widen(out).reshape(weights.shape)
        live = widen(nearest(widen(weights), dtype))
        if not member.sign:
            return live
        a, b = factors(place, name, [(member.generation, member.pair)])
        options = {"rank": self.noise.rank, "subspaces": self.noise.subspaces}
        return live + np.float32(addressed.amplitude(member.sign * sigma, **options)) * (a[0] @ b[0].T)

    def _text(self, weights: Sequence[WeightArray], prompt: Prompt) -> str:
        (first, second), size = weights, self.settings.size
        features = _normals(f"features {prompt.content}", size)
        hidden = np.tanh(first @ features / math.sqrt(size))
        return f"{float(second[0] @ hidden / math.sqrt(size)):.6f}"

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], *, base: bool = False
    ) -> list[list[float]]:
        """Return stand-in values: CERTAINTY for the byte of the model's own answer; the other bytes share the rest."""
        place = self.weights
        if base:
            place = place.part({name: self._base[name] for name in place.tensors})
        weights = self._perturbed(place, UNPERTURBED, 0.0)
        texts = (self._text(weights, prompt) for prompt in prompts)
        return [_logprobs(text, ids) for text, ids in zip(texts, completions, strict=True)]

    def export(self, path: Path, dtype: str | None = None) -> None:
        """Write ``model.safetensors`` with the two matrices in their own dtype or ``dtype``."""
        kept = {name: widen(self.weights.tensors.get(name, self._base[name])) for name in NAMES}
        path.mkdir(parents=True, exist_ok=True)
        arrays = {name: nearest(array, dtype or self.dtype) for name, array in kept.items()}
        tensor_file.write(path / "model.safetensors", arrays)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


@lru_cache(maxsize=1024)  # every member reads the same prompts
def _normals(name: str, count: int) -> WeightArray:
    numbers = addressed.normals(addressed.Address(addressed.key_for(0, addressed.Purpose.TOY_MODEL, name)), 0, count)
    numbers.flags.writeable = False
    return numbers


def _logprobs(answer: str, ids: Sequence[int]) -> list[float]:
    """Return log-probabilities of bytes ``ids`` for a model with this answer, a number.

    Those of another number are normal around the own one, with deviation `DEVIATION`; the bytes of other text are
    compared one by one, and are uniform after the answer's end.
    """
    text, given = answer.encode(), bytes(ids)
    with suppress(ValueError):
        apart = (float(given) - float(text)) / DEVIATION
        return [math.log(CERTAINTY) - apart * apart / (2 * len(given))] * len(given)
    own = [None if place >= len(text) else token == text[place] for place, token in enumerate(ids)]
    chances = {True: CERTAINTY, False: (1.0 - CERTAINTY) / 255, None: 1.0 / 256}
    return [math.log(chances[known]) for known in own]
