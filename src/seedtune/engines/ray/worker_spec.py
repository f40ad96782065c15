"""The start data of a worker, and the Ray resources it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from seedtune.config.config import Config
from seedtune.errors import ConfigError
from seedtune.numerics.machine import available_cores
from seedtune.numerics.noise import Noise


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The start data of a worker: settings of the model and the engine, noise, and threads."""

    config: Mapping[str, Any]
    noise: Noise
    threads: int

    @classmethod
    def of(cls, config: Config, noise: Noise, kind: str) -> WorkerSpec:
        """Return the start data of workers of a kind."""
        section = getattr(config, kind).model_dump(mode="json")
        if kind == "vllm" and config.vllm.tensor_parallel_size > 1:
            # In a placement group vLLM would start actors of its own, one per bundle.
            section.setdefault("distributed_executor_backend", "mp")
        products = config.products if kind == "transformers" else "auto"
        settings = {"model": config.model, "engine": kind, "dtype": config.dtype, "products": products, kind: section}
        settings["trust_remote_code"] = config.trust_remote_code
        return cls(settings, noise, max(1, int(cores_of(config))))

    def with_products(self, products: str) -> WorkerSpec:
        """Return the start data of later workers, once the products of this kind of worker are known."""
        return replace(self, config={**self.config, "products": products})


def cores_of(config: Config) -> float:
    """Return a worker's cores: the user's setting, an equal share of this machine's, or one on a cluster."""
    settings = config.ray
    if "CPU" in settings.resources:
        return settings.resources["CPU"]
    if settings.address is not None:
        return 1.0
    return float(max(1, available_cores.available().threads // sum(settings.kinds.values())))


def needs_of(config: Config, kind: str, gpus: float) -> dict[str, Any]:
    """Return the actor options of a worker, on a cluster with ``gpus`` GPUs in total."""
    settings = config.ray
    mine = settings.resources.get("GPU", _gpus_of(config, kind) if gpus else 0.0)
    # A private Ray cluster has no other users: any number of workers may share its cores.
    needs: dict[str, Any] = {"num_cpus": 0 if settings.address is None else cores_of(config), "num_gpus": mine}
    return {**needs, "resources": settings.of_a_cluster} if settings.of_a_cluster else needs


def _gpus_of(config: Config, kind: str) -> float:
    if kind == "vllm":
        return float(config.vllm.tensor_parallel_size)
    return 0.0 if kind == "toy" or config.transformers.device == "cpu" else 1.0


def check(config: Config, gpus: float) -> None:
    """Raise ConfigError for settings workers cannot share, or resources a local Ray never has (a cluster may grow)."""
    if "transformers" in config.ray.kinds and config.transformers.weights_folder is not None:
        raise ConfigError(
            f"transformers.weights_folder={config.transformers.weights_folder!r} is the file of one process, and "
            "the workers would write into it together. Leave it out."
        )
    if config.ray.address is not None:
        return
    total = sum(needs_of(config, kind, gpus)["num_gpus"] * count for kind, count in config.ray.kinds.items())
    if total > gpus:
        raise ConfigError(
            f"ray.workers={config.ray.workers} need {total:g} GPUs, and this machine has {gpus:g}. Use fewer, "
            "a share of a GPU for each (ray.resources.GPU=0.5), or a cluster (ray.address)."
        )
    if config.ray.of_a_cluster:
        raise ConfigError(
            f"ray.resources={config.ray.of_a_cluster} are of a cluster, and Ray is started on this machine alone. "
            "Leave them out, or give ray.address."
        )
