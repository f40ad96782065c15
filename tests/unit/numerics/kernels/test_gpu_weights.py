"""Weights in torch tensors under the Triton kernels are those in numpy arrays, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from seedtune.engines.transformers.members.weight_format import as_tensor
from seedtune.numerics import noise
from seedtune.numerics.kernels import gpu
from seedtune.numerics.noise import Noise
from seedtune.numerics.rounding import nearest
from seedtune.numerics.weights import Weights, factors, signs
from seedtune.types import Decay, Member, Term, Update

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

MATRICES = {"w": (5, 12), "v": (3, 7)}
SHAPES = {"lowrank": MATRICES, "flipout": MATRICES, "gaussian": {"w": (5, 12), "b": (9,), "e": (2, 3, 4), "s": ()}}
KINDS = [
    ("lowrank", "float32", 1),
    ("lowrank", "bfloat16", 3),
    ("gaussian", "bfloat16", 1),
    ("gaussian", "float16", 3),
    ("flipout", "float16", 1),
    ("flipout", "float32", 1),
]
"""Perturbation, type and subspaces; every kernel meets every type in `invariant/test_kernels_agree.py`."""

UPDATES = (Update(1, (Term(1, 0, 0.1), Term(0, 2, -0.2))), Update(2, (Term(2, 1, 0.3),), Decay(l2=0.1)))


def pair(perturbation: str, dtype: str, subspaces: int = 1) -> tuple[Weights, Weights]:
    """The same weights in numpy and on the device."""
    scheme = Noise(
        7,
        perturbation,
        rank=2,
        weights_dtype="float32" if dtype == "float32" else "model",
        subspaces=subspaces,
        shared_noise=2,
    )
    base = {
        name: np.asarray(noise.normals(noise.Address(noise.key(1, name)), 0, int(np.prod(shape)))).reshape(shape)
        for name, shape in SHAPES[perturbation].items()
    }
    arrays = {name: nearest(a.ravel(), dtype).reshape(a.shape).copy() for name, a in base.items()}
    tensors = {name: as_tensor(a.copy()).to(DEVICE) for name, a in arrays.items()}
    there = Weights(tensors, scheme, kernels=gpu, anchor=lambda name: torch.from_numpy(base[name]).to(DEVICE))
    return Weights(arrays, scheme, anchor=lambda name: base[name]), there


@pytest.mark.parametrize(("perturbation", "dtype", "subspaces"), KINDS)
def test_both_kinds_of_weights_move_alike(perturbation: str, dtype: str, subspaces: int, tmp_path: Path) -> None:
    here, there = pair(perturbation, dtype, subspaces)
    assert there.fingerprint() == here.fingerprint()
    here.apply(*UPDATES)
    there.apply(*UPDATES)
    assert there.fingerprint() == here.fingerprint()
    there.save(tmp_path)
    fresh, _ = pair(perturbation, dtype)
    fresh.restore(tmp_path)
    assert fresh.fingerprint() == here.fingerprint()
    _, again = pair(perturbation, dtype)
    again.restore(tmp_path)
    assert again.fingerprint() == here.fingerprint()


@pytest.mark.parametrize(("perturbation", "subspaces"), [("gaussian", 3), ("lowrank", 1), ("flipout", 1)])
def test_both_kinds_of_weights_perturb_alike(perturbation: str, subspaces: int) -> None:
    here, there = pair(perturbation, "float32", subspaces)
    for name, array in here.tensors.items():
        out, live = np.empty(array.size, np.uint16), torch.empty(array.size, dtype=torch.bfloat16, device=DEVICE)
        here.perturb(name, Member(4, 3, -1), 0.05, out)
        there.perturb(name, Member(4, 3, -1), 0.05, live)
        assert torch.equal(as_tensor(out), live.cpu())


@pytest.mark.parametrize(
    ("perturbation", "dtype"), [("lowrank", "bfloat16"), ("gaussian", "float32"), ("flipout", "float32")]
)
def test_both_kinds_of_weights_measure_alike(perturbation: str, dtype: str) -> None:
    here, there = pair(perturbation, dtype)
    for one in (here, there):
        one.apply(*UPDATES)
    one, other = UPDATES[0].terms, UPDATES[1].terms + UPDATES[0].terms[:1]
    assert there.norm(one) == pytest.approx(here.norm(one), rel=1e-12)
    assert there.drift() == pytest.approx(here.drift(), rel=1e-12)
    assert there.cosine(one, other) == pytest.approx(here.cosine(one, other), rel=1e-12)


@pytest.mark.parametrize("subspaces", [1, 3])
def test_both_kinds_of_weights_draw_the_same_factors(subspaces: int) -> None:
    here, there = pair("lowrank", "float32", subspaces)
    for one, other in zip(factors(here, "w", [(1, 2), (3, 4)]), factors(there, "w", [(1, 2), (3, 4)]), strict=True):
        np.testing.assert_array_equal(one, other.cpu().numpy())


def test_both_kinds_of_weights_draw_the_same_signs_and_shared_normals() -> None:
    here, there = pair("flipout", "float32")
    for one, other in zip(signs(here, "w", [(1, 2), (3, 4)]), signs(there, "w", [(1, 2), (3, 4)]), strict=True):
        np.testing.assert_array_equal(one, other.cpu().numpy())
    np.testing.assert_array_equal(here.shared("w", 3, 5), there.shared("w", 3, 1).cpu().numpy())
