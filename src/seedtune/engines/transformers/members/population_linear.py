"""Linear layers shared by a whole population: one product for all members, one small term per member.

Layers that read the same input (q, k and v; gate and up) form a *group* with one fused weight: one large
matrix product instead of several small ones, and one pass over the input for all their perturbations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from seedtune.engines.transformers.cpu_kernels import member_rows, products
from seedtune.engines.transformers.cpu_kernels.layer_steps import Terms
from seedtune.engines.transformers.device import has_kernels, uploaded
from seedtune.engines.transformers.product_choice import AnyProduct
from seedtune.engines.transformers.tracing import replace_module


@dataclass(slots=True)
class RowState:
    """The perturbation of each row of the forward pass in flight, shared by every group of a model."""

    pairs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """The column of each row's pair."""
    scales: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """s·σ/√r (flipout: s·σ), 0 for the unperturbed model."""
    active: bool = False
    _sharing: list[np.ndarray] | None = None
    _sharing_there: list[tuple[Tensor, ...]] | None = None
    _there: tuple[Tensor, Tensor] | None = None
    _owned: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict)
    _steady: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def set(self, pairs: np.ndarray, scales: np.ndarray) -> None:
        """Set the column of each row's pair, and each row's scale; both (rows,)."""
        self.pairs, self.scales, self.active = pairs, scales, bool(scales.any())
        self._sharing = self._sharing_there = self._there = None
        self._owned.clear()

    def keep_on(self, device: torch.device) -> None:
        """Copy pairs and scales to a device now, into the same memory for the same number of rows every time."""
        pairs, scales = uploaded(device, self.pairs, self.scales)
        count = self.pairs.size
        if count not in self._steady:
            self._steady[count] = torch.empty_like(pairs, dtype=torch.int64), torch.empty_like(scales)
        self._there = self._steady[count]
        self._there[0].copy_(pairs)
        self._there[1].copy_(scales)

    def begin_step(self) -> None:
        """Forget what was computed from pairs and scales in the step before: a recorded step computes it itself."""
        self._owned.clear()

    def sharing_on(self, device: torch.device, shared: np.ndarray, count: int) -> list[tuple[Tensor, ...]]:
        """Return the rows of each shared noise, their pairs and their scales, on a device without compiled kernels."""
        if self._sharing_there is None:
            own = self.sharing(shared, count)
            order = np.concatenate(own)
            rows, pairs, scales = uploaded(device, order, self.pairs[order], self.scales[order])
            parts = (x.split([one.size for one in own]) for x in (rows.long(), pairs.long(), scales[:, None]))
            self._sharing_there = list(zip(*parts, strict=True))
        return self._sharing_there

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return pairs and scales on a device without compiled kernels; they are copied there once a pass."""
        if self._there is None:
            pairs, scales = uploaded(device, self.pairs, self.scales)
            self._there = pairs.long(), scales
        return self._there

    def owned(self, pairs: int, rank: int, like: Tensor) -> Tensor:
        """Return (rows, pairs·rank): each row's scale in the columns of its own pair, 0 elsewhere."""
        key = pairs, rank, like.dtype
        if key not in self._owned:
            own, scales = self.on(like.device)
            columns = torch.arange(pairs, device=like.device).repeat_interleave(rank)
            self._owned[key] = ((columns == own[:, None]) * scales[:, None]).to(like.dtype)
        return self._owned[key]

    def sharing(self, shared: np.ndarray, count: int) -> list[np.ndarray]:
        """Return the perturbed rows of each of ``count`` shared noises; ``shared`` names that of every column.

        It is the same array for all groups of a model, so that the answer holds until the next ``set``.
        """
        if self._sharing is None:
            of_rows = np.where(self.scales != 0, shared[self.pairs], -1)
            self._sharing = [np.flatnonzero(of_rows == one).astype(np.int32) for one in range(count)]
        return self._sharing


def bits(tensor: Tensor) -> np.ndarray:
    """Return the tensor's memory as numpy: float32 unchanged, bfloat16 as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def can_copy(dtype: torch.dtype) -> bool:
    """Return whether oneDNN packs weights of this type in its own layout on this processor."""
    if dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True, slots=True)
class ProductForm:
    """How live weights are multiplied, and whether they are copied into the layout that is read fastest.

    ``kind`` is one of `seedtune.engines.transformers.cpu_kernels.products`, or "library": torch's own product.
    """

    kind: AnyProduct = "library"
    copied: bool = False


class LiveWeight:
    """A weight and its bias in the form that their product reads: packed once per update, or the plain tensor."""

    def __init__(self, form: ProductForm) -> None:
        self.form = form
        self.dtype: torch.dtype | None = None
        self._outputs = 0
        self._weight: Any = None
        self._bias: Any = None
        self._wide: Tensor | None = None

    @property
    def bias(self) -> Any:
        """The bias as the product reads it; None if there is none."""
        return self._bias

    def plain(self) -> Tensor:
        """Return the weight (out, in) that torch multiplies by."""
        weight: Tensor = self._weight
        return weight

    def widened(self, further: int) -> Tensor:
        """Return the weight (out, in) with columns for ``further`` inputs behind it; it lies there from now on."""
        if self._wide is None or self._wide.shape[1] != self._weight.shape[1] + further:
            wide = self._weight.new_zeros(self._outputs, self._weight.shape[1] + further)
            wide[:, : self._weight.shape[1]] = self._weight
            self._wide, self._weight = wide, wide[:, : self._weight.shape[1]]
        return self._wide

    def set(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Set ``weight`` (out, in); a copied weight may be overwritten afterwards, a plain one is used in place."""
        self.dtype, self._outputs = weight.dtype, weight.shape[0]
        kind, self._weight = self.form.kind, None
        if kind == "library":
            copied = self.form.copied and can_copy(weight.dtype)
            self._bias = bias
            if self._wide is not None:
                self._weight = self._wide[:, : weight.shape[1]]
                self._weight.copy_(weight)
                return
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None) if copied else weight
            return
        self._weight = products.pack(bits(weight.contiguous()), kind) if self.form.copied else bits(weight)
        own = None if bias is None else bias.float().numpy()
        self._bias = _zeros(self._outputs, kind) if own is None else products.starts(own, self._outputs, kind)

    def panels(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return panels and start values, if our own product reads them and takes whole rows of inputs unchanged."""
        return None if self.form.kind == "library" or not self.form.copied else (self._weight, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return x·Wᵀ + b for x of any leading shape."""
        if self.form.kind != "library":
            rows = x.reshape(-1, x.shape[-1]).contiguous()
            y = rows.new_empty(rows.shape[0], self._outputs)
            products.multiply(bits(y), bits(rows), self._weight, self._bias, kind=self.form.kind)
            return y.view(*x.shape[:-1], self._outputs)
        if self._weight.layout == torch._mkldnn:  # type: ignore[attr-defined]
            z: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return z
        return functional.linear(x, self._weight, self._bias)


@lru_cache(maxsize=16)
def _zeros(outputs: int, kind: products.ProductKind) -> np.ndarray:
    return products.starts(None, outputs, kind)


@dataclass(slots=True)
class Part:
    """One Hugging Face linear layer: its name, its output width and whether it is stored (in, out)."""

    name: str
    outputs: int
    transposed: bool
    bias: Tensor | None


class GroupNoise(Protocol):
    """The perturbation of one group by a job's members."""

    def add(self, y: Tensor, x: Tensor, rows: RowState) -> None:
        """Add every row's perturbation for inputs ``x`` (rows, in) to the group's outputs ``y`` (rows, out)."""
        ...


FURTHER_INPUTS = 64
"""Most pairs times rank that devices without compiled kernels take as further inputs of a layer's product."""


class Factors:
    """One group's factors for a job's members: ``a`` (P, r, out) and ``b`` (P, parts, r, in), in the model's dtype.

    ``ends`` (parts,) is the end of each part's outputs.  Compiled kernels add each row's own term.  Other devices take
    the members as further inputs of the product, y = x·Wᵀ + S·Aᵀ: S has s·σ/√r·Bᵀx in the columns of the row's own pair
    and 0 elsewhere, so that a group costs four launches and no row gathers its factors.
    """

    def __init__(self, a: Tensor, b: Tensor, ends: np.ndarray) -> None:
        self.a, self.b, self.ends = a.contiguous(), b.contiguous(), ends
        self.bits = (bits(self.a), bits(self.b)) if has_kernels(a.device, a.dtype) else None
        many = a.shape[0] * a.shape[1] > FURTHER_INPUTS
        # a dot of float16 may overflow before it is scaled, so those are gathered, in float32
        gathered = self.bits is not None or many or a.dtype == torch.float16
        self._further = None if gathered else self._columns()

    @property
    def further(self) -> Tensor | None:
        """The columns (parts·P·r, out) behind the weight; None if factors are not further inputs."""
        return None if self._further is None else self._further[1]

    def _columns(self) -> tuple[Tensor, Tensor]:
        """Return B (in, parts·P·r), and A (parts·P·r, out) with zeros outside each part's own outputs."""
        pairs, parts, rank, inputs = self.b.shape
        blocks = self.a.new_zeros(parts, pairs * rank, self.a.shape[2])
        first = 0
        for index, end in enumerate(self.ends.tolist()):
            blocks[index, :, first:end] = self.a[:, :, first:end].flatten(0, 1)
            first = end
        return self.b.transpose(0, 1).reshape(parts * pairs * rank, inputs).T, blocks.flatten(0, 1)

    def add(self, y: Tensor, x: Tensor, rows: RowState) -> None:
        """Add s·σ/√r·A(Bᵀx) to every row."""
        if self.bits is not None:
            a, b = self.bits
            member_rows.add_lowrank(bits(y), bits(x), a=a, b=b, ends=self.ends, pairs=rows.pairs, scales=rows.scales)
            return
        if self._further is not None:
            pairs, parts, rank, _ = self.b.shape
            inner, outer = self._further
            own = rows.owned(pairs, rank, x)
            y.addmm_(((x @ inner).view(-1, parts, pairs * rank) * own[:, None]).flatten(1), outer)
            return
        own_pair, scales = rows.on(y.device)
        first = 0
        for index, end in enumerate(self.ends.tolist()):
            dots = torch.bmm(self.b[own_pair, index].float(), x[:, :, None].float()) * scales[:, None, None]
            outputs = self.a[own_pair, :, first:end].float()
            y[:, first:end] += torch.bmm(dots.transpose(1, 2), outputs)[:, 0].to(y.dtype)
            first = end


class LinearGroup:
    """Linear layers with the same input as one product, plus each row's own perturbation.

    ``noise`` is that of the job in flight.
    """

    def __init__(self, parts: list[Part], inputs: int, *, state: RowState, form: ProductForm) -> None:
        self.parts, self.inputs, self.state = parts, inputs, state
        self.ends = np.cumsum([part.outputs for part in parts]).astype(np.int32)
        self.weight = LiveWeight(form)
        self.noise: GroupNoise | None = None
        self._input: Tensor | None = None
        self._outputs: tuple[Tensor, ...] = ()
        self._left = 0
        self._widened_by: GroupNoise | None = None

    def wide(self, further: int) -> Tensor:
        """Return the weight with the columns of the members of the job in flight, (out, in + further)."""
        wide = self.weight.widened(further)
        if self._widened_by is not self.noise:
            assert isinstance(self.noise, Factors)
            assert self.noise.further is not None
            wide[:, self.inputs : self.inputs + len(self.noise.further)] = self.noise.further.T
            self._widened_by = self.noise
        return wide

    def set(self, weight: Tensor) -> None:
        """Set all layers' weights (out, in), and the current values of their biases."""
        some = next((part.bias for part in self.parts if part.bias is not None), None)
        biases = [] if some is None else [some.new_zeros(p.outputs) if p.bias is None else p.bias for p in self.parts]
        self.weight.set(weight, torch.cat(biases).detach() if biases else None)

    def part(self, x: Tensor, index: int) -> Tensor:
        """Return layer ``index``'s output for ``x``; the group computes once per input."""
        if x is not self._input:
            outputs = self.whole(x).split([part.outputs for part in self.parts], -1)
            self._input, self._outputs, self._left = x, outputs, len(self.parts)
        y = self._outputs[index]
        self._left -= 1
        if self._left == 0:
            self._input, self._outputs = None, ()
        return y

    def whole(self, x: Tensor) -> Tensor:
        """Return all layers' outputs for ``x``, concatenated."""
        y = self.weight(x)
        if self.state.active:
            self._noise_of(y.numel() // y.shape[-1]).add(
                y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]).contiguous(), self.state
            )
        return y

    def opened(self, x: Tensor) -> tuple[Tensor, Terms]:
        """Return the product for ``x`` (rows, in), and the terms that the compiled pass after it has to add."""
        if self.compiled:
            return self.weight(x), self.terms(len(x))
        return self.whole(x), _no_terms(len(x), x.dtype)

    @property
    def compiled(self) -> bool:
        """Whether compiled passes can add what perturbs the rows of the pass in flight."""
        return not self.state.active or isinstance(self.noise, Factors)

    def terms(self, count: int) -> Terms:
        """Return the terms that compiled passes add to ``count`` rows: factors, column ends, pairs and scales."""
        if not self.state.active:
            assert self.weight.dtype is not None
            return _no_terms(count, self.weight.dtype)
        factors = self._noise_of(count)
        assert isinstance(factors, Factors)
        assert factors.bits is not None
        return Terms(*factors.bits, self.ends, self.state.pairs, self.state.scales)

    def _noise_of(self, count: int) -> GroupNoise:
        if self.state.pairs.size != count:
            raise AssertionError(f"{self.parts[0].name}: {count} rows, {self.state.pairs.size} expected")
        assert self.noise is not None
        return self.noise


@lru_cache(maxsize=16)
def _no_terms(count: int, dtype: torch.dtype) -> Terms:
    """Return the terms of ``count`` rows of the unperturbed model."""
    a, b = torch.zeros(1, 1, 1, dtype=dtype), torch.zeros(1, 1, 1, 1, dtype=dtype)
    return Terms(bits(a), bits(b), np.zeros(1, np.int32), np.zeros(count, np.int32), np.zeros(count, np.float32))


class PerturbedLinear(nn.Module):
    """Replaces an ``nn.Linear`` or ``Conv1D`` of the model; the weight of the product belongs to its group.

    ``parameters`` are the plain layer's own, if they are kept beside the group's.
    """

    def __init__(self, group: LinearGroup, index: int, parameters: Mapping[str, nn.Parameter] | None = None) -> None:
        super().__init__()
        self.group, self.index = group, index
        for name, parameter in (parameters or {}).items():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return this layer's outputs (…, outputs) for ``x`` (…, inputs), each row with its member's perturbation."""
        return self.group.part(x, self.index)


def replace_layers(
    model: Any, parts: list[Part], inputs: int, *, state: RowState, form: ProductForm, keep: bool = False
) -> LinearGroup:
    """Replace layers of ``model`` by one group; with ``keep`` their parameters stay the model's."""
    group = LinearGroup(parts, inputs, state=state, form=form)
    for index, part in enumerate(parts):
        own = dict(model.get_submodule(part.name).named_parameters()) if keep else None
        replace_module(model, part.name, PerturbedLinear(group, index, own))
    return group


def group_of(layers: Sequence[nn.Module]) -> LinearGroup | None:
    """Return the group that consists of exactly these layers in order; None if there is none."""
    first = layers[0]
    if not isinstance(first, PerturbedLinear) or len(layers) != len(first.group.parts):
        return None
    own = [layer.index for layer in layers if isinstance(layer, PerturbedLinear) and layer.group is first.group]
    return first.group if own == list(range(len(layers))) else None


def input_width(layer: nn.Module) -> int | None:
    """Return the input width of a linear layer; None for any other module."""
    if isinstance(layer, PerturbedLinear):
        return layer.group.inputs
    return layer.in_features if isinstance(layer, nn.Linear) else None


def joined(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """Return the concatenated outputs of linear layers with the same input; without a copy if they form a group."""
    group = group_of(layers)
    if group is not None:
        return group.whole(x)
    return torch.cat([layer(x) for layer in layers], -1)
