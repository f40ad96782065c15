"""One worker's side of the engine: its part of the current weights, and the state of the live weights.

    unperturbed  →  member  →  member  …  →  update  →  unperturbed

Live weights are always written whole, from the current weights; requesting the state they already have does nothing,
and after an update the next member is written anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seedtune.engines.transformers.device import wait_for
from seedtune.engines.transformers.members.weight_format import as_tensor, as_weights
from seedtune.engines.vllm import compat
from seedtune.engines.vllm.base_model import BaseModelInfo
from seedtune.engines.vllm.lora import LoraMaker
from seedtune.engines.vllm.tensor_layout import pieces_of
from seedtune.errors import EngineError, ModelError
from seedtune.numerics import tensor_file
from seedtune.numerics.kernels.select import kernels_for
from seedtune.numerics.noise import Noise
from seedtune.numerics.tensor_file import Stored
from seedtune.numerics.weights import Weights
from seedtune.types import UNPERTURBED, Member, Shift, Update


@dataclass(frozen=True, slots=True)
class Held:
    """The member that the live weights hold, and where it is perturbed from."""

    member: Member
    sigma: float
    shift: Shift | Update | None


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The noise, the types of the live and of the current weights, and whether the host keeps the current weights."""

    noise: Noise
    dtype: torch.dtype
    weights_dtype: torch.dtype
    on_host: bool


class WorkerState:
    """The state of a worker.

    ``before`` are the shapes of this worker's earlier tensors: its live weights are then not the base model's.  Raises
    EngineError if these are of other tensors.
    """

    def __init__(
        self,
        worker: Any,
        base_model: BaseModelInfo,
        settings: WorkerSettings,
        *,
        before: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        if before is not None and before != base_model.shapes:
            raise EngineError("this vLLM has trained other tensors: close the engine, and load it again.")
        model = worker.model_runner.get_model()
        self.shapes, self._places, self._dtype = base_model.shapes, base_model.places, settings.dtype
        self._parameters = dict(model.named_parameters())
        self._pieces = pieces_of(
            {name: tuple(parameter.shape) for name, parameter in self._parameters.items()},
            compat.splits_of(model),
            compat.fused_names(model),
            shapes={**base_model.shapes, **base_model.others},
            first=worker.rank == 0,
        )
        self._device = next(iter(self._parameters.values())).device
        on_cpu = self._device.type == "cpu"
        self._on_host = settings.on_host or on_cpu  # on a CPU the device's memory is the host's
        self.weights = Weights(
            {name: self._first(name, settings.weights_dtype) for name in self.shapes},
            settings.noise,
            kernels=kernels_for(str(self._device)),
            anchor=self._base,
            slices=self._pieces,
            upload=self._upload if self._on_host and not on_cpu else None,
        )
        self._live = {name: self._live_part(name) for name in self.shapes}
        self._packers = compat.packers(model)
        self._held: Held | None = None
        self._shift: Shift | Update | None = None
        self._perturbed_from = self.weights
        if before is None:
            self._check()
        if settings.noise.perturbation == "lowrank":
            self.lora = LoraMaker(self.weights, worker.lora_config.lora_dtype)
            compat.make_loras(worker, self.lora.make)
            self._check_lora(compat.lora_modules(worker))
        self.set_member(UNPERTURBED, 0.0)

    def _window(self, name: str) -> Any:
        """Map this rank's elements, (rows, columns), of a tensor of the base model."""
        return self._pieces[name].of(tensor_file.window(self._places[name]))

    def _first(self, name: str, kept: torch.dtype) -> Any:
        """Return a piece of the base model in the current weights' dtype, in its own memory."""
        window = as_tensor(np.array(self._window(name)))
        if not self._on_host:
            return as_weights(window.to(self._device, kept))
        own = torch.empty(window.shape, dtype=kept, pin_memory=self._device.type != "cpu")
        return as_weights(own.copy_(window))

    def _base(self, name: str) -> Any:
        return self._window(name) if self._on_host else self._upload(self._window(name))

    def _upload(self, part: Any) -> Any:
        """Return a copy of a part on the device; from where it lies, if that is memory of ours, which is pinned."""
        return as_tensor(part if part.flags.writeable else np.array(part)).to(self._device)

    def _live_part(self, name: str) -> Any:
        """Return the live weights of a piece, (rows, columns), in place."""
        piece = self._pieces[name]
        flat = self._parameters[piece.parameter].data.view(-1)
        return as_weights(flat[piece.at : piece.at + piece.size].view(piece.shape))

    def _check(self) -> None:
        """Raise ModelError unless all live weights, trainable or not, equal the base model's."""
        for name in self._pieces:
            expected = as_tensor(np.array(self._window(name))).to(self._dtype)
            if not torch.equal(as_tensor(self._live_part(name)).to("cpu", self._dtype), expected):
                raise ModelError(
                    f"vLLM holds other values for {name!r} than the checkpoint: it changes them when it loads a "
                    "model, or reads other files. Use engine=transformers."
                )

    def _check_lora(self, modules: set[str]) -> None:
        """Raise ModelError unless every weight supports LoRA adapters."""
        left = [name for name in self.shapes if name.removesuffix(".weight") not in modules]
        if left:
            raise ModelError(
                f"vLLM has no adapters for {left[0]!r} (and {len(left) - 1} more tensors) of this model. Freeze it, or "
                "use engine=transformers."
            )

    # -------------------------------------------------------------------------------------------- the state

    def set_member(self, member: Member, sigma: float, shift: Shift | Update | None = None) -> bool:
        """Write a member over the live weights, unless they hold it already; return whether they changed.

        It is perturbed from where a shift or an update would take the current weights.  Raises EngineError for a
        perturbed member of a lowrank run, which is an adapter.
        """
        wanted = Held(member, sigma if member.sign else 0.0, shift)
        if member.sign and self.weights.noise.perturbation == "lowrank":
            raise EngineError(f"member {member.label(-1)} of a lowrank run is an adapter, not live weights.")
        if wanted == self._held:
            return False
        self._held = None
        if shift != self._shift:
            self._forget_shift()  # frees an older copy before a new one is created
            step = self.weights.step(shift)
            self._perturbed_from = self.weights if step is None else self.weights.moved(step)
            self._shift = shift
        for name in self._live:
            self._write(name, wanted)
        for pack in self._packers:
            pack()
        self._held = wanted
        wait_for(self._device)  # the caller takes the time
        return True

    def _forget_shift(self) -> None:
        """Perturb the next member, which is written anew, from the current weights."""
        self._held, self._shift, self._perturbed_from = None, None, self.weights

    def _write(self, name: str, held: Held) -> None:
        """Write one tensor of a member, rounded to the model's precision, whatever dtype vLLM stores."""
        live = as_tensor(self._live[name])
        rounded = live if live.dtype == self._dtype else torch.empty_like(live, dtype=self._dtype)
        self._perturbed_from.perturb(name, held.member, held.sigma, as_weights(rounded))
        if rounded is not live:
            live.copy_(rounded)

    def apply(self, *updates: Update) -> None:
        """Update the current weights; the live weights are stale until the next ``set_member``."""
        self._forget_shift()
        self.weights.apply(*updates)
        wait_for(self._device)  # the caller takes the time

    def held(self) -> dict[str, int]:
        """Map tensor names to the number of their elements that this rank owns."""
        return {name: self._pieces[name].size if self._pieces[name].owned else 0 for name in self.shapes}

    def restore(self, places: Mapping[str, Stored]) -> None:
        """Read the current weights from files; the live weights follow."""
        self.weights.read(places)
        self._forget_shift()
        self.set_member(UNPERTURBED, 0.0)
