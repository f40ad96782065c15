"""The processor that compiled kernels are made for: its instructions, as LLVM names them."""

from __future__ import annotations

import platform
from functools import cache

import numba as nb
from llvmlite import binding


@cache
def features() -> frozenset[str]:
    """Names of the instruction sets that numba compiles for: those of ``NUMBA_CPU_FEATURES``, or this processor's."""
    given = nb.config.CPU_FEATURES
    if given is not None:
        return frozenset(name[1:] for name in given.split(",") if name.startswith("+"))
    return frozenset(name for name, has in binding.get_host_cpu_features().items() if has)


@cache
def vector_name() -> str:
    """The widest vectors that the kernels use here: ``AVX512-BF16``, ``AVX-512``, ``AVX2``, ``NEON`` or ``none``."""
    has = features()
    if {"avx512f", "avx512bw", "avx512vl"} <= has:
        return "AVX512-BF16" if "avx512bf16" in has else "AVX-512"
    if {"avx2", "fma"} <= has:
        return "AVX2"
    return "NEON" if platform.machine() in ("aarch64", "arm64") else "none"
