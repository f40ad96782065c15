"""GPU kernels: the functions of `kernels.cpu` over torch tensors, written in Triton, with the same bits.

State: checked bit for bit against the numpy references in Triton's interpreter on the CPU, and compiled for NVIDIA
sm_80 and sm_90 (no fused multiply-add, no flushed subnormals, no spilled registers). **Never run on a GPU yet**; the
tests run on the GPU where there is one, and the costs in the docstrings of `gpu_triton` are counts.

Tensors are contiguous, float32, float16 or bfloat16, and lie on one CUDA device (or on the CPU, if triton interprets:
``TRITON_INTERPRET=1``). Launches are asynchronous on the device's current stream. torch and triton are imported on
the first call; without triton every function raises `MissingExtraError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seedtune.numerics import fingerprint as reference
from seedtune.numerics.kernels.arguments import in_runs
from seedtune.numerics.kernels.checks import (
    require_elements,
    require_rows,
    require_shared_noise,
    require_slice,
    require_subspaces,
    require_words,
)
from seedtune.numerics.kernels.gpu_launch import (
    bodies,
    import_torch,
    kind,
    launch,
    pieces,
    raw,
    require_tensor,
    run_of_blocks,
    sign_table,
    signed,
    table,
    upload,
    where,
)
from seedtune.numerics.noise import FACTOR_A, FACTOR_B, LANES, Address, amplitude
from seedtune.types import Update

if TYPE_CHECKING:
    from torch import Tensor

UInt32 = NDArray[np.uint32]

ROWS, COLS = 8, 512  # tile of a low-rank update: 8 x 4 elements for each of 128 threads
FLIPOUT_COLS = 256  # of a flipout update, which holds two sums
UNALIGNED_COLS = 128  # if rows begin in the middle of a Philox block: more registers per element
MIX_STEPS, MIX_BLOCK = 8, 1024

SCRATCH_LIMIT = 1 << 28
"""Bytes of low-rank factors drawn ahead at a time; one update needs all of its own, however many."""


def require_triton() -> None:
    """Raise `MissingExtraError`, which says how to install it, if triton is missing."""
    bodies()


def fill_normals(out: Tensor, address: Address, start: int = 0) -> None:
    """Write the standard normals of elements ``start .. start + n - 1`` into ``out`` (float32 [n]).

    Same bits as `seedtune.numerics.noise.normals`. Raises ValueError for a wrong tensor or elements outside [0, 2**59).
    """
    require_tensor("out", out, 1, ("float32",))
    generations, pairs = (np.array([number], np.uint32) for number in (address.generation, address.pair))
    fill_factors(out.unsqueeze(0), address.key, address.stream, generations, pairs, start=start)


def fill_factors(
    out: Tensor,
    key: tuple[int, int],
    stream: int,
    generations: UInt32,
    pairs: UInt32,
    *,
    start: int = 0,
    rank: int = 1,
    subspaces: int = 1,
) -> None:
    """Write one factor of one tensor for many pairs into ``out`` (float32 [P, rows * rank]).

    ``out[p]`` belongs to generation ``generations[p]`` and pair ``pairs[p]`` (numpy uint32 [P]). ``stream`` is
    FACTOR_A or FACTOR_B (any stream works), ``start`` the first element, ``row * rank`` for a slice of rows.
    With ``subspaces`` the rows of FACTOR_A outside the pair's subspace are 0; ``rank`` is used only for that.
    Same bits as `seedtune.numerics.noise.factors`. Raises ValueError for wrong tensors.
    """
    require_tensor("out", out, 2, ("float32",))
    uploaded = _addresses(out, generations, pairs)
    _fill(out, Address(key, stream), uploaded, start)
    require_subspaces(subspaces)
    if subspaces > 1 and stream == FACTOR_A:
        require_rows(start, out.shape[1], rank)
        _keep_rows(out, key, uploaded, start // rank, rank=rank, subspaces=subspaces)


def fill_signs(
    out: Tensor, key: tuple[int, int], stream: int, generations: UInt32, pairs: UInt32, *, start: int = 0
) -> None:
    """Write one sign factor of one tensor for many pairs into ``out`` (float32 [P, n]), elements ``start ..``.

    Same bits as `seedtune.numerics.noise.signs`. Raises ValueError for wrong tensors.
    """
    require_tensor("out", out, 2, ("float32",))
    _fill(out, Address(key, stream), _addresses(out, generations, pairs), start, sign_table(out.device))


def perturb(
    out: Tensor, weights: Tensor, sigma: float, address: Address, start: int = 0, *, subspaces: int = 1
) -> None:
    """Write ``out = nearest(float32(weights) + float32(sigma) * noise)`` for elements ``start ..``, both [n].

    Float32 weights are written as float32, float16 or bfloat16, 16-bit weights as their own type. ``sigma`` carries
    the member's sign; with 0 the weights are only rounded. ``out`` may be ``weights``. With ``subspaces`` sigma is
    times sqrt(subspaces), and elements outside the pair's subspace are nearest(weights). Raises ValueError for wrong
    tensors or elements outside [0, 2**59).
    """
    require_tensor("out", out, 1)
    require_tensor("weights", weights, 1, like=out)
    if weights.dtype != out.dtype and kind(weights) != "float32":
        raise ValueError(f"weights in {weights.dtype} give members in {weights.dtype}, not in {out.dtype}")
    require_elements(start, out.numel())
    require_subspaces(subspaces)
    scale = float(np.float32(amplitude(sigma, subspaces=subspaces)))
    tensors, programs = ((raw(out), raw(weights), table(out.device)), pieces(out.numel(), start))
    numbers = (out.numel(), scale, *where(address, start))
    meta = run_of_blocks(start) | {"WEIGHTS": kind(weights), "OUT": kind(out), "DRAW": scale != 0}
    launch("perturb", programs, *tensors, *numbers, SUBSPACES=subspaces, **meta)


def update_gaussian(
    theta: Tensor,
    key: tuple[int, int],
    updates: Sequence[Update],
    *,
    start: int = 0,
    anchor: Tensor | None = None,
    subspaces: int = 1,
) -> None:
    """Apply all ``updates`` in order to ``theta`` [n], elements ``start ..`` of the tensor with this ``key``.

    For each update: x = theta + sum over its terms of float32(weight) * noise, in float32 from 0 in the order of the
    terms; the decay towards ``anchor`` (the base weights, [n], any type), if any; `rounding.stochastic`, if theta has
    16 bits. Several updates in one call give the same bits as one call each. With ``subspaces`` a term adds its weight
    times sqrt(subspaces) times noise, only to the elements of its pair's subspace. Raises ValueError for wrong tensors,
    for elements outside [0, 2**59) and for a decay without an anchor.
    """
    require_tensor("theta", theta, 1)
    steps, terms, decays = _tables(updates, theta, rank=1, subspaces=subspaces)
    base = _base(theta, anchor, decays=decays)
    require_elements(start, theta.numel())
    programs = pieces(theta.numel(), start) if steps.shape[0] else 0
    tensors = (raw(theta), raw(base), table(theta.device), steps, terms)
    numbers = (steps.shape[0], theta.numel(), *where(Address(key), start)[:3])
    meta = run_of_blocks(start) | {"KIND": kind(theta), "ANCHOR": kind(base), "DECAY": decays}
    launch("update_gaussian", programs, *tensors, *numbers, SUBSPACES=subspaces, **meta)


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
    subspaces: int = 1,
) -> None:
    """Apply all ``updates`` in order to ``theta`` (2-d), a slice of the tensor of this ``shape`` and ``key``.

    As `update_gaussian`, with sum over terms p, then k, of (w * A[p, i, k]) * B[p, j, k] for element (i, j), where
    w = float32(weight * sqrt(subspaces) / sqrt(rank)) and A[p, i] = 0 outside the pair's subspace. ``shape`` is
    theta's own by default. The factors are drawn into scratch memory, 4 (rows + columns) rank bytes per term. Raises
    ValueError for wrong tensors and slices.
    """
    require_tensor("theta", theta, 2)
    whole = (theta.shape[0], theta.shape[1]) if shape is None else shape
    require_slice(theta.shape, whole, row_start, col_start)
    base = _base(theta, anchor, decays=any(update.decay is not None for update in updates))
    corner = {"stride": whole[1], "row_start": row_start, "col_start": col_start}
    for group in _groups(updates, 4 * rank * (theta.shape[0] + theta.shape[1])):
        _update_lowrank(theta, base, key, group, rank=rank, subspaces=subspaces, **corner)


def update_flipout(
    theta: Tensor,
    key: tuple[int, int],
    updates: Sequence[Update],
    *,
    shape: tuple[int, int] | None = None,
    row_start: int = 0,
    col_start: int = 0,
    anchor: Tensor | None = None,
    shared_noise: int = 1,
) -> None:
    """As `update_lowrank` with the noise of `seedtune.numerics.noise.flipout`; sums as in `kernels.base`.

    The signs are drawn into scratch memory, 4 (rows + columns) bytes per term. Raises ValueError for wrong tensors and
    slices.
    """
    require_tensor("theta", theta, 2)
    whole, (rows, cols) = (theta.shape[0], theta.shape[1]) if shape is None else shape, theta.shape
    require_slice(theta.shape, whole, row_start, col_start)
    require_shared_noise(shared_noise)
    base = _base(theta, anchor, decays=any(update.decay is not None for update in updates))
    first = row_start * whole[1] + col_start
    aligned = whole[1] % LANES == 0 and first % LANES == 0
    width = FLIPOUT_COLS if aligned else UNALIGNED_COLS
    for group in _groups([in_runs(update, shared_noise) for update in updates], 4 * (rows + cols)):
        steps, terms, decays = _tables(group, theta, rank=1)
        signs = sign_table(theta.device)
        a = _columns(theta, Address(key, FACTOR_A), terms, start=row_start, count=rows, numbers=signs)
        b = _columns(theta, Address(key, FACTOR_B), terms, start=col_start, count=cols, numbers=signs)
        programs = -(-rows // ROWS) * -(-cols // width) if steps.shape[0] else 0
        places = (steps.shape[0], rows, cols, whole[1], first, *where(Address(key), 0)[1:3], signed(shared_noise, 32))
        meta: dict[str, Any] = {"KIND": kind(theta), "ANCHOR": kind(base), "DECAY": decays, "ALIGNED": aligned}
        tensors = (raw(theta), raw(base), table(theta.device), a, b, steps, terms)
        launch("update_flipout", programs, *tensors, *places, **meta, ROWS=ROWS, COLS=width)


def fingerprint(bits: Tensor, key: tuple[int, int], start: int = 0) -> reference.Fingerprint:
    """Return the sum of mixed elements, see `seedtune.numerics.fingerprint`: two integers in [0, 2**64).

    ``bits`` [n] are the weights themselves in any of the three types, ``key`` comes from
    `seedtune.numerics.fingerprint.tensor_key`, ``start`` is the absolute index of the first element. Parts of a tensor
    add up, see `seedtune.numerics.fingerprint.combine`. Waits for the device.
    """
    torch = import_torch()
    require_tensor("bits", bits, 1)
    require_elements(start, bits.numel())
    programs = -(-bits.numel() // (MIX_STEPS * MIX_BLOCK))
    sums = torch.empty((programs, 2), dtype=torch.int64, device=bits.device)
    steps = (reference.STEP0, reference.STEP1)
    at = (signed(lane + start * step, 64) for lane, step in zip(key, steps, strict=True))
    meta = {"MASK": (1 << 8 * bits.element_size()) - 1, "STEPS": MIX_STEPS, "BLOCK": MIX_BLOCK}
    words = bits.view(torch.int16 if bits.element_size() == 2 else torch.int32)
    launch("mix", programs, sums, words, bits.numel(), *at, **meta)
    lane0, lane1 = sums.sum(dim=0).tolist()
    return lane0 % reference.MODULUS, lane1 % reference.MODULUS


# ---------------------------------------------------------------------------------------------- launching


def _addresses(out: Tensor, generations: UInt32, pairs: UInt32) -> Tensor:
    """Return generations and pairs as ``terms`` on the device of ``out``, whose rows they are for."""
    count = out.shape[0]
    if any(array.dtype != np.uint32 or array.shape != (count,) for array in (generations, pairs)):
        raise ValueError(
            f"{count} pairs need generations and pairs as numpy uint32 [{count}], "
            f"got {generations.dtype} {generations.shape} and {pairs.dtype} {pairs.shape}"
        )
    terms = np.zeros((count, 3), np.int32)
    terms[:, 0], terms[:, 1] = generations.view(np.int32), pairs.view(np.int32)
    return upload(terms, out)


def _fill(out: Tensor, address: Address, terms: Tensor, start: int, numbers: Tensor | None = None) -> None:
    """Write normals of ``address``'s key and stream, row t at the generation and pair of ``terms[t]``.

    Or other ``numbers`` than the normals of the lower half of codes, mirrored for the upper half.
    """
    require_elements(start, out.shape[1])
    count = pieces(out.shape[1], start)
    first, k0, k1, tag, *_ = where(address, start)
    words = (out.shape[1], count, first, k0, k1, tag)
    drawn = table(out.device) if numbers is None else numbers
    launch("fill", out.shape[0] * count, out, drawn, terms, *words, **run_of_blocks(start))


def _keep_rows(out: Tensor, key: tuple[int, int], terms: Tensor, first: int, *, rank: int, subspaces: int) -> None:
    """Zero all rows outside each term's subspace in factors A [T, rows * rank] whose first row is ``first``."""
    rows = out.shape[1] // rank
    count, numbers = pieces(rows, first), where(Address(key), first)[:3]
    meta = run_of_blocks(first) | {"RANK": rank, "SUBSPACES": subspaces}
    launch("keep_rows", out.shape[0] * count, out, terms, rows, count, *numbers, **meta)


def _update_lowrank(
    theta: Tensor,
    base: Tensor,
    key: tuple[int, int],
    updates: Sequence[Update],
    *,
    stride: int,
    row_start: int,
    col_start: int,
    rank: int,
    subspaces: int,
) -> None:
    """Run `update_lowrank` for as many updates as fit into scratch memory; the whole tensor has rows of ``stride``."""
    steps, terms, decays = _tables(updates, theta, rank=rank, subspaces=subspaces)
    rows, cols = theta.shape
    a = _columns(theta, Address(key, FACTOR_A), terms, start=row_start, count=rows, rank=rank, subspaces=subspaces)
    b = _columns(theta, Address(key, FACTOR_B), terms, start=col_start, count=cols, rank=rank)
    first = row_start * stride + col_start
    aligned = kind(theta) == "float32" or (stride % LANES == 0 and first % LANES == 0)  # float32 draws no rounding
    width = COLS if aligned else UNALIGNED_COLS
    programs = -(-rows // ROWS) * -(-cols // width) if steps.shape[0] else 0
    numbers = (steps.shape[0], rows, cols, stride, first, *where(Address(key), 0)[1:3])
    meta = {"RANK": rank, "KIND": kind(theta), "ANCHOR": kind(base), "DECAY": decays}
    tile = {"ALIGNED": aligned, "ROWS": ROWS, "COLS": width}
    launch("update_lowrank", programs, raw(theta), raw(base), a, b, steps, terms, *numbers, **meta, **tile)


def _columns(
    theta: Tensor,
    address: Address,
    terms: Tensor,
    *,
    start: int,
    count: int,
    rank: int = 1,
    subspaces: int = 1,
    numbers: Tensor | None = None,
) -> Tensor:
    """Return a factor of every term on theta's device, [T * rank, count]: contiguous for the loads of a tile."""
    out = import_torch().empty((terms.shape[0], count * rank), dtype=import_torch().float32, device=theta.device)
    _fill(out, address, terms, start * rank, numbers)
    if subspaces > 1:
        _keep_rows(out, address.key, terms, start, rank=rank, subspaces=subspaces)
    return out if rank == 1 else out.view(terms.shape[0], count, rank).transpose(1, 2).contiguous()


def _groups(updates: Sequence[Update], term_bytes: int) -> list[list[Update]]:
    """Group consecutive effective updates whose factors fit into `SCRATCH_LIMIT` together."""
    groups: list[list[Update]] = []
    room = 0
    for update in updates:
        room -= len(update.terms) * term_bytes
        if room < 0 or not groups:
            groups.append([])
            room = SCRATCH_LIMIT - len(update.terms) * term_bytes
        groups[-1].append(update)
    return groups


def _tables(updates: Sequence[Update], like: Tensor, *, rank: int, subspaces: int = 1) -> tuple[Tensor, Tensor, bool]:
    """Return the effective updates as ``steps`` and ``terms`` on the device, and whether any decays."""
    require_subspaces(subspaces)
    active = [update for update in updates if update.terms or update.decay is not None]
    steps, rows = np.zeros((len(active), 6), np.int32), [term for update in active for term in update.terms]
    generations = require_words("generation", [update.generation for update in active]).view(np.int32)
    last = 0
    for step, update, generation in zip(steps, active, generations, strict=True):
        first, last = last, last + len(update.terms)
        step[:3] = first, last, generation
        if update.decay is not None:
            step[3] = 1
            step[4:] = np.array([np.float32(1) - np.float32(update.decay.l2), update.decay.l1], np.float32).view("i4")
    terms = np.zeros((len(rows), 3), np.int32)
    terms[:, 0] = require_words("generation", [t.generation for t in rows]).view(np.int32)
    terms[:, 1] = require_words("pair", [t.pair for t in rows]).view(np.int32)
    weights = [amplitude(t.weight, rank=rank, subspaces=subspaces) for t in rows]
    terms[:, 2] = np.array(weights, np.float32).view(np.int32)
    return (upload(steps, like), upload(terms, like), any(update.decay is not None for update in active))


# ---------------------------------------------------------------------------------------------- checks


def _base(theta: Tensor, anchor: Tensor | None, *, decays: bool) -> Tensor:
    """Return the anchor, or theta as a placeholder if no update decays."""
    if anchor is None:
        if decays:
            raise ValueError("an update decays towards the base weights, but no anchor is given; give the base weights")
        return theta
    require_tensor("anchor", anchor, theta.ndim, like=theta)
    return anchor


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a new float32 tensor on the device of ``like``."""
    made: Tensor = import_torch().empty(shape, dtype=import_torch().float32, device=like.device)
    return made


def host(array: Tensor) -> NDArray[Any]:
    """Return a copy as numpy, bfloat16 as uint16."""
    plain = array.detach().cpu()
    bits = plain.view(import_torch().uint16) if plain.dtype == import_torch().bfloat16 else plain
    copied: NDArray[Any] = bits.numpy()
    return copied


def copy(target: Tensor, source: NDArray[Any]) -> None:
    """Write numpy ``source`` (bfloat16 as uint16) over ``target``."""
    plain = import_torch().from_numpy(source)
    target.copy_(plain.view(import_torch().bfloat16) if target.dtype == import_torch().bfloat16 else plain)
