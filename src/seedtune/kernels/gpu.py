"""GPU kernels: the functions of `seedtune.kernels.cpu` over torch tensors, written in Triton, with the same bits.

State: checked bit for bit against the numpy references in Triton's interpreter on the CPU, and compiled for NVIDIA
sm_80 and sm_90 (no fused multiply-add, no flushed subnormals, no spilled registers). **Never run on a GPU yet**; the
tests run on the GPU where there is one, and the costs in the docstrings of `seedtune.kernels._triton` are counts.

Tensors are contiguous, float32, float16 or bfloat16, and lie on one CUDA device (or on the CPU, if triton interprets:
``TRITON_INTERPRET=1``). Launches are asynchronous on the device's current stream. torch and triton are imported on
the first call; without triton every function raises `MissingExtraError`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seedtune import fingerprint as reference
from seedtune.errors import MissingExtraError
from seedtune.noise import ELEMENT_LIMIT, FACTOR_A, FACTOR_B, LANES, WORD_LIMIT, Address, quantiles
from seedtune.types import Update

if TYPE_CHECKING:
    from torch import Tensor

UInt32 = NDArray[np.uint32]

FLOATS = ("float32", "float16", "bfloat16")
INSTALL = "pip install 'triton>=3.7'"

BLOCKS = 256  # Philox blocks of a program: 2048 elements, 16 for each of 128 threads
ROWS, COLS = 8, 512  # tile of a low-rank update: 8 x 4 elements for each of 128 threads
UNALIGNED_COLS = 128  # where rows begin in the middle of a Philox block: more registers an element
MIX_STEPS, MIX_BLOCK = 8, 1024

SCRATCH_LIMIT = 1 << 28
"""Bytes of low-rank factors drawn ahead at a time; one update needs its own, however many they are."""


def require_triton() -> None:
    """Raise `MissingExtraError`, which says how to install it, if triton is missing."""
    _bodies()


def fill_normals(out: Tensor, address: Address, start: int = 0) -> None:
    """Write the standard normals of elements ``start .. start + n - 1`` into ``out`` (float32 [n]).

    Same bits as `seedtune.noise.normals`. Raises ValueError for a wrong tensor or elements outside [0, 2**59).
    """
    _require("out", out, 1, ("float32",))
    generations, pairs = (np.array([number], np.uint32) for number in (address.generation, address.pair))
    fill_factors(out.unsqueeze(0), address.key, address.stream, generations, pairs, start=start)


def fill_factors(
    out: Tensor, key: tuple[int, int], stream: int, generations: UInt32, pairs: UInt32, *, start: int = 0
) -> None:
    """Write one factor of one tensor for many pairs into ``out`` (float32 [P, rows * rank]).

    ``out[p]`` belongs to generation ``generations[p]`` and pair ``pairs[p]`` (numpy uint32 [P]). ``stream`` is
    FACTOR_A or FACTOR_B (any stream works), ``start`` the first element, ``row * rank`` for a slice of rows.
    Same bits as `seedtune.noise.factors`. Raises ValueError for wrong tensors.
    """
    _require("out", out, 2, ("float32",))
    _require_pairs(out.shape[0], generations, pairs)
    terms = np.zeros((generations.size, 3), np.int32)
    terms[:, 0], terms[:, 1] = generations.view(np.int32), pairs.view(np.int32)
    _fill(out, Address(key, stream), _upload(terms, out), start)


def perturb(out: Tensor, centre: Tensor, sigma: float, address: Address, start: int = 0) -> None:
    """``out = nearest(float32(centre) + float32(sigma) * noise)`` for elements ``start ..`` of a tensor, both [n].

    A float32 centre is written as float32, float16 or bfloat16, a 16-bit centre as its own type. ``sigma`` carries
    the member's sign; with 0 the centre is only rounded. ``out`` may be ``centre``. Raises ValueError for wrong
    tensors or elements outside [0, 2**59).
    """
    _require("out", out, 1)
    _require("centre", centre, 1, like=out)
    if centre.dtype != out.dtype and _kind(centre) != "float32":
        raise ValueError(f"a centre in {centre.dtype} gives weights in {centre.dtype}, not in {out.dtype}")
    _require_elements(start, out.numel())
    tensors, programs = (_raw(out), _raw(centre), _table(out.device)), _pieces(out.numel(), start)
    numbers = (out.numel(), float(np.float32(sigma)), *_where(address, start))
    meta = _run_of_blocks(start) | {"CENTRE": _kind(centre), "OUT": _kind(out), "DRAW": np.float32(sigma) != 0}
    _launch("perturb", programs, *tensors, *numbers, **meta)


def update_full(
    theta: Tensor, key: tuple[int, int], updates: Sequence[Update], *, start: int = 0, anchor: Tensor | None = None
) -> None:
    """Move ``theta`` [n], elements ``start ..`` of the tensor with this ``key``, by all ``updates`` in order.

    Of each update: x = theta + sum over its terms of float32(weight) * noise, in float32 from 0 in the order of the
    terms; the decay towards ``anchor`` (the base weights, [n], any type), if it has one; `rounding.stochastic`, if
    theta has 16 bits. Several updates in one call give the bits of one call each. Raises ValueError for wrong
    tensors, for elements outside [0, 2**59) and for a decay without an anchor.
    """
    _require("theta", theta, 1)
    steps, terms, decays = _tables(updates, theta, rank=1)
    base = _base(theta, anchor, decays=decays)
    _require_elements(start, theta.numel())
    programs = _pieces(theta.numel(), start) if steps.shape[0] else 0
    tensors = (_raw(theta), _raw(base), _table(theta.device), steps, terms)
    numbers = (steps.shape[0], theta.numel(), *_where(Address(key), start)[:3])
    meta = _run_of_blocks(start) | {"KIND": _kind(theta), "ANCHOR": _kind(base), "DECAY": decays}
    _launch("update_full", programs, *tensors, *numbers, **meta)


def update_lowrank(
    theta: Tensor,
    key: tuple[int, int],
    updates: Sequence[Update],
    *,
    rank: int,
    shape: tuple[int, int] | None = None,
    row_start: int = 0,
    col_start: int = 0,
    anchor: Tensor | None = None,
) -> None:
    """Move ``theta`` (2-d), a slice of the tensor of this ``shape`` and ``key``, by all ``updates`` in order.

    As `update_full`, with sum over terms p, then k, of (w * A[p, i, k]) * B[p, j, k] for element (i, j), where
    w = float32(weight / sqrt(rank)). ``shape`` is theta's own by default. The factors are drawn into scratch memory,
    4 (rows + columns) rank bytes a term. Raises ValueError for wrong tensors and slices.
    """
    _require("theta", theta, 2)
    whole = (theta.shape[0], theta.shape[1]) if shape is None else shape
    _require_slice(theta, whole, row_start, col_start)
    base = _base(theta, anchor, decays=any(update.decay is not None for update in updates))
    place = (whole[1], row_start, col_start)
    for group in _groups(updates, 4 * rank * (theta.shape[0] + theta.shape[1])):
        _update_lowrank(theta, key, group, rank=rank, place=place, base=base)


def fingerprint(bits: Tensor, key: tuple[int, int], start: int = 0) -> reference.Fingerprint:
    """Sum of mixed elements, see `seedtune.fingerprint.mix_sum` (same bits): two integers in [0, 2**64).

    ``bits`` [n] are the weights themselves in any of the three types, ``key`` comes from
    `seedtune.fingerprint.tensor_key`, ``start`` is the absolute index of the first element. Parts of a tensor
    add up, see `seedtune.fingerprint.combine`. Waits for the device.
    """
    torch = _torch()
    _require("bits", bits, 1)
    _require_elements(start, bits.numel())
    programs = -(-bits.numel() // (MIX_STEPS * MIX_BLOCK))
    sums = torch.empty((programs, 2), dtype=torch.int64, device=bits.device)
    steps = (reference.STEP0, reference.STEP1)
    at = (_signed(lane + start * step, 64) for lane, step in zip(key, steps, strict=True))
    meta = {"MASK": (1 << 8 * bits.element_size()) - 1, "STEPS": MIX_STEPS, "BLOCK": MIX_BLOCK}
    words = bits.view(torch.int16 if bits.element_size() == 2 else torch.int32)
    _launch("mix", programs, sums, words, bits.numel(), *at, **meta)
    lane0, lane1 = sums.sum(dim=0).tolist()
    return lane0 % reference.MODULUS, lane1 % reference.MODULUS


# ---------------------------------------------------------------------------------------------- launching


def _fill(out: Tensor, address: Address, terms: Tensor, start: int) -> None:
    """Normals of ``address``'s key and stream, row t at the generation and pair of ``terms[t]``."""
    _require_elements(start, out.shape[1])
    pieces = _pieces(out.shape[1], start)
    first, k0, k1, tag, *_ = _where(address, start)
    numbers = (out.shape[1], pieces, first, k0, k1, tag)
    _launch("fill", out.shape[0] * pieces, out, _table(out.device), terms, *numbers, **_run_of_blocks(start))


def _update_lowrank(
    theta: Tensor,
    key: tuple[int, int],
    updates: Sequence[Update],
    *,
    rank: int,
    place: tuple[int, int, int],
    base: Tensor,
) -> None:
    """`update_lowrank` for as many updates as fit into scratch memory; ``place`` is (stride, first row, column)."""
    steps, terms, decays = _tables(updates, theta, rank=rank)
    (rows, cols), (stride, row_start, col_start) = theta.shape, place
    a = _columns(theta, Address(key, FACTOR_A), terms, rows=(row_start, rows), rank=rank)
    b = _columns(theta, Address(key, FACTOR_B), terms, rows=(col_start, cols), rank=rank)
    first = row_start * stride + col_start
    aligned = _kind(theta) == "float32" or (stride % LANES == 0 and first % LANES == 0)  # float32 draws no rounding
    width = COLS if aligned else UNALIGNED_COLS
    programs = -(-rows // ROWS) * -(-cols // width) if steps.shape[0] else 0
    numbers = (steps.shape[0], rows, cols, stride, first, *_where(Address(key), 0)[1:3])
    meta = {"RANK": rank, "KIND": _kind(theta), "ANCHOR": _kind(base), "DECAY": decays}
    tile = {"ALIGNED": aligned, "ROWS": ROWS, "COLS": width}
    _launch("update_lowrank", programs, _raw(theta), _raw(base), a, b, steps, terms, *numbers, **meta, **tile)


def _columns(theta: Tensor, address: Address, terms: Tensor, *, rows: tuple[int, int], rank: int) -> Tensor:
    """A factor of every term on theta's device, [T * rank, rows]: contiguous for the loads of a tile."""
    start, count = rows
    out = _torch().empty((terms.shape[0], count * rank), dtype=_torch().float32, device=theta.device)
    _fill(out, address, terms, start * rank)
    return out if rank == 1 else out.view(terms.shape[0], count, rank).transpose(1, 2).contiguous()


def _groups(updates: Sequence[Update], term_bytes: int) -> list[list[Update]]:
    """Consecutive updates whose factors fit into `SCRATCH_LIMIT` together; those that do nothing are left out."""
    groups: list[list[Update]] = []
    room = 0
    for update in updates:
        room -= len(update.terms) * term_bytes
        if room < 0 or not groups:
            groups.append([])
            room = SCRATCH_LIMIT - len(update.terms) * term_bytes
        groups[-1].append(update)
    return groups


def _tables(updates: Sequence[Update], like: Tensor, *, rank: int) -> tuple[Tensor, Tensor, bool]:
    """The updates that do something as ``steps`` and ``terms`` on the device, and whether any decays."""
    active = [update for update in updates if update.terms or update.decay is not None]
    steps, rows = np.zeros((len(active), 6), np.int32), [term for update in active for term in update.terms]
    generations = _words("generation", [update.generation for update in active])
    last = 0
    for step, update, generation in zip(steps, active, generations, strict=True):
        first, last = last, last + len(update.terms)
        step[:3] = first, last, generation
        if update.decay is not None:
            step[3] = 1
            step[4:] = np.array([np.float32(1) - np.float32(update.decay.l2), update.decay.l1], np.float32).view("i4")
    terms = np.zeros((len(rows), 3), np.int32)
    terms[:, 0], terms[:, 1] = (
        _words("generation", [t.generation for t in rows]),
        _words("pair", [t.pair for t in rows]),
    )
    terms[:, 2] = np.array([t.weight / math.sqrt(rank) for t in rows], np.float32).view(np.int32)
    return _upload(steps, like), _upload(terms, like), any(update.decay is not None for update in active)


def _words(what: str, values: list[int]) -> NDArray[np.int32]:
    if values and not 0 <= min(values) <= max(values) < WORD_LIMIT:
        raise ValueError(f"{what}s from {min(values)} to {max(values)} must be at least 0 and below {WORD_LIMIT}")
    return np.array(values, np.uint32).view(np.int32)


def _launch(name: str, programs: int, out: Tensor, *arguments: Any, **meta: Any) -> None:
    """Run a kernel on the device of ``out``; products and sums are never fused, see `seedtune.kernels._triton`."""
    if programs > 0:
        with _torch().cuda.device_of(out):
            getattr(_bodies(), name)[(programs,)](out, *arguments, enable_fp_fusion=False, **meta)


def _pieces(count: int, start: int) -> int:
    """Programs for a run of ``count`` elements that begins at element ``start``, maybe in the middle of a block."""
    return -(-(count + start % LANES) // (BLOCKS * LANES)) if count else 0


def _run_of_blocks(start: int) -> dict[str, Any]:
    return {"SKIP": start % LANES, "BLOCKS": BLOCKS}


def _where(address: Address, start: int) -> tuple[int, ...]:
    """(first block, k0, k1, stream tag, pair, generation): words as signed 32-bit integers, one type for all."""
    k0, k1 = address.key
    words = (k0, k1, address.stream << 24, address.pair, address.generation)
    return start // LANES, *(_signed(word, 32) for word in words)


def _signed(number: int, bits: int) -> int:
    return (number + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def _upload(table: NDArray[np.int32], like: Tensor) -> Tensor:
    return _torch().from_numpy(table).to(like.device)


def _raw(tensor: Tensor) -> Tensor:
    """The tensor, 16-bit floats as int16: kernels do their own conversions."""
    return tensor if tensor.element_size() == 4 else tensor.view(_torch().int16)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@lru_cache(maxsize=8)
def _table(device: Any) -> Tensor:
    """The lower half of the quantiles on a device, float32 [32768]: the upper half is its mirror image."""
    table = quantiles()
    return _torch().from_numpy(table[: table.size // 2].copy()).to(device)


def _torch() -> Any:
    return importlib.import_module("torch")


def _bodies() -> Any:
    """The Triton kernels, imported on first use."""
    try:
        return importlib.import_module("seedtune.kernels._triton")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise MissingExtraError("computing on a GPU", INSTALL) from error


# ---------------------------------------------------------------------------------------------- checks


def _require(
    name: str, tensor: Tensor, ndim: int, kinds: tuple[str, ...] = FLOATS, *, like: Tensor | None = None
) -> None:
    if _kind(tensor) not in kinds or tensor.ndim != ndim or not tensor.is_contiguous():
        layout = "contiguous" if tensor.is_contiguous() else "strided"
        raise ValueError(
            f"{name} is a {layout} {tensor.ndim}-d tensor of {tensor.dtype}; "
            f"it must be a contiguous {ndim}-d tensor of {' or '.join(kinds)}"
        )
    if like is not None and (tensor.shape != like.shape or tensor.device != like.device):
        raise ValueError(
            f"{name} is {tuple(tensor.shape)} on {tensor.device}; it must be {tuple(like.shape)} on {like.device}"
        )
    _bodies()
    if not tensor.is_cuda and not importlib.import_module("triton").knobs.runtime.interpret:
        raise ValueError(
            f"{name} lies on {tensor.device}: these kernels need a CUDA device; use seedtune.kernels.cpu for arrays "
            "on the CPU (or set TRITON_INTERPRET=1 before the start to test without a GPU)"
        )


def _base(theta: Tensor, anchor: Tensor | None, *, decays: bool) -> Tensor:
    """The anchor, or theta in its place where nothing decays."""
    if anchor is None:
        if decays:
            raise ValueError("an update decays towards the base weights, but no anchor is given; give the base weights")
        return theta
    _require("anchor", anchor, theta.ndim, like=theta)
    return anchor


def _require_pairs(count: int, generations: UInt32, pairs: UInt32) -> None:
    if any(array.dtype != np.uint32 or array.shape != (count,) for array in (generations, pairs)):
        raise ValueError(
            f"{count} pairs need generations and pairs as numpy uint32 [{count}], "
            f"got {generations.dtype} {generations.shape} and {pairs.dtype} {pairs.shape}"
        )


def _require_elements(start: int, count: int) -> None:
    if start < 0 or start + count > ELEMENT_LIMIT:
        raise ValueError(f"element range starts at {start} with {count} items, but it must lie in [0, {ELEMENT_LIMIT})")


def _require_slice(theta: Tensor, shape: tuple[int, int], row_start: int, col_start: int) -> None:
    fits = 0 <= row_start <= shape[0] - theta.shape[0] and 0 <= col_start <= shape[1] - theta.shape[1]
    if not fits:
        raise ValueError(
            f"a slice of shape {tuple(theta.shape)} at ({row_start}, {col_start}) does not lie inside {tuple(shape)}"
        )
    _require_elements(0, shape[0] * shape[1])


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A new float32 tensor on the device of ``like``."""
    made: Tensor = _torch().empty(shape, dtype=_torch().float32, device=like.device)
    return made


def host(array: Tensor) -> NDArray[Any]:
    """A copy as numpy, bfloat16 as uint16."""
    plain = array.detach().cpu()
    bits = plain.view(_torch().uint16) if plain.dtype == _torch().bfloat16 else plain
    copied: NDArray[Any] = bits.numpy()
    return copied


def copy(target: Tensor, source: NDArray[Any]) -> None:
    """Write numpy ``source`` (bfloat16 as uint16) over ``target``."""
    plain = _torch().from_numpy(source)
    target.copy_(plain.view(_torch().bfloat16) if target.dtype == _torch().bfloat16 else plain)
