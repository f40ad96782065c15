"""Differences between vLLM's versions: names that move between releases, and changes to how it behaves.

Tested versions are in `VERSIONS`.  The CPU build packs linear weights when a model is loaded and leaves empty
parameters behind; `keep_weights` makes it keep them, and `packers` gives what updates the packed copies.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from types import ModuleType, SimpleNamespace
from typing import Any

from seedtune.engines.vllm.tensor_layout import Split
from seedtune.errors import ConfigError, MissingExtraError, ModelError
from seedtune.numerics.machine import available_cores
from seedtune.numerics.slices import Run

VERSIONS = ("0.31", "0.32")
"""Versions of vLLM whose CPU build passes all tests; none was run on a GPU."""

INSTALL = f"pip install 'vllm=={VERSIONS[-1]}.*'"

NEEDED = {
    # In-process requests, results and weights are plain function calls.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The other runner has a different interface for logits processors.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
"""Environment set before vLLM is imported; other values are refused."""

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # Several ranks (or other processes) may share the cores of one memory node.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Environment set before vLLM is imported, unless the user has set it."""


def require() -> ModuleType:
    """Return the module ``vllm``; MissingExtraError if it is not installed, ConfigError for an untested version."""
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("engine=vllm", INSTALL)
    for name, value in {**NEEDED, **ENVIRONMENT}.items():
        if os.environ.setdefault(name, value) != value and name in NEEDED:
            raise ConfigError(f"{name}={os.environ[name]} is set, and engine=vllm needs {name}={value}. Unset it.")
    try:
        with quiet():
            import vllm
    except ImportError as error:
        raise ConfigError(
            f"engine=vllm: vLLM is installed, but does not import: {error}. Install it again, with the torch it asks "
            f"for: {INSTALL}"
        ) from error

    version = ".".join(str(vllm.__version__).split(".")[:2])
    if version not in VERSIONS:
        raise ConfigError(
            f"engine=vllm with vLLM {vllm.__version__}: seedtune changes weights inside vLLM, which it does for "
            f"versions {', '.join(VERSIONS)} only. Install one of them: {INSTALL}"
        )
    return vllm


def option_names() -> set[str]:
    """Return the names of vLLM's engine arguments."""
    with quiet():
        from vllm.engine.arg_utils import EngineArgs

    return {field.name for field in fields(EngineArgs)}


def start(arguments: Mapping[str, Any]) -> Any:
    """Return a running engine core with its workers."""
    with quiet():
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        close_queues()
        with threads_of_ranks(int(arguments.get("tensor_parallel_size", 1))):
            core = LLMEngine.from_engine_args(EngineArgs(**arguments))
    # vLLM's own shutdown also ends the process group, which other engines in this process may still need: see `stop`.
    core.engine_core._finalizer.detach()
    return core


@contextmanager
def threads_of_ranks(ranks: int) -> Iterator[None]:
    """While open, give each started process an equal share of the threads that fit.

    Only several ranks on the CPU need it; an ``OMP_NUM_THREADS`` set by the user stays.
    """
    if ranks == 1 or "OMP_NUM_THREADS" in os.environ or not on_cpu():
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, available_cores.available().threads // ranks))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


@contextmanager
def quiet() -> Iterator[None]:
    """While open, silence deprecation warnings of vLLM and its imports: users cannot fix them."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        yield


def pass_over_llvmlite() -> None:
    """Exclude llvmlite's modules from vLLM's search for kernels: their functions have any requested attribute.

    Must run before a worker is created, in its process.
    """
    with quiet():
        from vllm.triton_utils import dispatcher

    rebind = dispatcher._rebind_kernels

    def without(kernels: Any) -> None:
        modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] != "llvmlite"}
        dispatcher.sys = SimpleNamespace(modules=modules)
        try:
            with quiet():
                rebind(kernels)
        finally:
            dispatcher.sys = sys

    dispatcher._rebind_kernels = without


def stop(core: Any) -> None:
    """End an engine core's worker processes and release its resources."""
    core.engine_core.engine_core.model_executor.shutdown()
    core.engine_core.engine_core.scheduler.shutdown()
    gc.unfreeze()


def close_queues() -> None:
    """Let the queues to worker processes close their sockets when they are collected, as from version 0.32 on.

    Before, sockets were left to the garbage collector, which warns of each and may wait for ever.
    """
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    shutdown = MessageQueue.shutdown
    if "_close_zmq_on_collect" in vars(MessageQueue) or shutdown.__module__ == __name__:
        return

    def closing(queue: Any) -> None:
        shutdown(queue)  # another thread may still read from the queue
        if "_seedtune_end" not in vars(queue):
            queue._seedtune_end = weakref.finalize(queue, _close, _sockets(queue))

    MessageQueue.shutdown = closing


def _sockets(queue: Any) -> list[Any]:
    held = [queue.local_socket, queue.remote_socket]
    condition = queue._spin_condition
    if condition is not None:
        held += [condition.local_notify_socket, condition.read_cancel_socket, condition.write_cancel_socket]
    return [socket for socket in held if socket is not None]


def _close(sockets: list[Any]) -> None:
    contexts = {id(socket.context): socket.context for socket in sockets}
    for socket in sockets:
        socket.close(linger=0)
    for context in contexts.values():
        context.term()


def on_cpu() -> bool:
    """Return whether this build of vLLM computes on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def device_name() -> str:
    """Return the device's name with what decides its arithmetic, such as "cpu" or "cuda sm_90"."""
    from vllm.platforms import current_platform

    capability = None if on_cpu() else current_platform.get_device_capability()
    if capability is None:
        return str(current_platform.device_type)
    return f"{current_platform.device_type} sm_{capability.major}{capability.minor}"


def library() -> dict[str, Any]:
    """Return the versions of vLLM and torch, and on a CPU instructions and threads, which decide the order of sums."""
    import torch
    import vllm

    entry: dict[str, Any] = {"name": "vLLM", "version": str(vllm.__version__), "torch": str(torch.__version__)}
    if on_cpu():
        entry |= {"instructions": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    return entry


def device_memory() -> int:
    """Return the bytes of the first GPU's memory, without creating a context on it in this process."""
    from vllm.platforms import current_platform

    return int(current_platform.get_device_total_memory())


def count_ranks_plainly() -> None:
    """Count the ranks of tokens, which vLLM returns with log-probabilities, by torch operations.

    vLLM compiles that function, for half a minute in every process without a GPU; this engine never reads ranks.
    """
    with quiet():
        from vllm.v1.sample import sampler

    def ranks(logprobs: Any, chosen: Any) -> Any:
        return (logprobs >= chosen).sum(-1)

    sampler.batched_count_greater_than = ranks


# ------------------------------------------------------------------------------------------- in the worker: weights


def keep_weights() -> None:
    """Make the CPU build keep the weights that it packs; must run before a model is loaded."""
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm

    def keep(layer: Any, remove_weight: bool) -> None:
        pack(layer, remove_weight=False)
        layer._seedtune_pack = lambda: pack(layer, remove_weight=False)

    utils.dispatch_cpu_unquantized_gemm = keep


def packers(model: Any) -> list[Callable[[], None]]:
    """Return functions that repack every packed layer's weights after they have changed.

    Raises ModelError for a linear layer of a CPU build that reads a copy of its weights that cannot be updated.
    """
    found = []
    for name, layer in model.named_modules():
        if "_seedtune_pack" in vars(layer):
            found.append(vars(layer)["_seedtune_pack"])
        elif "cpu_linear" in vars(layer):
            raise ModelError(
                f"vLLM's {name} multiplies with a packed copy of its weights that seedtune cannot renew. Use "
                "engine=transformers."
            )
    return found


def fused_names(model: Any) -> Mapping[str, Sequence[str]]:
    """Map the last name of a fused module to the names of its tensors."""
    return dict(getattr(model, "packed_modules_mapping", {}))


def splits_of(model: Any) -> dict[str, Split]:
    """Return the split of every module of a model that divides its weights."""
    found = {name.replace(".base_layer", ""): split_of(module) for name, module in model.named_modules()}
    return {name: split for name, split in found.items() if split is not None}


def split_of(module: Any) -> Split | None:
    """Return how a layer divides its weights between fused tensors and ranks; None if it does not."""
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    if isinstance(module, VocabParallelEmbedding):
        own = module.shard_indices
        return Split((Run(own.org_vocab_start_index, own.org_vocab_end_index, module.org_vocab_size),))
    if not isinstance(module, (linear.ColumnParallelLinear, linear.RowParallelLinear)):
        return None
    rank, ranks = module.tp_rank, module.tp_size
    if isinstance(module, linear.QKVParallelLinear):
        return _attention(module, rank)
    if isinstance(module, linear.MergedColumnParallelLinear):
        return Split(tuple(_nth(rank, size // ranks, size) for size in module.output_sizes))
    if isinstance(module, linear.ColumnParallelLinear):
        return Split((_nth(rank, module.output_size // ranks, module.output_size),))
    whole = Run(0, module.output_size, module.output_size, rank == 0)
    return Split((whole,), _nth(rank, module.input_size // ranks, module.input_size))


def _attention(module: Any, rank: int) -> Split:
    """Split queries by heads; split keys and values, too, or replicate them on several ranks."""
    copies, heads, kv_heads = module.num_kv_head_replicas, module.num_heads, module.num_kv_heads
    queries = _nth(rank, heads * module.head_size, module.total_num_heads * module.head_size)
    keys, values = (
        _nth(rank // copies, kv_heads * size, module.total_num_kv_heads * size, owner=rank % copies == 0)
        for size in (module.head_size, module.v_head_size)
    )
    return Split((queries, keys, values))


def _nth(index: int, size: int, whole: int, *, owner: bool = True) -> Run:
    return Run(index * size, (index + 1) * size, whole, owner)


# ------------------------------------------------------------------------------------------- in the worker: adapters


def make_loras(worker: Any, load: Callable[[int, str], Any]) -> None:
    """Make the worker load adapters, initially none, by ``load(id, name)`` instead of from files."""
    manager = worker.model_runner.lora_manager
    manager.remove_all_adapters()
    manager._load_adapter = lambda request: load(request.lora_int_id, request.lora_name)


def lora_modules(worker: Any) -> set[str]:
    """Return the modules that support LoRA adapters, by their names in checkpoints."""
    manager = worker.model_runner.lora_manager._adapter_manager
    return {part for name in manager.modules for part in manager.packed_modules.get(name, [name])}


def lora_model(number: int, rank: int, factors: Mapping[str, tuple[Any, Any]]) -> Any:
    """Return an adapter W + B·A for the modules in ``factors``: name → (A (rank, inputs), B (outputs, rank))."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.lora_weights import LoRALayerWeights

    layers = {name: LoRALayerWeights(name, rank, rank, a, b) for name, (a, b) in factors.items()}
    return LoRAModel(number, rank, layers)


def unperturbed_needs_lora() -> bool:
    """Return whether requests without an adapter need a zero adapter: on the CPU they get the last slot's."""
    return on_cpu()


def lora_request(number: int, name: str) -> Any:
    """Return the LoRA request for an adapter."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=name, lora_int_id=number, lora_path="seedtune")


def lora_rank(rank: int) -> int:
    """Return the smallest ``max_lora_rank`` of vLLM that holds adapters of that rank."""
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    return min(size for size in get_args(MaxLoRARanks) if size >= rank)
