"""The toy engine: two small matrices in numpy, the whole pipeline in a second, no torch.

Its "language model" answers a prompt with the number  w·tanh(W₀ f(prompt))  where f is a fixed random
feature vector of the prompt's text and w the first row of W₁.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from seedtune import fingerprint as fp
from seedtune import noise as addressed
from seedtune.config import ToySettings
from seedtune.engines.base import EngineInfo, EngineTimes, Noise
from seedtune.errors import ConfigError
from seedtune.types import Coverage, Job, Member, Prompt, Rollout, Update
from seedtune.weights import Centre, Weights, tensor_fingerprint

NAMES = ("layers.0.weight", "layers.1.weight")


class ToyEngine:
    """Protocol, centre and ledger of the real engines; ``model`` names (and seeds) the base weights."""

    def __init__(self, model: str, *, noise: Noise, settings: ToySettings) -> None:
        self.model, self.noise, self.settings = model, noise, settings
        self._times = EngineTimes()

    def load(self, snapshot: Path | None = None) -> EngineInfo:
        """Draw the base weights, and read the centre from ``snapshot`` if one is given."""
        size = self.settings.size
        tensors = {name: _normals(f"{self.model} {name}", size * size).reshape(size, size) * 0.5 for name in NAMES}
        self.centre = Centre(tensors, run_seed=self.noise.run_seed, rank=self.noise.rank)
        base = fp.to_hex(fp.combine(tensor_fingerprint(name, array) for name, array in tensors.items()))
        if snapshot is not None:
            self.centre.restore(snapshot)
        count = len(NAMES) * size * size
        return EngineInfo(self.model, base, "float32", "cpu", Coverage(count, count, ()))

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        """Every job's rollouts in order."""
        for job in jobs:
            time.sleep(self.settings.delay)
            for member in job.members:
                yield from self._member(job, member)

    def _member(self, job: Job, member: Member) -> Iterator[Rollout]:
        started = time.perf_counter()
        first, second = (self._perturbed(name, member, job.sigma) for name in NAMES)
        self._times.perturb += time.perf_counter() - started
        for index, prompt in enumerate(job.prompts):
            for sample in range(job.sampling.samples):
                text = f"{self._answer(first, second, prompt):.6f}"
                yield _rollout(job, member, (index, sample), text)
                self._times.generated_tokens += len(text)

    def _perturbed(self, name: str, member: Member, sigma: float) -> Weights:
        centre = self.centre.tensors[name]
        if member.sign == 0:
            return centre
        a, b = self.centre.factors[name].fill([(member.generation, member.pair)])
        scale = np.float32(member.sign * sigma / math.sqrt(self.noise.rank))
        return centre + scale * (a[0] @ b[0].T)

    def _answer(self, first: Weights, second: Weights, prompt: Prompt) -> float:
        size = self.settings.size
        features = _normals(f"features {prompt.content}", size)
        hidden = np.tanh(first @ features / math.sqrt(size))
        return float(second[0] @ hidden / math.sqrt(size))

    def apply(self, update: Update) -> None:
        """Move the centre."""
        started = time.perf_counter()
        self.centre.apply(update)
        self._times.update += time.perf_counter() - started

    def fingerprint(self) -> str:
        """The centre's fingerprint."""
        return self.centre.fingerprint()

    def snapshot(self, path: Path) -> None:
        """Write the centre into a folder."""
        self.centre.save(path)

    def export(self, path: Path, dtype: str | None = None) -> None:
        """``model.safetensors`` with the two matrices; float32 is all there is."""
        if dtype not in (None, "float32"):
            raise ConfigError(f"dtype={dtype!r}: the toy engine exports float32 only. Leave dtype out.")
        path.mkdir(parents=True, exist_ok=True)
        save_file(self.centre.tensors, path / "model.safetensors")

    def take_times(self) -> EngineTimes:
        """The time accounting since the last call."""
        taken, self._times = self._times, EngineTimes()
        return taken

    def close(self) -> None:
        """Nothing to release."""


def _normals(name: str, count: int) -> Weights:
    return addressed.normals(addressed.Address(addressed.key(0, f"toy {name}")), 0, count)


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
