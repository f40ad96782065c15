"""Where ranks keep parts of tensors, and that weights in parts are the whole weights, bit for bit; without vLLM."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seedtune.engines.transformers.members.weight_format import as_tensor
from seedtune.engines.vllm import base_model
from seedtune.engines.vllm.tensor_layout import Piece, Split, check_complete, pieces_of
from seedtune.errors import MissingExtraError, ModelError, StorageError
from seedtune.numerics import fingerprint as fp
from seedtune.numerics import noise as addressed
from seedtune.numerics.kernels import cpu, gpu
from seedtune.numerics.noise import Noise
from seedtune.numerics.slices import Run
from seedtune.numerics.tensor_file import Stored
from seedtune.numerics.weights import Weights
from seedtune.types import UNPERTURBED, Decay, Member, Term, Update

SHAPES = {
    "embed.weight": (99, 8),
    "l.0.q_proj.weight": (16, 8),
    "l.0.k_proj.weight": (4, 8),
    "l.0.v_proj.weight": (4, 8),
    "l.0.q_proj.bias": (16,),
    "l.0.k_proj.bias": (4,),
    "l.0.v_proj.bias": (4,),
    "l.0.o_proj.weight": (8, 16),
    "l.0.o_proj.bias": (8,),
    "l.0.gate_proj.weight": (12, 8),
    "l.0.up_proj.weight": (12, 8),
    "l.0.down_proj.weight": (8, 12),
    "l.0.norm.weight": (8,),
}
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def held(rank: int) -> tuple[dict[str, tuple[int, ...]], dict[str, Split]]:
    """Parameters and splits of a rank of two; keys and values are one head, which both have."""

    def half(whole: int) -> Run:
        return Run(rank * whole // 2, (rank + 1) * whole // 2, whole)

    copied = Run(0, 4, 4, rank == 0)
    parameters = {
        "embed.weight": (64, 8),  # 35 rows of the second rank and padding
        "l.0.qkv_proj.base_layer.weight": (16, 8),
        "l.0.qkv_proj.base_layer.bias": (16,),
        "l.0.o_proj.weight": (8, 8),
        "l.0.o_proj.bias": (8,),
        "l.0.gate_up_proj.weight": (12, 8),
        "l.0.down_proj.weight": (8, 6),
        "l.0.norm.weight": (8,),
    }
    splits = {
        "embed": Split((Run(0, 64, 99) if rank == 0 else Run(64, 99, 99),)),
        "l.0.qkv_proj": Split((half(16), copied, copied)),
        "l.0.o_proj": Split((Run(0, 8, 8, rank == 0),), half(16)),
        "l.0.gate_up_proj": Split((half(12), half(12))),
        "l.0.down_proj": Split((Run(0, 8, 8, rank == 0),), half(12)),
    }
    return parameters, splits


def pieces(rank: int) -> dict[str, Piece]:
    parameters, splits = held(rank)
    return pieces_of(parameters, splits, FUSED, shapes=SHAPES, first=rank == 0)


# ------------------------------------------------------------------------------------------- the map


def test_two_ranks_own_every_element_once() -> None:
    owned: dict[str, int] = {}
    seen = {name: np.zeros(shape, int) for name, shape in SHAPES.items()}
    for rank in range(2):
        for name, piece in pieces(rank).items():
            owned[name] = owned.get(name, 0) + (piece.size if piece.owned else 0)
            piece.of(seen[name])[...] += piece.owned
    assert all((count == 1).all() for count in seen.values())
    check_complete(owned, SHAPES)


def test_fused_tensors_lie_behind_each_other_in_their_parameter() -> None:
    found = pieces(1)
    assert [found[f"l.0.{name}_proj.weight"].at for name in ("q", "k", "v")] == [0, 64, 96]
    assert [found[f"l.0.{name}_proj.bias"].at for name in ("q", "k", "v")] == [0, 8, 12]
    assert found["l.0.up_proj.weight"] == Piece(Run(6, 12, 12), Run(0, 8, 8), "l.0.gate_up_proj.weight", at=48)
    assert found["embed.weight"].rows == Run(64, 99, 99)
    assert found["l.0.k_proj.weight"].parameter == "l.0.qkv_proj.base_layer.weight"


def test_a_layer_whose_inputs_are_divided_has_columns_of_every_row() -> None:
    down = pieces(1)["l.0.down_proj.weight"]
    assert (down.rows.size, down.columns, down.whole_rows, down.owned) == (8, Run(6, 12, 12), False, True)
    assert not pieces(1)["l.0.o_proj.bias"].owned


@pytest.mark.parametrize(
    ("parameter", "shape", "message"),
    [
        ("l.0.down_proj.weight", (0,), r"has the shape \(0,\), which cannot hold l.0.down_proj.weight \(8, 6\)"),
        ("l.0.o_proj.weight", (8, 16), r"cannot hold l.0.o_proj.weight \(8, 8\)"),
        ("l.0.norm.weight", (4,), "cannot hold l.0.norm.weight"),
        ("l.0.gate_up_proj.weight", (9, 8), "cannot hold l.0.up_proj.weight"),
    ],
)
def test_parameters_without_room_such_as_empty_ones_are_refused(parameter: str, shape: Any, message: str) -> None:
    parameters, splits = held(1)
    with pytest.raises(ModelError, match=message):
        pieces_of({**parameters, parameter: shape}, splits, FUSED, shapes=SHAPES, first=False)


def test_tensors_that_no_parameter_holds_are_refused() -> None:
    parameters, splits = held(0)
    del parameters["l.0.norm.weight"]
    with pytest.raises(ModelError, match=r"keeps 'l.0.norm.weight' .* under no name"):
        pieces_of(parameters, splits, FUSED, shapes=SHAPES, first=True)


def test_a_layer_of_more_parts_than_tensors_is_refused() -> None:
    parameters, splits = held(0)
    with pytest.raises(ModelError, match=r"qkv_proj has 3 parts, but 1 tensors"):
        pieces_of(parameters, splits, {"qkv_proj": ("qkv_proj",)}, shapes=SHAPES, first=True)


def test_ranks_that_together_miss_elements_are_refused() -> None:
    with pytest.raises(ModelError, match="hold 7 of the 8 elements of norm"):
        check_complete({"norm": 7}, {"norm": (8,)})


# ------------------------------------------------------------------------------------------- the divided weights

TERMS = (Term(1, 0, 0.3), Term(2, 4, -0.2))
UPDATES = (
    Update(1, TERMS),
    Update(2, (Term(2, 1, 0.1),), Decay(l2=0.1, l1=0.01)),
    Update(4, (), Decay(l2=0.2)),
)
NOISES = {
    "gaussian": Noise(7, perturbation="gaussian"),
    "gaussian-subspaces": Noise(7, perturbation="gaussian", subspaces=3),
    "lowrank": Noise(7, rank=1),
    "lowrank-rank3": Noise(7, rank=3, subspaces=2),
    "flipout": Noise(7, perturbation="flipout", shared_noise=2),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}


def base(names: Any, kind: type) -> dict[str, np.ndarray]:
    drawn = {}
    for name in names:
        flat = addressed.normals(addressed.Address(addressed.key(0, name)), 0, int(np.prod(SHAPES[name])))
        bits = (flat.view(np.uint32) >> np.uint32(16)).astype(np.uint16) if kind is np.uint16 else flat.astype(kind)
        drawn[name] = bits.reshape(SHAPES[name])
    return drawn


def divided(values: dict[str, np.ndarray], noise: Noise, *, kernels: Any = cpu, upload: Any = None) -> list[Weights]:
    made = []
    for rank in range(2):
        own = {name: piece for name, piece in pieces(rank).items() if name in values}
        parts, bases = ({name: piece.of(values[name]).copy() for name, piece in own.items()} for _ in range(2))
        made.append(Weights(parts, noise, kernels=kernels, anchor=bases.__getitem__, slices=own, upload=upload))
    return made


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("band", [1 << 20, 20])
def test_the_parts_of_weights_move_as_the_whole_does(noise: Noise, kind: type, band: int) -> None:
    names = [n for n, shape in SHAPES.items() if noise.perturbation == "gaussian" or len(shape) == 2]
    values = base(names, kind)
    whole = Weights({n: a.copy() for n, a in values.items()}, noise, anchor=lambda name: values[name])
    parts = divided(values, noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seedtune.numerics.slices.BAND", band)
        for update in UPDATES:
            whole.apply(update)
            for part in parts:
                part.apply(update)
            assert fp.to_hex(fp.combine(part.share() for part in parts)) == whole.fingerprint()
        for part in parts:
            for name, array in part.tensors.items():
                assert np.array_equal(array, part.slices[name].of(whole.tensors[name]), equal_nan=False)
    assert sum(sum(part.squares()) for part in parts) == pytest.approx(whole.drift() ** 2)


UPLOADS = {"in-place": None, "streamed": np.copy}


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("upload", UPLOADS.values(), ids=UPLOADS)
@pytest.mark.parametrize("band", [1 << 20, 20])
@pytest.mark.parametrize("noise", [NOISES["gaussian-subspaces"], NOISES["flipout"]], ids=["gaussian", "flipout"])
def test_members_of_the_parts_are_the_member_of_the_whole(
    noise: Noise, kind: type, upload: Any, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seedtune.numerics.slices.BAND", band)
    names = [n for n, shape in SHAPES.items() if noise.perturbation == "gaussian" or len(shape) == 2]
    values = base(names, np.float32)
    whole = Weights(values, noise)
    for member, sigma in ((Member(1, 2, -1), 0.1), (UNPERTURBED, 0.0), (Member(0, 7, 1), 0.3)):
        for part in divided(values, noise, upload=upload):
            for name, own in part.slices.items():
                expected = np.empty(values[name].size, kind)
                whole.perturb(name, member, sigma, expected)
                out = np.empty(own.shape, kind)
                part.perturb(name, member, sigma, out)
                assert np.array_equal(out, own.of(expected))


def test_weights_in_host_memory_come_to_the_device_in_bands_and_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the GPU's kernels, whose arrays are torch tensors, every part moves and is written as one on the device.

    A type of weights with one noise each: every type under every kernel is what ``test_kernels_agree`` shows.
    """
    monkeypatch.setattr("seedtune.numerics.slices.BAND", 40)
    sizes: list[int] = []

    def upload(part: np.ndarray) -> torch.Tensor:
        sizes.append(part.size)
        return as_tensor(np.array(part)).to(DEVICE)

    noises = (NOISES[name] for name in ("gaussian-subspaces", "lowrank-rank3", "flipout"))
    for kind, noise in zip(TYPES.values(), noises, strict=True):
        values = base(["l.0.k_proj.weight", "l.0.o_proj.weight"], kind)
        for here, there in zip(divided(values, noise), divided(values, noise, kernels=gpu, upload=upload), strict=True):
            here.apply(*UPDATES)
            there.apply(*UPDATES)
            assert there.fingerprint() == here.fingerprint()
            assert there.squares() == here.squares()
            if noise.perturbation != "lowrank":
                for name, array in here.tensors.items():
                    out = np.empty_like(array)
                    live = as_tensor(np.empty_like(array)).to(DEVICE)
                    here.perturb(name, Member(1, 2, -1), 0.1, out)
                    there.perturb(name, Member(1, 2, -1), 0.1, live)
                    assert np.array_equal(gpu.host(live), out)
    assert max(sizes) <= 40


def test_a_copy_takes_a_step_and_leaves_the_weights_where_they_are() -> None:
    (part, _) = divided(base(SHAPES, np.float32), NOISES["gaussian"])
    before = part.fingerprint()
    moved = part.moved(UPDATES[0])
    assert part.fingerprint() == before
    part.apply(UPDATES[0])
    assert part.fingerprint() == moved.fingerprint() != before


class Nowhere:
    """Base weights that no file holds as they are."""

    def places(self, _: Any) -> dict[str, Stored]:
        return {}

    def __call__(self, _: str) -> np.ndarray:
        return np.zeros(3, np.float32)


def test_a_full_disk_under_the_base_weights_is_said_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("seedtune.numerics.tensor_file.write", full)
    with pytest.raises(StorageError, match=r"disk is full.*TMPDIR"):
        base_model._places(Nowhere(), ["w"], lambda: tmp_path)


def test_errors_of_workers_come_back_as_they_were() -> None:
    for error in (ModelError("no."), MissingExtraError("x", "pip install y")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
