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
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seedtune.engines.transformers.gpu_kernels import layer_launches, layer_triton
from seedtune.numerics.kernels import gpu, gpu_launch, gpu_triton

POINTERS = ("out", "weights", "theta", "anchor", "table", "a", "b", "steps", "terms", "sums", "bits")
INTEGERS = ("n", "pieces", "updates", "rows", "cols", "stride", "k0", "k1", "tag", "pair", "generation", "shared_noise")
ALIGNED = {*POINTERS, "n", "rows", "cols", "x", "weight", "q", "qkv", "cos", "sin", "keys", "values", "time"} - {"b"}
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


BY_VALUE = {
    **dict.fromkeys(("eps", "largest", "scale", "softcap"), "fp32"),
    **dict.fromkeys(("width", "out_step", "x_step", "columns", "pad", "time", "step", "window"), "i32"),
}


def layer_cases() -> Iterator[tuple[str, dict[str, str], dict[str, object]]]:
    """The same of a decode step's kernels, whose products may be fused, for Qwen2.5-1.5B and for the widest tiles."""
    names = ("out", "x", "weight", "b", "q", "qkv", "cos", "sin", "q_norm", "k_norm", "keys", "values")
    types = {**dict.fromkeys(names, "*bf16"), "pairs": "*i64", "scales": "*fp32", "places": "*i64", **BY_VALUE}
    for kind, parts, rank in ((0, 3, 1), (0, 3, 4), (1, 1, 1), (2, 1, 1)):
        terms = 1 << (parts * rank - 1).bit_length()
        tile = {"TERMS": terms, "COLUMNS": 16 * rank, "BLOCK": min(1024, layer_launches.MOST_TILE // terms)}
        yield "product_inputs", types, {"KIND": kind, "MEMBERS": True, "PARTS": parts, "RANK": rank, **tile}
    yield "turn_and_append", types, {"HEADS": 12, "KV_HEADS": 2, "DIM": 128, "HALF": 64, "NORMED": True}
    for dim in (128, 256):
        shape = {"GROUP": 6, "DIM": dim, "WIDTH": dim, "QUERIES": 16}
        yield "attend", types, {**shape, "CAPPED": True, "TIME": layer_launches.TIME}


TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


def compiled(
    kernel: Any, known: dict[str, str], constants: dict[str, object], *, target: GPUTarget, fusion: bool
) -> dict[str, Any]:
    signature = {p: "constexpr" if p in constants else known[p] for p in kernel.arg_names}
    where = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    aligned = {where[p]: [["tt.divisibility", 16]] for p in kernel.arg_names if p in ALIGNED}
    source = ASTSource(kernel, signature, {where[p]: value for p, value in constants.items()}, aligned)
    return triton.compile(source, target=target, options={"enable_fp_fusion": fusion}).asm


def of_noise(types: dict[str, str]) -> dict[str, str]:
    """Types of all arguments of the kernels of noise and updates."""
    known = dict.fromkeys(POINTERS, "*fp32") | dict.fromkeys(INTEGERS, "i32") | {"first": "i64", "at0": "i64"}
    return known | {"at1": "i64", "sigma": "fp32", "steps": "*i32", "terms": "*i32", "sums": "*i64"} | types


def disassembled(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        return subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout


def spilled(code: dict[str, Any]) -> int:
    """Bytes of local memory, or registers that are spilled."""
    if "amdgcn" in code:
        found = re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", code["amdgcn"])
    else:
        found = re.findall(r"(?:STACK|LOCAL):(\d+)", disassembled(code["cubin"], "-res-usage"))
    assert len(found) == 2
    return sum(map(int, found))


def report(code: dict[str, Any]) -> tuple[int, int, int]:
    """(fused multiply-adds of floats, float instructions that flush subnormals, spilled bytes or registers)."""
    if "amdgcn" in code:
        text = code["amdgcn"]
        assert "s_endpgm" in text
        kept = re.findall(r"float_denorm_mode_32\s+(\d)", text)
        assert kept
        return len(re.findall(r"\bv_(?:pk_)?(?:fma|mad|fmac)\w*_f32", text)), kept.count("0"), spilled(code)
    text = disassembled(code["cubin"], "-sass")
    assert "EXIT" in text
    return len(re.findall(r"\bFFMA", text)), len(re.findall(r"\bF(?:ADD|MUL|FMA)\S*\.FTZ", text)), spilled(code)


def main() -> int:
    blind = {"sm_90", "gfx942"}
    for name, target in TARGETS.items():
        for kernel, types, constants in cases():
            if name != "sm_90" and "bfloat16" not in constants.values():
                continue  # compiling and reading take a second each
            body, known = getattr(gpu_triton, kernel), of_noise(types)
            found = report(compiled(body, known, constants, target=target, fusion=False))
            print("{} {} {} {}: fused {}, flushed {}, spilled {}".format(name, kernel, types, constants, *found))
            if (
                kernel == "perturb"
                and name in blind
                and report(compiled(body, known, constants, target=target, fusion=True))[0]
            ):
                blind.remove(name)
        for kernel, types, constants in layer_cases():
            code = compiled(getattr(layer_triton, kernel), types, constants, target=target, fusion=True)
            print(f"{name} layer {kernel} {constants}: spilled {spilled(code)}")
    return len(blind)


if __name__ == "__main__":
    sys.exit(main())
