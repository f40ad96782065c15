"""The instructions of this processor, as numba compiles for it.

``NUMBA_CPU_NAME`` alone changes the processor that code is scheduled for, and keeps the instructions of this one;
``NUMBA_CPU_FEATURES`` (or the name ``generic``) changes the instructions, too.
"""

from __future__ import annotations

import platform
from functools import cache

import numba as nb
from llvmlite import binding

VECTORS = {
    "AVX512-BF16": {"avx512f", "avx512bw", "avx512vl", "avx512bf16"},
    "AVX-512": {"avx512f", "avx512bw", "avx512vl"},
    "AVX2": {"avx2", "fma"},
    "NEON": {"neon"},
}
"""Vectors that the kernels use, the widest first, and the features they need."""


def features() -> frozenset[str]:
    """Return LLVM's names of usable features: "avx2", "fma", "avx512f", "avx512bf16", "amx-bf16", "neon"."""
    return _features(nb.config.CPU_NAME, nb.config.CPU_FEATURES)


def vector_name() -> str:
    """Return the widest vectors that the kernels use here: one of `VECTORS`, or ``none``."""
    found = features()
    return next((name for name, needed in VECTORS.items() if needed <= found), "none")


@cache
def _features(name: str | None, flags: str | None) -> frozenset[str]:
    """Return the features of this processor, or of another that numba was set to compile for."""
    if flags is not None:
        return _compiled_for(name or binding.get_host_cpu_name(), flags)
    try:
        found = {feature for feature, there in binding.get_host_cpu_features().items() if there}
    except RuntimeError:  # LLVM cannot detect features on this system
        found = set()
    return frozenset(found | _always())


def _always() -> set[str]:
    """Return the features of every processor of this architecture."""
    return {"neon"} if platform.machine() in ("aarch64", "arm64") else set()


_PROBES = {
    "avx2": ("vpaddd\t%ymm", "<8 x i32> @f(<8 x i32> %a) #0 { %c = add <8 x i32> %a, %a\n ret <8 x i32> %c }"),
    "fma": (
        "vfmadd",
        "float @f(float %a) #0 { %c = call float @llvm.fma.f32(float %a, float %a, float %a)\n ret float %c }\n"
        "declare float @llvm.fma.f32(float, float, float)",
    ),
    "avx512f": ("zmm", "<16 x float> @f(<16 x float> %a) #0 { %c = fadd <16 x float> %a, %a\n ret <16 x float> %c }"),
    "avx512bw": ("vpaddb\t%zmm", "<64 x i8> @f(<64 x i8> %a) #0 { %c = add <64 x i8> %a, %a\n ret <64 x i8> %c }"),
    "avx512vl": (
        "vcvtudq2ps\t%ymm",
        "<8 x float> @f(<8 x i32> %a) #0 { %c = uitofp <8 x i32> %a to <8 x float>\n ret <8 x float> %c }",
    ),
    "avx512bf16": (
        "vcvtneps2bf16\t%zmm",
        "<16 x bfloat> @f(<16 x float> %a) #0 { %c = fptrunc <16 x float> %a to <16 x bfloat>\n ret <16 x bfloat> %c }",
    ),
}
"""Feature → text that a small function's machine code contains only with the feature, and the function."""


def _compiled_for(name: str, flags: str) -> frozenset[str]:
    """Return the features that LLVM uses for a processor of that name with those flags; numba uses no others."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset(_always())
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu=name, features=flags, opt=1)
    return frozenset(feature for feature, (word, code) in _PROBES.items() if word in _assembled(machine, code))


def _assembled(machine: binding.TargetMachine, code: str) -> str:
    attributes = 'attributes #0 = { "min-legal-vector-width"="512" }'
    module = binding.parse_assembly(f"define {code}\n{attributes}\n")
    module.triple = binding.get_default_triple()
    text: str = machine.emit_assembly(module)
    return text
