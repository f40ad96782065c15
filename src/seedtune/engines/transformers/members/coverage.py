"""The parameters of a model that a perturbation reaches, and why it leaves the rest unchanged."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from seedtune.engines.transformers.tracing import is_linear
from seedtune.types import Coverage

FROZEN = "frozen by the setting trainable"


def coverage_of(
    model: Any, perturbed: Collection[str], *, trainable: Collection[str], called: Collection[str]
) -> Coverage:
    """Count parameters (tied ones once) and give a reason for every pattern of names that is not perturbed.

    ``perturbed`` and ``trainable`` are parameter names, ``called`` are modules that ran in the traced pass.
    """
    modules = dict(model.named_modules())
    count, total, why = 0, 0, dict[str, str]()
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if name in perturbed:
            count += parameter.numel()
            continue
        owner = name.rpartition(".")[0]
        frozen = name not in trainable
        why.setdefault(_pattern(name), FROZEN if frozen else _reason(modules[owner], parameter, owner in called))
    return Coverage(count, total, tuple(sorted(why.items())))


def with_tied_head(coverage: Coverage, model: Any) -> Coverage:
    """Return the coverage extended by an output head tied to the input embedding (it is not among the parameters)."""
    head = model.get_output_embeddings()
    name = next((n for n, m in model.named_modules() if m is head), None)
    listed = dict(coverage.unperturbed)
    if name is not None and f"{name}.weight" not in dict(model.named_parameters()):
        listed.setdefault(f"{name}.weight", "output head tied to the input embeddings")
    return Coverage(coverage.perturbed, coverage.total, tuple(sorted(listed.items())))


def _pattern(name: str) -> str:
    """Return a parameter name with its layer numbers replaced by ``*``."""
    return ".".join("*" if piece.isdigit() else piece for piece in name.split("."))


def _reason(owner: nn.Module, parameter: Tensor, called: bool) -> str:
    if isinstance(owner, nn.Embedding):
        return "embedding"
    if parameter.ndim == 1:
        return "bias or norm (one-dimensional)"
    if is_linear(owner):
        return "linear layer not run on every token (an expert, or unused)" if not called else "tied weight"
    return f"{parameter.ndim}-dimensional tensor of {type(owner).__name__}"
