"""One run of the check: its figures, its clocks, and the rates that figures are divided by."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]

Work = Callable[[], object]
T = TypeVar("T")


@dataclass
class Figure:
    """What was found, what it means or should be, and whether it is wrong."""

    value: Any
    note: str = ""
    wrong: bool = False


@dataclass
class Step:
    """A step's state and its figures by name."""

    state: str = "running"
    seconds: float = 0.0
    figures: dict[str, Figure] = field(default_factory=dict)


class Check:
    """A run that writes ``out``/gpu-check.json; torch is imported by the first step that needs it."""

    def __init__(self, out: Path, *, budget: float, dry: bool) -> None:
        self.file, self.budget, self.dry = out / "gpu-check.json", budget, dry
        self.device = "cpu" if dry else "cuda:0"
        self._began = time.perf_counter()
        self._steps: dict[str, Step] = {}

    # ------------------------------------------------------------------------------------------ figures

    def begin(self, name: str) -> Step:
        """Begin a step, to which the next figures belong."""
        self._steps[name] = Step(seconds=-self.spent())
        return self._steps[name]

    def end(self, step: Step, state: str) -> None:
        """End a step as done, skipped or failed."""
        step.state, step.seconds = state, step.seconds + self.spent()
        self._write()

    def say(self, name: str, value: Any, note: str = "", *, wrong: bool = False) -> None:
        """Print and keep one figure."""
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"[{self.spent():5.0f}s] {name:52} {shown:>14}  {'WRONG ' * wrong}{note}", flush=True)
        list(self._steps.values())[-1].figures[name] = Figure(value, note, wrong)
        self._write()

    @contextmanager
    def attempt(self, name: str, *, needed: bool = True) -> Iterator[None]:
        """Note an error under ``name``, with the last line of ours that it passed; wrong if this is ``needed``."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the named boundary: what comes next must run
            ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "seedtune/" in frame.filename]
            place = "".join(f" at {f.filename.rpartition('seedtune/')[2]}:{f.lineno}" for f in ours[-1:])
            self.say(name, "failed" if needed else "no", f"{type(error).__name__}: {error}{place}"[:160], wrong=needed)

    def count(self) -> int:
        """Return the number of figures."""
        return sum(len(step.figures) for step in self._steps.values())

    def wrong(self) -> list[str]:
        """Return the names of failed steps and of wrong figures."""
        failed = [name for name, step in self._steps.items() if step.state.startswith("failed")]
        return failed + [n for step in self._steps.values() for n, figure in step.figures.items() if figure.wrong]

    def spent(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._began

    def left(self) -> float:
        """Return the seconds that the budget leaves."""
        return self.budget - self.spent()

    def _write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        steps = {name: asdict(step) for name, step in self._steps.items()}
        self.file.write_text(
            json.dumps({"dry": self.dry, "seconds": self.spent(), "steps": steps}, default=str, indent=1)
        )

    # ------------------------------------------------------------------------------------------ sizes and clocks

    def pick(self, full: T, tiny: T) -> T:
        """Return the size for a GPU, or the one for a dry run."""
        return tiny if self.dry else full

    def sync(self) -> None:
        """Wait for the device."""
        import torch

        if not self.dry:
            torch.cuda.synchronize()

    def host_seconds(self, work: Work, repeats: int = 3) -> float:
        """Return the least wall clock of a call, with the device idle before and after; one call is not counted."""
        work()
        found = []
        for _ in range(self.pick(repeats, 1)):
            self.sync()
            began = time.perf_counter()
            work()
            self.sync()
            found.append(time.perf_counter() - began)
        return min(found)

    def host_us(self, work: Work, count: int) -> float:
        """Return the microseconds of one of ``count`` calls in a row."""
        times = self.pick(count, 3)

        def many() -> None:
            for _ in range(times):
                work()

        return self.host_seconds(many) / times * 1e6

    def device_seconds(self, work: Work, repeats: int = 10) -> float:
        """Return the median of the device's own clock; two calls are not counted."""
        if self.dry:
            return self.host_seconds(work)
        import torch

        work()
        work()
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for first, last in marks:
            first.record()
            work()
            last.record()
        self.sync()
        return sorted(first.elapsed_time(last) for first, last in marks)[repeats // 2] / 1e3

    def graphed(self, work: Work) -> Work:
        """Return ``work`` as one CUDA graph; in a dry run ``work`` itself."""
        if self.dry:
            return work
        import torch

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def release(self) -> None:
        """Return unused memory to the device."""
        import gc

        import torch

        gc.collect()
        if not self.dry:
            torch.cuda.empty_cache()

    # ------------------------------------------------------------------------------------------ rates

    @cached_property
    def copy_rate(self) -> float:
        """Bytes a second, read and written, of a large copy on the device."""
        import torch

        n = self.pick(1 << 31, 1 << 20)
        source, target = (torch.empty(n, dtype=torch.uint8, device=self.device) for _ in range(2))
        return 2 * n / self.device_seconds(lambda: target.copy_(source))

    @cached_property
    def product_rate(self) -> float:
        """Floating-point operations a second of a large product in bfloat16."""
        import torch

        m = self.pick(8192, 128)
        x, y = (torch.randn(m, m, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * m**3 / self.device_seconds(lambda: torch.mm(x, y))
