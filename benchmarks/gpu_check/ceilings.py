"""What later figures are divided by, and what a launch, a wait and a node of a graph cost here."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.gpu_check.check import Check
from seedtune.numerics.kernels import gpu
from seedtune.numerics.noise import Address, key


def run(check: Check) -> None:
    """Measure the device's rates, single calls, and transfers."""
    check.say("copy TB/s", check.copy_rate / 1e12, "read and written; 4.2 to 4.4 expected of an H200")
    check.say("bf16 product TFLOP/s", check.product_rate / 1e12, "770 to 800 expected of an H200")
    _calls(check)
    _transfers(check)


def _calls(check: Check) -> None:
    one, small = torch.zeros(16, device=check.device), torch.zeros(64, 64, device=check.device, dtype=torch.bfloat16)
    check.say("eager add_: us a call", check.host_us(lambda: one.add_(1), 2000), "expected 3 to 6")
    check.say("eager mm: us a call", check.host_us(lambda: torch.mm(small, small), 2000), "expected 6 to 12")
    nodes = check.pick(1000, 10)

    def many() -> None:
        for _ in range(nodes):
            one.add_(1)

    each = check.device_seconds(check.graphed(many), 5) / nodes
    check.say("graphed add_: us a node", each * 1e6, "expected 1 to 2")
    words = np.zeros(256, np.int32)
    moved = check.host_us(lambda: torch.from_numpy(words).to(check.device), 500)
    check.say("from_numpy().to(device): us", moved, "waits for the stream; 9 a layer and step when first counted")
    check.say(".item(): us", check.host_us(lambda: one[0].item(), 500))
    out, theta = torch.empty(4096, device=check.device, dtype=torch.bfloat16), torch.zeros(4096, device=check.device)
    address = Address(key(1, "x"))
    each = check.host_us(lambda: gpu.perturb(out, theta, 0.1, address), 500)
    check.say("gpu.perturb of 4,096 elements: us a call", each, "Python and Triton's launch; x 338 tensors a member")


def _transfers(check: Check) -> None:
    size = check.pick(1 << 28, 1 << 16)
    there = torch.empty(size, dtype=torch.uint8, device=check.device)
    for name, pinned in (("pageable", False), ("pinned", True)):
        here = torch.empty(size, dtype=torch.uint8, pin_memory=pinned and not check.dry)
        seconds = check.host_seconds(lambda here=here: there.copy_(here, non_blocking=True))
        check.say(f"host to device, {name}: GB/s", size / seconds / 1e9)
