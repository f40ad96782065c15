"""How matrix products are computed here: the kinds this processor has, the one a setting selects, the record of it.

    fma32     every output is one float32 chain of fused multiply-adds over ascending inputs: equal bits on every
              processor that has them, for any number of rows and threads
    bf16dot   AVX512-BF16 dot products, in our own panels
    library   torch's own product (oneDNN, MKL, Accelerate, cuBLAS)

The choice is a table over device, type and processor.  It does not depend on timing, so that two runs of one
configuration on one machine never diverge.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from seedtune.engines.transformers.cpu_kernels import products as kernels
from seedtune.engines.transformers.device import dtype_name, has_kernels
from seedtune.errors import ProductsError
from seedtune.numerics.machine import processor

AnyProduct = kernels.ProductKind | Literal["library"]
VERSIONS: dict[AnyProduct, str] = {"fma32": "fma32/1", "bf16dot": "bf16dot/1", "library": "library"}
"""Kind → its name in the ledger.  A kind whose bits change gets another number."""

ATTENTION = "lanes32/1"
"""Attention, norms and dot products of low-rank terms, if compiled: sums in 32 lanes, on every CPU."""

LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Environment variables that make a library use fewer instructions than the processor has."""


@dataclass(frozen=True, slots=True)
class ForwardArithmetic:
    """Everything that decides the bits of a forward pass, besides weights and prompts."""

    kind: AnyProduct
    attention: str
    device: str
    library: Mapping[str, Any] | None = None
    sizes: Mapping[str, int] | None = None
    """Rows and positions of a GPU's key-value cache: products of other rows may round otherwise."""

    def to_json(self) -> dict[str, Any]:
        """Return the entry for the ledger."""
        entry: dict[str, Any] = {"products": VERSIONS[self.kind], "attention": self.attention, "device": self.device}
        entry |= {} if self.library is None else {"library": dict(self.library)}
        return entry if self.sizes is None else {**entry, "sizes": dict(self.sizes)}

    def line(self) -> str:
        """Return a line for display: the kind with its tile of rows × outputs, and the hardware."""
        if self.kind != "library":
            return f"{self.kind} {kernels.tile_of(self.kind)} ({processor.vector_name()})"
        assert self.library is not None
        where = f"on {self.device}" if self.device != "cpu" else self.library["instructions"]
        return f"library ({self.library['name']} {self.library['version']}, {where})"


def available(dtype: torch.dtype, device: torch.device) -> tuple[AnyProduct, ...]:
    """Return the kinds available here, in the order in which ``auto`` prefers them."""
    ours: list[AnyProduct] = [kind for kind in _NEEDS if _lacking(kind, dtype, device) is None]
    tiles = dtype == torch.bfloat16 and device.type == "cpu" and "amx-bf16" in processor.features()
    return ("library", *ours) if tiles else (*ours, "library")


def resolve(wanted: str, dtype: torch.dtype, device: torch.device) -> ForwardArithmetic:
    """Return the arithmetic that a setting selects; ProductsError names why a kind is unavailable, and the others."""
    can = available(dtype, device)
    kind = next((kind for kind in can if wanted in ("auto", kind)), None)
    if kind is None:
        why = next(_lacking(own, dtype, device) for own in _NEEDS if own == wanted)
        raise ProductsError(f"products={wanted} {why}. Use products=auto, or one of: {', '.join(can)}.")
    compiled = has_kernels(device, dtype)
    library = library_of(device) if kind == "library" else None
    return ForwardArithmetic(kind, ATTENTION if compiled else "library", device_name(device), library)


@dataclass(frozen=True, slots=True)
class Needs:
    """Requirements of a kind of product."""

    dtypes: tuple[torch.dtype, ...]
    does: str
    vectors: str


_NEEDS: dict[kernels.ProductKind, Needs] = {
    "bf16dot": Needs((torch.bfloat16,), "multiplies bfloat16", "AVX512-BF16"),
    "fma32": Needs((torch.float32, torch.bfloat16), "computes in float32 and bfloat16", "AVX2 with FMA, or NEON"),
}
"""Our own kinds, the fastest first."""


def _lacking(kind: kernels.ProductKind, dtype: torch.dtype, device: torch.device) -> str | None:
    """Return the missing requirement of one of our own kinds, if any."""
    needs = _NEEDS[kind]
    if device.type != "cpu":
        return f"is for a CPU, but the device is {device}"
    if dtype not in needs.dtypes:
        return f"{needs.does}, but the model runs in {dtype_name(dtype)} (dtype)"
    if not kernels.available(kind, bfloat16=dtype == torch.bfloat16):
        return f"needs {needs.vectors}, and this processor's vectors are: {processor.vector_name()}"
    return None


def device_name(device: torch.device) -> str:
    """Return a device's name with what decides its arithmetic: "cpu", "cuda sm_90", "cuda gfx942"."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip is not None:
        return f"cuda {torch.cuda.get_device_properties(device).gcnArchName}"
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda sm_{major}{minor}"


def library_of(device: torch.device) -> dict[str, Any]:
    """Return torch and its libraries; on a CPU also instructions and threads, which decide the order of sums."""
    torch_itself = {"name": "torch", "version": str(torch.__version__)}
    if device.type != "cpu":
        runtime = {"cuda": torch.version.cuda, "hip": torch.version.hip} if device.type == "cuda" else {}
        return torch_itself | {name: version for name, version in runtime.items() if version is not None}
    limits = {name: os.environ[name] for name in LIMITS if os.environ.get(name)}
    return {
        **torch_itself,
        **libraries_in(torch.__config__.show()),
        # torch's own, and the widest of the processor, from which torch's libraries choose
        "instructions": f"{torch.backends.cpu.get_cpu_capability()} on {processor.vector_name()}",
        **limits,
        "threads": torch.get_num_threads(),
    }


_LIBRARIES = {
    "MKL": r"Math Kernel Library Version (\S+?)(?:-Product|\s)",
    "oneDNN": r"MKL-DNN v(\S+)",
    "BLAS": r"BLAS_INFO=(?!mkl)(\w+)",
}


def libraries_in(entry: str) -> dict[str, str]:
    """Return the versions of the libraries that torch reports it was built with."""
    found = {name: re.search(pattern, entry) for name, pattern in _LIBRARIES.items()}
    return {name: match[1] for name, match in found.items() if match is not None}
