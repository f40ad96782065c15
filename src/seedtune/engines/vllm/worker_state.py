"""One worker's side of the engine: its part of the current weights, and the state of the live weights.

    unperturbed  →  member  →  member  …  →  invalid  →  update  →  unperturbed

Live weights are always written whole, from the current weights; requesting the state they already have does nothing,
and an update while they hold a member is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seedtune.engines import codec
from seedtune.engines.transformers.members.weight_format import as_tensor, as_weights
from seedtune.engines.vllm import compat
from seedtune.engines.vllm.lora import LoraMaker
from seedtune.engines.vllm.sharded_weights import Shard, ShardedWeights, window_of
from seedtune.engines.vllm.tensor_layout import Piece, pieces_of
from seedtune.errors import EngineError, ModelError
from seedtune.numerics import tensor_file
from seedtune.numerics.kernels.select import kernels_for
from seedtune.numerics.noise import Noise
from seedtune.numerics.tensor_file import Stored
from seedtune.numerics.weights import Weights
from seedtune.types import UNPERTURBED, Member, Shift, Term, Update


@dataclass(frozen=True, slots=True)
class Held:
    """The member that the live weights hold."""

    member: Member
    sigma: float


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker needs to know of the run and of the base model."""

    noise: Noise
    kept: str
    dtype: str
    weights_memory: str
    shapes: Mapping[str, tuple[int, ...]]
    others: Mapping[str, tuple[int, ...]]
    places: Mapping[str, Stored]


class WorkerState:
    """The state of a worker; its commands take and return plain data, or bytes of `codec.encode`.

    ``before`` are the shapes of this worker's earlier tensors: its live weights are then not the base model's.
    """

    def __init__(self, worker: Any, setup: bytes, *, before: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self._model = worker.model_runner.get_model()
        about = codec.decode(setup, WorkerSetup)
        self.noise, self.shapes, self._places = about.noise, about.shapes, about.places
        self._dtype = getattr(torch, about.dtype)
        self._parameters = dict(self._model.named_parameters())
        pieces = pieces_of(
            {name: tuple(parameter.shape) for name, parameter in self._parameters.items()},
            compat.splits_of(self._model),
            compat.fused_names(self._model),
            shapes={**self.shapes, **about.others},
            first=worker.rank == 0,
        )
        self._device = next(iter(self._parameters.values())).device
        self._kernels = kernels_for(str(self._device))
        # On a CPU the device's memory is the host's.
        self._on_host = self._device.type == "cpu" or about.weights_memory == "host"
        kept = getattr(torch, about.kept)
        shards = {name: Shard(pieces[name], self._first(pieces[name], kept)) for name in self.shapes}
        self.weights = ShardedWeights(
            shards,
            self.noise,
            kernels=self._kernels,
            anchor=self._base,
            upload=self._upload if self._on_host and self._device.type != "cpu" else None,
        )
        self.outline = self._outline()
        self._live = {name: self._live_part(pieces[name]) for name in self.shapes}
        self._packers = compat.packers(self._model)
        self._perturbed_from, self._shift = self.weights, Update(0, ())
        self._held: Held | None = None
        if before is not None and before != self.shapes:
            raise EngineError("this vLLM has trained other tensors: close the engine, and load it again.")
        if before is None:
            for piece in pieces.values():
                self._check(piece)
            self._check_packed()
        if self.noise.perturbation == "lowrank":
            self.lora = LoraMaker(self.outline, worker.lora_config.lora_dtype, self._device)
            compat.make_loras(worker, self.lora.make)
            self._check_lora(compat.lora_modules(worker))
        self.set_member([*UNPERTURBED], 0.0)

    def _outline(self) -> Weights:
        """The weights of the whole model without their values: enough for what depends on noise alone."""
        tensors = {name: self._nothing(shape) for name, shape in self.shapes.items()}
        return Weights(tensors, self.noise, kernels=self._kernels)

    def _nothing(self, shape: tuple[int, ...]) -> Any:
        """Return zeros of that shape in the memory of one element."""
        if self._device.type == "cpu":
            return np.broadcast_to(np.zeros(1, np.float32), shape)
        return torch.zeros(1, device=self._device).expand(shape)

    def _first(self, piece: Piece, kept: torch.dtype) -> Any:
        """Return the piece of the base model in the current weights' dtype, in its own memory."""
        window = as_tensor(np.array(window_of(tensor_file.window(self._places[piece.name]), piece)))
        if not self._on_host:
            return as_weights(window.to(self._device, kept))
        own = torch.empty(window.shape, dtype=kept, pin_memory=self._device.type != "cpu")
        return as_weights(own.copy_(window))

    def _base(self, piece: Piece) -> Any:
        window = window_of(tensor_file.window(self._places[piece.name]), piece)
        return window if self._on_host else self._upload(window)

    def _upload(self, part: Any) -> Any:
        """Return a copy of a part on the device."""
        return as_tensor(np.array(part)).to(self._device)

    def _live_part(self, piece: Piece) -> Any:
        """Return the live weights of a piece, (rows, columns), in place."""
        parameter = self._parameters[piece.parameter].data
        if piece.flat:
            part = parameter.view(-1)[piece.at : piece.at + piece.size].view(1, -1)
        else:
            part = parameter[piece.at : piece.at + piece.rows.size]
        return as_weights(part)

    def _check(self, piece: Piece) -> None:
        """Raise ModelError unless live weights, trainable or not, equal the base model's."""
        window = window_of(tensor_file.window(self._places[piece.name]), piece)
        expected = as_tensor(np.array(window)).to(self._dtype)
        live = as_tensor(self._live_part(piece)).to("cpu", self._dtype)
        if not torch.equal(live, expected):
            raise ModelError(
                f"vLLM holds other values for {piece.name!r} than the checkpoint: it changes them when it loads a "
                "model, or reads other files. Use engine=transformers."
            )

    def _check_packed(self) -> None:
        """Raise ModelError unless the forward pass reads the live weights."""
        hidden = compat.check_packed(self._model)
        if hidden:
            raise ModelError(
                f"vLLM's {hidden[0]} multiplies with a packed copy of its weights that seedtune cannot renew. Use "
                "engine=transformers."
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

    def apply_shift(self, step: bytes) -> None:
        """Perturb from where an update would take the current weights; if it is empty, from the current weights."""
        where = codec.decode(step, Update)
        if where == self._shift:
            return
        self._held, self._perturbed_from = None, self.weights  # frees an older copy before a new one is created
        self._shift = Update(0, ())
        if where != self._shift:
            self._perturbed_from = self.weights.moved(where)
            self._shift = where

    def set_member(self, member: Sequence[int], sigma: float) -> bool:
        """Write a member over the live weights, unless they hold it already; return whether they changed."""
        wanted = Member(*member)
        held = Held(wanted, sigma if wanted.sign else 0.0)
        if wanted.sign and self.noise.perturbation != "gaussian":
            raise EngineError(f"member {wanted.label(-1)} of a lowrank run is an adapter, not live weights.")
        if held == self._held:
            return False
        self._held = None
        for name in self._live:
            self._write(name, held)
        for pack in self._packers:
            pack()
        self._held = held
        return True

    def _write(self, name: str, held: Held) -> None:
        """Write one tensor of a member, rounded to the model's precision, whatever dtype vLLM stores."""
        live = as_tensor(self._live[name])
        rounded = live if live.dtype == self._dtype else torch.empty_like(live, dtype=self._dtype)
        self._perturbed_from.write(name, held.member, held.sigma, as_weights(rounded))
        if rounded is not live:
            live.copy_(rounded)

    def invalidate(self) -> None:
        """Invalidate the loaded member: the next one is written anew."""
        self._held = None

    def apply(self, updates: bytes) -> None:
        """Update the current weights; the live weights are stale until the next ``set_member``."""
        if self._held is not None and self._held.member.sign:
            raise EngineError(
                f"an update while the live weights are member {self._held.member.label(-1)}: invalidate it first."
            )
        self._held, self._perturbed_from, self._shift = None, self.weights, Update(0, ())
        self.weights.apply(*codec.decode(updates, list[Update]))

    # -------------------------------------------------------------------------------------------- measures, files

    def held(self) -> dict[str, int]:
        """Map tensor names to the number of their elements that this rank owns."""
        return {name: one.piece.size if one.piece.owned else 0 for name, one in self.weights.shards.items()}

    def fingerprint(self) -> list[str]:
        """Return both lanes as decimal numbers."""
        return [str(lane) for lane in self.weights.fingerprint()]

    def squares(self) -> list[float]:
        return self.weights.squares()

    def norm(self, terms: bytes) -> float:
        return self.outline.norm(codec.decode(terms, list[Term]))

    def cosine(self, both: bytes) -> float:
        return self.outline.cosine(*codec.decode(both, tuple[list[Term], list[Term]]))

    def step(self, shift: bytes) -> bytes:
        """Return the update that a shift stands for."""
        return codec.encode(self.outline.step(codec.decode(shift, Shift)) or Update(0, ()))

    def save(self, places: bytes) -> None:
        """Write this rank's own elements of the current weights into files that have room for all elements."""
        stored = codec.decode(places, dict[str, Stored])
        for name, one in self.weights.shards.items():
            if one.piece.owned:
                window = tensor_file.window(stored[name], "r+")
                window_of(window, one.piece)[...] = self.weights.host(one.theta)

    def restore(self, places: bytes) -> None:
        """Read the current weights from files; the live weights follow."""
        stored = codec.decode(places, dict[str, Stored])
        for name, one in self.weights.shards.items():
            window = tensor_file.window(stored[name])
            self.weights.fill(name, np.array(window_of(window, one.piece)))
        self._held, self._perturbed_from, self._shift = None, self.weights, Update(0, ())
        self.set_member([*UNPERTURBED], 0.0)


COMMANDS: Mapping[str, Callable[..., Any]] = {
    "apply_shift": WorkerState.apply_shift,
    "set_member": WorkerState.set_member,
    "invalidate": WorkerState.invalidate,
    "apply": WorkerState.apply,
    "held": WorkerState.held,
    "fingerprint": WorkerState.fingerprint,
    "squares": WorkerState.squares,
    "norm": WorkerState.norm,
    "cosine": WorkerState.cosine,
    "step": WorkerState.step,
    "save": WorkerState.save,
    "restore": WorkerState.restore,
}
"""The commands of a worker, by name, once its state is created."""
