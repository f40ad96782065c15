"""The inner loops of compiled passes keep everything in registers, for the vectors of this processor and for AVX2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seedtune.numerics.machine import processor
from vectors import AVX2

PROGRAM = """
import json
import numba as nb
from numba import types as t
from assembly import spills, vector_loops, written
from seedtune.engines.transformers.cpu_kernels import attention, products, reductions, rms_norm, rotary, silu_gate
from seedtune.numerics.machine import processor

def array(element, dimensions):
    return t.Array(element, dimensions, "C")

@nb.njit
def dot(x, y):
    return reductions.dot_in_lanes(x, x.ctypes.data, y.ctypes.data, x.size)

f, i = t.float32, t.intp
found = {}
for e in (t.uint16, f):
    read = t.uint32 if e == t.uint16 else f
    rows = {
        "fma32": (products._fma_share, array(e, 2), array(read, 2), array(e, 3), array(f, 1), i, i),
        "attention": (attention._attend, array(e, 2), array(e, 2), array(e, 4), array(e, 4), i, i, i,
                      t.NamedTuple((f, i, f), attention.AttentionOptions), t.UniTuple(array(f, 2), 3), t.boolean),
        "norm": (rms_norm.norm_row, array(e, 1), array(e, 1), array(e, 1), f),
        "gate": (silu_gate.gate_row, array(e, 1), array(e, 1)),
        "rotary": (rotary.rotate_row, array(e, 2), array(e, 1), array(e, 1), i),
        "dot": (dot, array(e, 1), array(e, 1)),
    }
    if products.available("bf16dot", bfloat16=e == t.uint16):
        rows["bf16dot"] = (products._dot_share, array(e, 2), array(t.uint32, 2), array(t.uint32, 3), array(f, 1), i, i)
    for name, (function, *signature) in rows.items():
        loops = vector_loops(function, *signature)
        # The gate's many constants may be read from memory, as long as nothing is put there.
        count = written if name == "gate" else spills
        found[f"{name} {e}"] = [len(loops), max(map(count, loops))]
print(json.dumps([processor.vector_name(), found]))
"""


def inspected(**more: str) -> tuple[str, dict[str, list[int]]]:
    """Vectors, and for each pass how many vector loops it has and the spills of the worst of them."""
    path = os.pathsep.join([str(Path(__file__).parents[4]), *sys.path])
    env = {**os.environ, "PYTHONPATH": path, **more}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    vectors, found = json.loads(done.stdout)
    return vectors, found


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True], ids=["own", "avx2"])
@pytest.mark.skipif(processor.vector_name() not in ("AVX2", "AVX-512", "AVX512-BF16"), reason="reads x86 assembly")
def test_inner_loops_keep_their_numbers_in_registers(narrow: bool) -> None:
    vectors, found = inspected(**(AVX2 if narrow else {}))
    assert vectors == ("AVX2" if narrow else processor.vector_name())
    assert all(loops > 0 for loops, _ in found.values()), found
    assert {name: worst for name, (_, worst) in found.items() if worst} == {}
