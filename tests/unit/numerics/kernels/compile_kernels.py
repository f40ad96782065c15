"""Compiles the Triton kernels for GPUs that need not be there and says what the machine code holds, a line each.

Run by test_gpu.py in a process of its own, because a process either compiles or interprets. Exits with 1 if
the check itself is blind: a kernel compiled with fusion must show fused multiply-adds.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seedtune.numerics.kernels import gpu, gpu_launch, gpu_triton

POINTERS = ("out", "weights", "theta", "anchor", "table", "a", "b", "steps", "terms", "sums", "bits")
INTEGERS = ("n", "pieces", "updates", "rows", "cols", "stride", "k0", "k1", "tag", "pair", "generation", "shared_noise")
ALIGNED = {*POINTERS, "n", "rows", "cols"} - {"b"}
TYPES = {"float32": "*fp32", "bfloat16": "*i16", "float16": "*i16"}
RUN = {"SKIP": 0, "BLOCKS": gpu_launch.BLOCKS}
TILE = {"ROWS": gpu.ROWS, "COLS": gpu.COLS}


def cases() -> Iterator[tuple[str, dict[str, str], dict[str, object]]]:
    """(kernel, types of the pointers that vary, compile-time constants): what has the most code and registers.

    Left out is what does less of the same: no decay, no subspaces, elements that need no rounding.
    """
    yield "fill", {"out": "*fp32"}, RUN | {"SKIP": 3}
    yield "keep_rows", {"out": "*fp32"}, RUN | {"RANK": 2, "SUBSPACES": 4}
    yield "mix", {"bits": "*i16"}, {"MASK": (1 << 16) - 1, "STEPS": gpu.MIX_STEPS, "BLOCK": gpu.MIX_BLOCK}
    for source, out, subspaces in (("float32", "bfloat16", 4), ("float16", "float16", 1)):
        types = {"weights": TYPES[source], "out": TYPES[out]}
        yield "perturb", types, RUN | {"WEIGHTS": source, "OUT": out, "DRAW": True, "SUBSPACES": subspaces}
    for kind, pointer in TYPES.items():
        types, constants = {"theta": pointer, "anchor": pointer}, {"KIND": kind, "ANCHOR": kind, "DECAY": True}
        yield "update_gaussian", types, RUN | constants | {"SUBSPACES": 3}
        yield "update_lowrank", types, TILE | constants | {"RANK": 1, "ALIGNED": True}
        yield "update_flipout", types, TILE | constants | {"ALIGNED": True, "COLS": gpu.FLIPOUT_COLS}
    unaligned = {"ALIGNED": False, "COLS": gpu.UNALIGNED_COLS}
    yield "update_lowrank", types, TILE | constants | unaligned | {"RANK": 2}
    yield "update_flipout", types, TILE | constants | unaligned


def compiled(name: str, types: dict[str, str], constants: dict[str, object], *, arch: int, fusion: bool) -> bytes:
    kernel = getattr(gpu_triton, name)
    known = dict.fromkeys(POINTERS, "*fp32") | dict.fromkeys(INTEGERS, "i32") | {"first": "i64", "at0": "i64"}
    known |= {"at1": "i64", "sigma": "fp32", "steps": "*i32", "terms": "*i32", "sums": "*i64"} | types
    signature = {p: "constexpr" if p in constants else known[p] for p in kernel.arg_names}
    where = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    aligned = {where[p]: [["tt.divisibility", 16]] for p in kernel.arg_names if p in ALIGNED}
    source = ASTSource(kernel, signature, {where[p]: value for p, value in constants.items()}, aligned)
    target, options = GPUTarget("cuda", arch, 32), {"enable_fp_fusion": fusion}
    return triton.compile(source, target=target, options=options).asm["cubin"]


def disassembled(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        return subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout


def report(cubin: bytes) -> tuple[int, int, int]:
    """(fused multiply-adds of floats, float instructions that flush subnormals, bytes of local memory)."""
    code, usage = disassembled(cubin, "-sass"), disassembled(cubin, "-res-usage")
    assert "EXIT" in code
    local = [int(number) for number in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)]
    assert len(local) == 2
    return len(re.findall(r"\bFFMA", code)), len(re.findall(r"\bF(?:ADD|MUL|FMA)\S*\.FTZ", code)), sum(local)


def main() -> int:
    blind = True
    for arch in (80, 90):
        for name, types, constants in cases():
            if arch == 80 and "bfloat16" not in constants.values():
                continue  # compiling and reading take a second each
            cubin = compiled(name, types, constants, arch=arch, fusion=False)
            found = "fused {}, flushed {}, local bytes {}".format(*report(cubin))
            print(f"sm_{arch} {name} {types} {constants}: {found}")
            if name == "perturb" and blind:
                blind = report(compiled(name, types, constants, arch=arch, fusion=True))[0] == 0
    return int(blind)


if __name__ == "__main__":
    sys.exit(main())
