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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from seedtune.engines.transformers.cpu_kernels import products as kernels
from seedtune.errors import ProductsError
from seedtune.numerics.machine import processor

VERSIONS = {"fma32": "fma32/1", "bf16dot": "bf16dot/1", "library": "library"}
"""Kind → its name in the ledger.  A kind whose bits change gets another number."""

ATTENTION = "lanes32/1"
"""Attention, norms and dot products of low-rank terms, if compiled: sums in 32 lanes, on every CPU."""

LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Environment variables that make a library use fewer instructions than the processor has."""


@dataclass(frozen=True, slots=True)
class ForwardArithmetic:
    """Everything that decides the bits of a forward pass, besides weights and prompts."""

    products: str
    attention: str
    device: str
    library: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """The products as the setting names them."""
        return self.products.partition("/")[0]

    def to_json(self) -> dict[str, Any]:
        """Return the entry for the ledger."""
        told = {"products": self.products, "attention": self.attention, "device": self.device}
        return told if self.library is None else {**told, "library": dict(self.library)}

    def line(self) -> str:
        """Return a line for display: the kind with its tile of rows × outputs, and the hardware."""
        if self.library is None:
            tile = kernels.tile_of("fma32" if self.kind == "fma32" else "bf16dot")
            return f"{self.kind} {tile} ({processor.vector_name()})"
        where = f"on {self.device}" if self.device != "cpu" else self.library["instructions"]
        return f"library ({self.library['name']} {self.library['version']}, {where})"


def available(dtype: torch.dtype, device: torch.device) -> tuple[str, ...]:
    """Return the kinds available here, in the order in which ``auto`` prefers them."""
    ours = tuple(kind for kind, lacking in _LACKING.items() if lacking(dtype, device) is None)
    tiles = dtype == torch.bfloat16 and device.type == "cpu" and "amx-bf16" in processor.features()
    return ("library", *ours) if tiles else (*ours, "library")


def resolve(wanted: str, dtype: torch.dtype, device: torch.device) -> ForwardArithmetic:
    """Return the arithmetic that a setting selects; ProductsError names why a kind is unavailable, and the others."""
    can = available(dtype, device)
    kind = can[0] if wanted == "auto" else wanted
    if kind not in can:
        raise ProductsError(
            f"transformers.products={wanted} {_LACKING[kind](dtype, device)}. Use transformers.products=auto, or one "
            f"of: {', '.join(can)}."
        )
    compiled = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    library = library_of(device) if kind == "library" else None
    return ForwardArithmetic(VERSIONS[kind], ATTENTION if compiled else "library", device_name(device), library)


def _no_dot(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return the missing requirement of bf16dot, if any."""
    if device.type != "cpu":
        return f"is for a CPU, but the device is {device}"
    if dtype != torch.bfloat16:
        return f"multiplies bfloat16, but the model runs in {_named(dtype)} (transformers.dtype)"
    if not kernels.available("bf16dot", bfloat16=True):
        return f"needs AVX512-BF16, and this processor's vectors are: {processor.vector_name()}"
    return None


def _no_fma(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return the missing requirement of fma32, if any."""
    if device.type != "cpu":
        return f"is for a CPU, but the device is {device}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"computes in float32 and bfloat16, but the model runs in {_named(dtype)} (transformers.dtype)"
    if not kernels.available("fma32", bfloat16=dtype == torch.bfloat16):
        return f"needs AVX2 with FMA, or NEON, and this processor's vectors are: {processor.vector_name()}"
    return None


_LACKING: dict[str, Callable[[torch.dtype, torch.device], str | None]] = {"bf16dot": _no_dot, "fma32": _no_fma}
"""Our own kinds, the fastest first, and why each is unavailable."""


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
        "instructions": _instructions(),
        **limits,
        "threads": torch.get_num_threads(),
    }


def _instructions() -> str:
    """Return torch's own instructions, and the widest of the processor, from which torch's libraries choose."""
    return f"{torch.backends.cpu.get_cpu_capability()} on {processor.vector_name()}"


_LIBRARIES = {
    "MKL": r"Math Kernel Library Version (\S+?)(?:-Product|\s)",
    "oneDNN": r"MKL-DNN v(\S+)",
    "BLAS": r"BLAS_INFO=(?!mkl)(\w+)",
}


def libraries_in(told: str) -> dict[str, str]:
    """Return the versions of the libraries that torch reports it was built with."""
    found = {name: re.search(pattern, told) for name, pattern in _LIBRARIES.items()}
    return {name: match[1] for name, match in found.items() if match is not None}
