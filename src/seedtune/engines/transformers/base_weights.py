"""θ₀ for updates with decay and for measuring drift: the base model's own values, streamed from its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.engines.transformers.members.weight_format import as_tensor, as_weights
from seedtune.errors import ModelError
from seedtune.numerics import fingerprint as fp
from seedtune.numerics import tensor_file
from seedtune.numerics.rounding import dtype_of
from seedtune.numerics.tensor_file import Stored
from seedtune.numerics.weights import WeightArray, tensor_fingerprint


@dataclass(frozen=True, slots=True)
class ParameterRecord:
    """The properties of a parameter when the model was loaded."""

    dtype: str
    shape: tuple[int, ...]
    fingerprint: fp.Fingerprint

    @classmethod
    def of(cls, name: str, array: WeightArray) -> ParameterRecord:
        """Record weights given in the checkpoint's precision."""
        return cls(dtype_of(array), tuple(array.shape), tensor_fingerprint(name, array))


class BaseWeights:
    """The base model's parameters by their Hugging Face names, in the checkpoint's precision, one at a time.

    Read from the safetensors files of the model's folder, without keeping them in memory.  A parameter that the files
    do not hold under its name, shape and values (layouts that transformers converts while loading, other formats) comes
    from a copy of the model, loaded on the first such request and kept.  Either way the values equal the loaded ones.
    """

    def __init__(self, source: ModelSource, model: Any, device: torch.device) -> None:
        self._source, self._device = source, device
        self._prefix = f"{model.base_model_prefix}."
        self._seen = {name: ParameterRecord.of(name, _bits_of(p)) for name, p in model.named_parameters()}

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of every parameter in the checkpoint's precision, tied ones once."""
        return fp.to_hex(fp.combine(seen.fingerprint for seen in self._seen.values()))

    def __call__(self, name: str) -> Any:
        """Return a tensor's base weights on the engine's device.

        Raises ModelError or StorageError if the checkpoint has changed.
        """
        stored = self._stored.get(name)
        array = self._copies[name] if stored is None else tensor_file.read(stored)
        return array if self._device.type == "cpu" else as_tensor(array).to(self._device)

    def places(self, names: Iterable[str]) -> dict[str, Stored]:
        """Return the locations of these parameters in the checkpoint's files, of those that were found there."""
        return {name: self._stored[name] for name in names if name in self._stored}

    @cached_property
    def _stored(self) -> dict[str, Stored]:
        """Locations in the checkpoint's files of the parameters that were found there."""
        folder, tensors = self._source.folder, dict[str, Stored]()
        for path in sorted(folder.glob("model*.safetensors")) if folder is not None else ():
            tensors |= tensor_file.contents(path)
        found = {name: tensors.get(name) or tensors.get(name.removeprefix(self._prefix)) for name in self._seen}
        return {name: stored for name, stored in found.items() if stored is not None and self._holds(name, stored)}

    def _holds(self, name: str, stored: Stored) -> bool:
        """Return whether the stored tensor has the loaded values."""
        seen = self._seen[name]
        return (stored.dtype, stored.shape) == (seen.dtype, seen.shape) and seen == ParameterRecord.of(
            name, tensor_file.read(stored)
        )

    @cached_property
    def _copies(self) -> dict[str, WeightArray]:
        """Copies of the parameters that the files do not hold."""
        parameters = dict(self._source.load().named_parameters())
        copies = {name: _bits_of(parameters[name]) for name in self._seen.keys() - self._stored.keys()}
        for name, array in copies.items():
            if ParameterRecord.of(name, array) != self._seen[name]:
                raise ModelError(
                    f"the base model {self._source.name!r} has changed since it was loaded: {name!r} has other values. "
                    "Put its files back, or start again."
                )
        return copies


def _bits_of(parameter: torch.Tensor) -> WeightArray:
    weights: WeightArray = as_weights(parameter.cpu().contiguous())
    return weights
