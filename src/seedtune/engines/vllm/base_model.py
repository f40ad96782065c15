"""The base model as described to the workers: its trainable tensors, the location of their values, and its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seedtune.engines.model_sizes import linear_weights
from seedtune.engines.transformers.base_weights import BaseWeights
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.engines.transformers.members.coverage import coverage_of, with_tied_head
from seedtune.engines.transformers.tokenization import ModelTokenizer
from seedtune.engines.transformers.tracing import is_linear
from seedtune.errors import ConfigError, StorageError, storage_cause
from seedtune.numerics import tensor_file
from seedtune.numerics.noise import Noise
from seedtune.numerics.tensor_file import Stored
from seedtune.numerics.trainable import select
from seedtune.types import Coverage

HEAD = "lm_head.weight"

Scratch = Callable[[], Path]
"""Creates a folder that exists until the engine is closed."""


@dataclass(frozen=True, slots=True)
class BaseModelInfo:
    """The facts kept about the checkpoint after it has been read."""

    fingerprint: str
    coverage: Coverage
    dtype: torch.dtype
    """The checkpoint's dtype."""
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the trainable tensors, by Hugging Face name."""
    others: dict[str, tuple[int, ...]]
    """Shapes of the model's other tensors, which vLLM must hold unchanged."""
    places: dict[str, Stored]
    """Where the values of all tensors are stored."""
    eos: frozenset[int]
    lora_head: bool
    """Whether members' adapters reach the output head; vLLM then supports them only for generated tokens."""

    @property
    def size(self) -> int:
        """Number of elements of the trainable tensors."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    @classmethod
    def read(cls, source: ModelSource, noise: Noise, *, tokenizer: ModelTokenizer, scratch: Scratch) -> BaseModelInfo:
        """Load the checkpoint and describe it; values that differ from the files' are written into ``scratch``."""
        model = source.load().eval()
        parameters = dict(model.named_parameters())
        trainable = select(parameters, noise.trainable)
        anchor = BaseWeights(source, model, torch.device("cpu"))
        if noise.perturbation == "gaussian":
            names = trainable
            coverage = coverage_of(model, set(names), trainable=set(names), called=())
        else:
            names = _linear_weights(model, trainable, noise)
            called = [name for name, module in model.named_modules() if is_linear(module)]
            coverage = coverage_of(model, set(names), trainable=set(trainable), called=called)
            coverage = with_tied_head(coverage, model)
        every = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        shapes = {name: every.pop(name) for name in names}
        lora_head = noise.perturbation == "lowrank" and HEAD in names
        eos, dtype = tokenizer.end_tokens(model), model.dtype
        del model, parameters  # frees the model's memory before values are copied
        places = _places(anchor, [*shapes, *every], scratch)
        return cls(anchor.fingerprint, coverage, dtype, shapes, every, places, eos, lora_head)


def _linear_weights(model: Any, trainable: list[str], noise: Noise) -> list[str]:
    """Return the weights of linear layers that the perturbation reaches."""
    names = linear_weights(model, set(trainable))
    if not names:
        raise ConfigError(
            f"trainable={list(noise.trainable)} leaves no weight of a linear "
            f"layer, which is all that {noise.perturbation} perturbs. Select some, or use perturbation=gaussian."
        )
    return names


def _places(anchor: BaseWeights, names: Iterable[str], scratch: Scratch) -> dict[str, Stored]:
    listed = list(names)
    found = anchor.places(listed)
    missing = {name: anchor(name) for name in listed if name not in found}
    if missing:
        path = scratch() / "base.safetensors"
        try:
            tensor_file.write(path, missing)
        except OSError as error:
            cause, fix = storage_cause(error)
            raise StorageError(
                f"cannot write base weights for vLLM's workers to {str(path)!r}: {cause}. {fix}, or set TMPDIR to a "
                "folder with room."
            ) from error
        found |= tensor_file.contents(path)
    return {name: found[name] for name in listed}
