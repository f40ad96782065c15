"""A decode step's products as one graph, alone and with 32 or 64 more inputs (members as further columns)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu_check.check import Check

LAYER = ((2048, 1536), (1536, 1536), (17920, 1536), (1536, 8960))
"""(out, in) of Qwen2.5-1.5B: q, k and v; o; gate and up; down."""
HEAD = (151936, 1536)
ROWS = {0: (1, 32, 200, 512, 1024, 2048), 32: (32, 200, 1024), 64: (32, 200, 1024)}
"""Further inputs → rows of a step."""


def run(check: Check) -> None:
    """Measure a step's products at several numbers of rows, and what further inputs cost."""
    seconds: dict[tuple[int, int], float] = {}
    for more, full in ROWS.items():
        weights = _weights(check, more)
        numbers = sum(weight.numel() for weight in weights)
        for rows in check.pick(full, (4,)):
            each = seconds[more, rows] = check.device_seconds(check.graphed(_step(check, weights, rows)), 5)
            bandwidth, flops = 2 * numbers / each / check.copy_rate, 2 * numbers * rows / each / check.product_rate
            note = f"{bandwidth:.2g} of copy bandwidth, {flops:.2g} of the product's FLOP/s"
            check.say(f"products +{more}, {rows} rows: ms", each * 1e3, note)
        del weights
        check.release()
    for more, rows in seconds:
        if more:
            ratio = seconds[0, rows] / seconds[more, rows]
            check.say(
                f"unperturbed / with {more} more, {rows} rows", ratio, "expected 0.96 to 0.99" if more == 32 else ""
            )


def _weights(check: Check, more: int) -> list[torch.Tensor]:
    layer, head, layers = check.pick((LAYER, HEAD, 28), (((64, 32),), (128, 32), 1))
    shapes = [*[(outputs, inputs + more) for outputs, inputs in layer] * layers, head]
    return [torch.randn(shape, device=check.device, dtype=torch.bfloat16) * 0.02 for shape in shapes]


def _step(check: Check, weights: list[torch.Tensor], rows: int) -> Callable[[], None]:
    """Return the products of ``rows`` rows; layers share their inputs and outputs."""
    like = {"device": check.device, "dtype": torch.bfloat16}
    inputs = {width: torch.randn(rows, width, **like) for width in {weight.shape[1] for weight in weights}}
    outputs = {width: torch.empty(rows, width, **like) for width in {weight.shape[0] for weight in weights}}

    def step() -> None:
        for weight in weights:
            torch.mm(inputs[weight.shape[1]], weight.t(), out=outputs[weight.shape[0]])

    return step
