"""Versions and the device.  Without a package, or if numba does not take this numpy, nothing else can run."""

from __future__ import annotations

import importlib
import inspect

from benchmarks.gpu_check.check import Check

PACKAGES = ("torch", "triton", "transformers", "numpy", "numba", "llvmlite", "pydantic", "safetensors", "tokenizers")


def run(check: Check) -> None:
    """Say what is installed, and import what the other steps need."""
    for name in PACKAGES:
        with check.attempt(f"version {name}"):
            check.say(f"version {name}", importlib.import_module(name).__version__)
    import torch

    if not check.dry:
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device; --dry runs without one")
        p = torch.cuda.get_device_properties(0)
        check.say(
            "device",
            p.name,
            f"sm_{p.major}{p.minor}, {p.multi_processor_count} SMs, L2 {p.L2_cache_size >> 20} MiB, "
            f"{p.total_memory >> 30} GiB, shared memory of an SM {p.shared_memory_per_multiprocessor >> 10} KiB",
        )
        check.say("memory GB", p.total_memory / 1e9, "`seedtune plan --devices gpu-check.json` reads it")
    with check.attempt("varlen_attn takes", needed=False):
        from torch.nn.attention.varlen import varlen_attn

        check.say("varlen_attn takes", " ".join(inspect.signature(varlen_attn).parameters))
    check.say("torch.cuda._compile_kernel (NVRTC)", hasattr(torch.cuda, "_compile_kernel"))
    for module in ("engines.transformers.engine", "numerics.kernels.gpu_triton"):
        with check.attempt(f"import of {module}"):
            importlib.import_module(f"seedtune.{module}")
            check.say(f"import of {module}", "done")
