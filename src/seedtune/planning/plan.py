"""Forecast of a run: rollouts, tokens, memory of each mode, seconds per generation.

Only the model's configuration and tokenizer are loaded, unless this machine is requested: then the model itself
generates a few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from seedtune.config.config import Config
from seedtune.engines.model_sizes import Anatomy, anatomy_of
from seedtune.errors import ConfigError, ModelError
from seedtune.planning.accelerators import CPU, Machine, machine_of, parse_device
from seedtune.planning.cost_model import Pace, Speed, Workload, measure_engine, pace_of, share_of, workload_of
from seedtune.rollouts.prepare import Prepared, prepare
from seedtune.strategies import populations
from seedtune.tasks.base import Task

SHARE = 0.7
"""Assumed mean length of a completion, as a share of ``max_completion_length``, without a measured run."""

_LITTLE = 1.25
"""Times the seconds of one batch that still count as the same side."""

_COPIED = ("bfloat16", "float32")
"""Dtypes that a CPU copies into a layout for its matrix products."""

MODES = tuple((p, m) for p in ("lowrank", "gaussian", "flipout") for m in ("float32", "model"))


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of a mode: weights + current + cache + factors + logits, without libraries (0.5 GB) and activations.

    Per rank of ``vllm.tensor_parallel_size``, which share the first three; current weights in host memory count as 0.

    weights  P·b                    b bytes per number of the forward pass
    current  4·L (lowrank, flipout) or 4·T (gaussian) with weights_dtype float32; 0 or b·T (gaussian) with model
    packed   b·P on a CPU, gaussian with float32: a copy in the layout used by matrix products
    cache    slots · (longest prompt + limit) · keys and values of a position · b
    factors  pairs · r · Σ(m + n) · b (lowrank), (pairs · Σ(m + n) + shared_noise · L) · b (flipout)
    logits   slots · vocabulary · b
    """

    perturbation: str
    weights_dtype: str
    weights: float
    current_weights: float
    packed: float
    cache: float
    factors: float
    logits: float

    @property
    def total(self) -> float:
        """The sum of all parts except ``packed``, which only CPUs have."""
        return self.weights + self.current_weights + self.cache + self.factors + self.logits


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds of a generation on ``device``, by part, and how they were obtained."""

    device: str
    prefill: float
    decode: float
    perturb: float
    update: float
    basis: str
    fits: bool | None = None
    """Whether the configured mode fits into one such device's memory, if that is known."""

    @property
    def seconds(self) -> float:
        """The sum of the parts, without scoring."""
        return self.prefill + self.decode + self.perturb + self.update


@dataclass(frozen=True, slots=True)
class Forecast:
    """The forecast of a run."""

    config: Config
    anatomy: Anatomy
    workload: Workload
    memory: tuple[MemoryEstimate, ...]
    durations: tuple[Duration, ...]
    notes: tuple[str, ...]

    @property
    def rollouts(self) -> int:
        """Completions of the whole run."""
        sizes = populations(self.config)
        answering = ((size + self.config.evaluate_unperturbed) * count for size, count in sizes.items())
        return sum(answering) * self.workload.prompts

    @property
    def full(self) -> float:
        """The run's length in generations of the largest size."""
        return self.rollouts / self.workload.rollouts

    @property
    def tokens(self) -> float:
        """Prompt and new tokens of a generation."""
        return self.workload.read + self.workload.written


def plan_config(
    config: Config,
    *,
    devices: Sequence[str] = (),
    measured: Path | None = None,
    share: float | None = None,
    task: Task | None = None,
) -> Forecast:
    """Forecast a run of ``config`` on ``devices`` (``cpu``: this machine, measured; ``h100``, ``8xa100``, …).

    Completions have ``share`` of their maximum length; ``measured`` names a run whose pace and lengths are used for
    this machine.  Raises ConfigError for an unknown device, ModelError for a model whose configuration cannot be read.
    """
    for text in devices:
        parse_device(text)
    if config.kinds[0] == "toy":
        raise ConfigError("plan forecasts language models, not engine='toy'. Use engine=transformers or engine=vllm.")
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"--share {share:g} must be above 0 and at most 1.")
    return plan(prepare(config, task=task, fits=False), devices, measured=measured, share=share)


def plan(run: Prepared, devices: Sequence[str], *, measured: Path | None, share: float | None) -> Forecast:
    """Forecast a prepared run, see `plan_config`."""
    whole, task, asked = run.config, run.task, [parse_device(text) for text in devices]
    config = whole.replace(engine=whole.kinds[0]) if whole.engine == "ray" else whole
    pace = None if measured is None else pace_of(measured)
    share = share or (SHARE if pace is None else min(1.0, pace.new_tokens / config.max_completion_length))
    anatomy, work = anatomy_of(config), workload_of(config, task, share=share)
    memory = tuple(memory_of(anatomy, work, config, *mode) for mode in MODES)
    notes, durations = _notes(whole, work, share, measured=pace is not None), []
    if any(count > 1 for count, _ in asked):
        notes.append("several devices: as if they shared the members evenly, as the workers of engine=ray do")
    for count, name in asked if pace is None else sorted({*asked, (1, CPU)}, key=lambda device: device[1] != CPU):
        if name != CPU:
            part = share_of(work, config, devices=count)
            machine = machine_of(name)
            durations.append(on_machine(machine, anatomy, part, config, count=count))
            notes.append(sides(machine, anatomy, part, config))
        elif pace is not None:
            durations.append(at_pace(pace, work))
        elif config.engine == "vllm":
            notes.append("cpu was not measured: vLLM does not tell reading from writing. Give a run with --measured")
        else:
            try:
                durations.append(measured_here(measure_engine(config, task, work), work))
            except ModelError as error:
                notes.append(f"cpu was not measured: {error}")
    return Forecast(config, anatomy, work, memory, tuple(durations), tuple(notes))


def memory_of(body: Anatomy, work: Workload, config: Config, perturbation: str, weights_dtype: str) -> MemoryEstimate:
    """Estimate the bytes of a mode for this configuration's population and limits."""
    size, served = body.itemsize, config.vllm if config.engine == "vllm" else None
    beside = perturbation == "lowrank" or (perturbation == "flipout" and served is None)
    reached = body.trainable if perturbation == "gaussian" else body.linear
    own = 0 if beside else size * reached
    rows = work.batch_slots if beside else work.member_slots
    ranks = served.tensor_parallel_size if served else 1
    on_device = 0 if served and served.weights_memory == "host" else 1
    packed = not beside and weights_dtype == "float32" and body.dtype in _COPIED
    return MemoryEstimate(
        perturbation,
        weights_dtype,
        weights=size * body.parameters / ranks,
        current_weights=on_device * (4 * reached if weights_dtype == "float32" else own) / ranks,
        packed=size * body.linear if packed else 0,
        cache=rows * (work.longest + work.limit) * body.cached * size / ranks,
        factors=_factors(body, config, perturbation) * size if beside else 0,
        logits=rows * body.vocabulary * size,
    )


def _factors(body: Anatomy, config: Config, perturbation: str) -> int:
    """Count the numbers that are kept beside the weights for a generation's members."""
    pairs = max(populations(config)) // (2 if config.antithetic else 1)
    if perturbation == "flipout":
        return pairs * body.factors + config.shared_noise * body.linear
    return pairs * config.rank * body.factors


def sides(machine: Machine, anatomy: Anatomy, work: Workload, config: Config) -> str:
    """Say whether one batch of all members is worth it on a machine, or a member's own rows fill it already.

    Decoding takes L·max(W/bandwidth, 2PNq/FLOPs) in one batch of N members with q rows each, and
    N·L·max(W/bandwidth, 2Pq/FLOPs) one member after the other, for L tokens.
    """
    together = "lowrank" if work.alone else config.perturbation
    batch = on_machine(machine, anatomy, replace(work, alone=False), config, perturbation=together).seconds
    alone = on_machine(machine, anatomy, replace(work, alone=True), config, perturbation="gaussian").seconds
    filled = alone < _LITTLE * batch
    found = "the rows of one member fill the device" if filled else f"one batch is {alone / batch:.1f} times as fast"
    return (
        f"{machine.name}: {batch:.3g} s in one batch ({together}), {alone:.3g} s member by member (gaussian): {found}"
    )


def on_machine(
    machine: Machine,
    anatomy: Anatomy,
    work: Workload,
    config: Config,
    *,
    count: int = 1,
    perturbation: str | None = None,
) -> Duration:
    """Forecast a generation from datasheet figures (formula in `accelerators`); ``work`` is one device's share.

    ``perturbation`` is the configuration's by default.
    """
    perturbation = perturbation or config.perturbation
    memory = memory_of(anatomy, work, config, perturbation, config.weights_dtype)
    rows = work.row_steps / max(1.0, work.steps)
    position = anatomy.cached * anatomy.itemsize
    graphs = config.engine == "vllm" and not config.vllm.option("enforce_eager")  # one graph a step, no launches
    launched = 0 if graphs else anatomy.layers
    shared = perturbation == "flipout" and not work.alone
    parameters = anatomy.parameters + (anatomy.linear if shared else 0)
    step = machine.step(
        weights=memory.weights + (memory.factors if shared else 0),
        cache=rows * (work.prompt_tokens + work.new_tokens / 2) * position,
        parameters=parameters,
        rows=rows,
        layers=launched,
    )
    written = memory.weights + memory.current_weights
    return Duration(
        device=machine.name if count == 1 else f"{count}x{machine.name}",
        prefill=machine.prefill(parameters=parameters, tokens=work.read),
        decode=work.steps * step,
        perturb=machine.stream(work.members * written if work.alone else shared * memory.factors),
        update=machine.stream(2 * written),
        basis=(
            f"{work.steps:,.0f} steps of {step * 1e3:.3g} ms = max((W {memory.weights / 1e9:.3g} GB + K) / "
            f"{machine.bandwidth / 1e9:,.0f} GB/s, 2·P·{rows:.0f} rows / {machine.flops / 1e12:,.0f} TFLOP/s) / "
            f"{machine.efficiency:g}, at least {launched} launched layers × {machine.launch * 1e3:g} ms"
        ),
        fits=None if machine.memory is None else memory.total < machine.memory,
    )


def at_pace(pace: Pace, work: Workload) -> Duration:
    """Forecast a generation from the pace of a run: seconds per token, prompt and new ones alike, × tokens."""
    seconds = pace.token * (work.read + work.written)
    basis = f"{pace.token * 1e3:.3g} ms a token, prompts and scoring included: {pace.generations} generations of a run"
    return Duration(CPU, 0.0, seconds, 0.0, 0.0, basis)


def measured_here(speed: Speed, work: Workload) -> Duration:
    """Forecast a generation from the speed of this machine: prefill + steps·(a + b·rows) + perturbing + update."""
    return Duration(
        device=CPU,
        prefill=work.read * speed.prompt_token,
        decode=work.steps * speed.step + work.row_steps * speed.row,
        perturb=speed.perturb,
        update=speed.update,
        basis=(
            f"{work.read:,.0f} prompt tokens × {speed.prompt_token * 1e3:.3g} ms + {work.steps:,.0f} steps × "
            f"{speed.step * 1e3:.3g} ms + {work.row_steps:,.0f} tokens × {speed.row * 1e3:.3g} ms, measured now"
        ),
    )


def _notes(config: Config, work: Workload, share: float, *, measured: bool) -> list[str]:
    """List the assumptions, and what the forecast of a generation of one engine omits."""
    source = "as in the measured run" if measured else "an assumption (--share)"
    notes = [f"a completion has {work.new_tokens:.0f} of at most {work.limit} tokens ({share:.0%}): {source}"]
    if not work.counted:
        notes.append("the model's folder has no tokenizer: prompts are counted as four characters a token")
    least, most = min(populations(config)), max(populations(config))
    if least < most:
        notes.append(f"populations of {least} to {most} members: a generation is the largest, the run is all of them")
    if config.engine == "ray":
        workers = sum(config.ray.kinds.values())
        notes.append(
            f"{workers} Ray workers: memory is that of one worker, seconds are those of one {config.kinds[0]} engine "
            f"with the whole device. {workers} devices of that sort share the rollouts; give their number, for example "
            "8xh100"
        )
    return notes
