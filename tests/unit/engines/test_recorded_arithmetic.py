"""Which matrix products a processor has, which one a setting means, and what of it is recorded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import runs
from seedtune.engines import recorded_arithmetic
from seedtune.engines.transformers import product_choice as products
from seedtune.engines.transformers.cpu_kernels import products as kernels
from seedtune.engines.transformers.product_choice import available, resolve
from seedtune.errors import ConfigError, ProductsError
from seedtune.numerics.machine import processor

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AVX2 = frozenset({"avx2", "fma"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl"}
BF16 = AVX512 | {"avx512bf16"}
AMX = BF16 | {"amx-bf16"}
NEON = frozenset({"neon"})
OLD = frozenset({"avx"})


@pytest.fixture
def on(monkeypatch):
    """A processor with these features."""

    def choose(features: frozenset[str]) -> None:
        monkeypatch.setattr(processor, "features", lambda: features)

    return choose


# ---------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("features", "dtype", "device", "kinds"),
    [
        (BF16, torch.bfloat16, CPU, ("bf16dot", "fma32", "library")),
        (BF16, torch.float32, CPU, ("fma32", "library")),
        (AVX512, torch.bfloat16, CPU, ("fma32", "library")),
        (AVX2, torch.bfloat16, CPU, ("fma32", "library")),
        (NEON, torch.float32, CPU, ("fma32", "library")),
        (AMX, torch.bfloat16, CPU, ("library", "bf16dot", "fma32")),
        (AMX, torch.float32, CPU, ("fma32", "library")),
        (OLD, torch.bfloat16, CPU, ("library",)),
        (frozenset({"avx2"}), torch.float32, CPU, ("library",)),
        (AVX2, torch.float16, CPU, ("library",)),
        (BF16, torch.bfloat16, CUDA, ("library",)),
    ],
)
def test_the_kinds_follow_from_processor_type_and_device(on, features, dtype, device, kinds):
    on(features)
    assert available(dtype, device) == kinds


@pytest.mark.parametrize(
    ("features", "dtype", "wanted", "kind", "line"),
    [
        (BF16, torch.bfloat16, "auto", "bf16dot", "bf16dot TILE (AVX512-BF16)"),
        (BF16, torch.bfloat16, "fma32", "fma32", "fma32 TILE (AVX512-BF16)"),
        (AVX512, torch.bfloat16, "auto", "fma32", "fma32 TILE (AVX-512)"),
        (AVX2, torch.float32, "auto", "fma32", "fma32 TILE (AVX2)"),
        (NEON, torch.float32, "auto", "fma32", "fma32 TILE (NEON)"),
        (AVX2, torch.float32, "library", "library", f"library (torch {torch.__version__}, "),
        (AMX, torch.bfloat16, "auto", "library", f"library (torch {torch.__version__}, "),
    ],
)
def test_auto_takes_the_first_and_a_name_what_it_says(on, features, dtype, wanted, kind, line):
    on(features)
    found = resolve(wanted, dtype, CPU)
    assert found.kind == kind
    tile = "" if kind == "library" else str(kernels.tile_of(kind))
    assert found.line().startswith(line.replace("TILE", tile))


@pytest.mark.parametrize(
    ("features", "dtype", "device", "wanted", "message"),
    [
        (
            AVX2,
            torch.bfloat16,
            CPU,
            "bf16dot",
            r"bf16dot needs AVX512-BF16, and this processor's vectors are: AVX2\. .*fma32",
        ),
        (BF16, torch.float32, CPU, "bf16dot", r"multiplies bfloat16, but the model runs in float32 \(dtype\)"),
        (BF16, torch.bfloat16, CUDA, "bf16dot", r"is for a CPU, but the device is cuda\. .* one of: library\."),
        (BF16, torch.bfloat16, CUDA, "fma32", r"fma32 is for a CPU, but the device is cuda"),
        (BF16, torch.float16, CPU, "fma32", r"computes in float32 and bfloat16, but the model runs in float16"),
        (OLD, torch.float32, CPU, "fma32", r"products=fma32 needs AVX2 with FMA, or NEON"),
    ],
)
def test_a_kind_that_cannot_be_had_says_why_and_what_can(on, features, dtype, device, wanted, message):
    on(features)
    with pytest.raises(ProductsError, match=message) as caught:
        resolve(wanted, dtype, device)
    assert isinstance(caught.value, ConfigError)
    assert "Use products=auto" in str(caught.value)


# ------------------------------------------------------------------------------------------ what is recorded


def test_our_own_sums_record_neither_versions_nor_threads(on):
    on(AVX2)
    one = resolve("auto", torch.float32, CPU).to_json()
    on(NEON)
    other = resolve("auto", torch.float32, CPU).to_json()
    assert one == other == {"products": "fma32/1", "attention": "lanes32/1", "device": "cpu"}


def test_a_library_records_its_version_its_instructions_and_its_threads(on, monkeypatch):
    on(AVX2)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    threads = torch.get_num_threads()
    found = resolve("library", torch.float32, CPU).to_json()
    capability = torch.backends.cpu.get_cpu_capability()
    assert found["library"]["version"] == torch.__version__
    assert found["library"]["instructions"] == f"{capability} on AVX2"
    assert found["library"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert found["library"]["threads"] == threads
    assert json.loads(json.dumps(found)) == found
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert resolve("library", torch.float32, CPU).to_json() != found


def test_the_versions_of_libraries_are_read_from_what_torch_says():
    text = """PyTorch built with:
  - Intel(R) oneAPI Math Kernel Library Version 2024.2-Product Build 20240605 for Intel(R) 64 architecture applications
  - Intel(R) MKL-DNN v3.12.0 (Git Hash 80afa71049cd)
  - Build settings: BLAS_INFO=mkl, BUILD_TYPE=Release
"""
    assert products.libraries_in(text) == {"MKL": "2024.2", "oneDNN": "3.12.0"}
    assert products.libraries_in("  - Build settings: BLAS_INFO=accelerate, ") == {"BLAS": "accelerate"}


def test_a_graphics_card_is_named_by_its_architecture(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert products.device_name(torch.device("cuda:1")) == "cuda sm_90"
    assert products.device_name(CPU) == "cpu"
    found = resolve("auto", torch.bfloat16, CUDA).to_json()
    assert found["device"] == "cuda sm_90"
    assert "threads" not in found["library"]


def test_words_name_everything_that_is_recorded():
    library = {"name": "torch", "version": "2.13.0", "oneDNN": "3.12.0", "threads": 2}
    one = {"products": "library", "attention": "library", "device": "cpu", "library": library}
    two = {"products": "fma32/1", "attention": "lanes32/1", "device": "cpu"}
    assert recorded_arithmetic.summary(one) == (
        "products library, attention library, cpu, by torch 2.13.0 (oneDNN 3.12.0, threads 2)"
    )
    assert recorded_arithmetic.summary({"workers": {"vllm": one, "transformers": two}}) == (
        f"transformers: products fma32/1, attention lanes32/1, cpu; vllm: {recorded_arithmetic.summary(one)}"
    )
    assert recorded_arithmetic.summary({}) == "not recorded"
    assert (recorded_arithmetic.kind(two), recorded_arithmetic.kind({})) == ("fma32", "")


def test_of_several_engines_those_are_compared_that_both_have():
    one, two = {"products": "library"}, {"products": "fma32/1"}
    assert recorded_arithmetic.same({"workers": {"a": one}}, {"workers": {"a": one, "b": two}})
    assert not recorded_arithmetic.same({"workers": {"a": one}}, {"workers": {"a": two, "b": two}})


# -------------------------------------------------------------------------------------------- the processor


SHOW = """
import json
from seedtune.numerics.machine import processor
known = {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512bf16", "neon"}
print(json.dumps([sorted(processor.features() & known), processor.vector_name()]))
"""


def seen(**variables: str) -> list:
    """Features and the name of the vectors, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=runs.environment(**variables), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


WIDE = ["avx2", "avx512bw", "avx512f", "avx512vl", "fma"]
X86 = pytest.mark.skipif(processor.platform.machine() != "x86_64", reason="these processors are x86")


@X86
@pytest.mark.parametrize(
    ("name", "features", "vectors"),
    [
        ("znver3", ["avx2", "fma"], "AVX2"),
        ("knl", ["avx2", "avx512f", "fma"], "AVX2"),
        ("skylake-avx512", WIDE, "AVX-512"),
        ("znver4", sorted([*WIDE, "avx512bf16"]), "AVX512-BF16"),
        ("sandybridge", [], "none"),
    ],
)
def test_numba_compiles_for_another_processor_if_it_is_told_so(name, features, vectors):
    assert seen(NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES="") == [features, vectors]


@X86
def test_a_feature_can_be_taken_away_and_a_name_alone_takes_none_away(monkeypatch):
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    monkeypatch.delenv("NUMBA_CPU_FEATURES", raising=False)  # the suite itself may run as for another processor
    here = seen()
    assert seen(NUMBA_CPU_NAME="znver3") == here  # numba goes on using this processor's own instructions
    assert seen(NUMBA_CPU_NAME="znver4", NUMBA_CPU_FEATURES="-avx512bf16")[1] == "AVX-512"
    assert seen(NUMBA_CPU_NAME="generic") == [[], "none"]
