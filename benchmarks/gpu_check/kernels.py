"""Each kernel against its floor, the bandwidth of a copy; then all tensors of a model as the engine calls them."""

from __future__ import annotations

import torch

from benchmarks.gpu_check.check import Check
from seedtune.numerics import noise
from seedtune.numerics.kernels import gpu
from seedtune.numerics.noise import Address, Noise, Stream
from seedtune.numerics.weights import Weights
from seedtune.types import Member, Term, Update

SHAPES = ((1536, 1536), (256, 1536), (256, 1536), (1536, 1536), (8960, 1536), (8960, 1536), (1536, 8960))
"""q, k, v, o, gate, up and down of Qwen2.5-1.5B."""

TERMS = 30


def run(check: Check) -> None:
    """Measure kernels alone, and over a model's tensors."""
    update = Update(1, tuple(Term(1, pair, 1e-9) for pair in range(check.pick(TERMS, 2))))
    _alone(check, update)
    check.release()
    _by_tensor(check, update)


def _alone(check: Check, update: Update) -> None:
    n, key = check.pick(1 << 28, 1 << 9), noise.key(1, "w")
    address = Address(key, Stream.GAUSSIAN, 1, 2)
    single, half = (torch.zeros(n, device=check.device, dtype=kind) for kind in (torch.float32, torch.bfloat16))
    for name, work, moved, normals in (
        ("fill", lambda: gpu.fill_normals(single, address), 4, 1),
        ("perturb float32 to bfloat16", lambda: gpu.perturb(half, single, 0.01, address), 6, 1),
        ("round only float32 to bfloat16", lambda: gpu.perturb(half, single, 0.0, address), 6, 0),
        ("perturb bfloat16", lambda: gpu.perturb(half, half, 1e-9, address), 4, 1),
        ("update_gaussian float32", lambda: gpu.update_gaussian(single, key, [update]), 8, len(update.terms)),
        ("update_lowrank float32", lambda: gpu.update_lowrank(single.view(-1, 64), key, [update], rank=1), 8, 0),
        ("update_flipout float32", lambda: gpu.update_flipout(single.view(-1, 64), key, [update]), 8, 0),
        ("fingerprint bfloat16", lambda: gpu.fingerprint(half, (1, 2)), 2, 0),
    ):
        seconds = check.device_seconds(work, 5)
        note = f"{n / seconds / 1e9:.3g} G elements/s"
        check.say(f"{name}: of copy bandwidth", n * moved / seconds / check.copy_rate, note)
        if normals:
            check.say(f"{name}: 1e12 normals/s", normals * n / seconds / 1e12, "expected 0.6 to 1.1")


def _by_tensor(check: Check, update: Update) -> None:
    layers, shapes = check.pick((28, SHAPES), (1, ((32, 16), (16, 32))))
    names = {f"{layer}.{i}.weight": shape for layer in range(layers) for i, shape in enumerate(shapes)}
    tensors = {name: torch.zeros(shape, device=check.device) for name, shape in names.items()}
    live = {name: torch.empty(t.numel(), dtype=torch.bfloat16, device=check.device) for name, t in tensors.items()}
    count = sum(out.numel() for out in live.values())
    kinds = ("gaussian", "lowrank", "flipout")
    gaussian, lowrank, flipout = (Weights(tensors, Noise(1, kind), kernels=gpu) for kind in kinds)

    def write_member() -> None:
        for name, out in live.items():
            gaussian.perturb(name, Member(1, 2, 1), 0.01, out)

    for name, work, moved in (
        ("a gaussian member written, tensor by tensor", write_member, 6),
        ("a gaussian update, tensor by tensor", lambda: gaussian.apply(update), 8),
        ("a lowrank update, tensor by tensor", lambda: lowrank.apply(update), 8),
        ("a flipout update, tensor by tensor", lambda: flipout.apply(update), 8),
        ("the fingerprint, tensor by tensor", lowrank.fingerprint, 4),
    ):
        seconds = check.host_seconds(work)
        share = count * moved / seconds / check.copy_rate
        check.say(f"{name}: ms", seconds * 1e3, f"{share:.2g} of copy bandwidth; launches take the rest")
