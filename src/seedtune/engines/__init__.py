"""Engines evaluate members: they turn prompts into completions under perturbed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from seedtune.engines import threads
from seedtune.engines.base import Engine
from seedtune.errors import ConfigError
from seedtune.numerics.noise import Noise

if TYPE_CHECKING:  # processes that only compile kernels import this module, and start sooner without these imports
    from seedtune.config.config import Config


def _transformers(config: Config, noise: Noise) -> Engine:
    from seedtune.engines.transformers.engine import TransformersEngine

    return TransformersEngine(config.model, noise=noise, settings=config.transformers)


def _vllm(config: Config, noise: Noise) -> Engine:
    from seedtune.engines.vllm.engine import VllmEngine

    return VllmEngine(config.model, noise=noise, settings=config.vllm)


def _ray(config: Config, noise: Noise) -> Engine:
    from seedtune.engines.ray.engine import RayEngine

    return RayEngine(config, noise=noise)


def _toy(config: Config, noise: Noise) -> Engine:
    from seedtune.engines.toy.engine import ToyEngine

    return ToyEngine(config.model, noise=noise, settings=config.toy)


ENGINES: dict[str, Callable[[Config, Noise], Engine]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "toy": _toy,
    "ray": _ray,
}
"""Engine factories by their name in the configuration; each imports its engine only when called."""


def create(config: Config) -> Engine:
    """Return the engine that a configuration names, not yet loaded; it uses as many threads as fit."""
    engine = ENGINES[config.engine](config, noise_of(config))
    threads.limit()
    return engine


def noise_of(config: Config) -> Noise:
    """Return the noise parameters of a configuration."""
    return Noise(
        run_seed=config.seed,
        perturbation=config.perturbation,
        rank=config.rank,
        weights_dtype=config.weights_dtype,
        trainable=config.trainable,
        freeze=config.freeze,
        subspaces=config.subspaces,
    )


def check_tokenizer(config: Config, tokenizer: Any) -> None:
    """Raise ConfigError if ``tokenizer`` is not the one that the engine tokenises prompts with."""
    if "transformers" not in config.kinds:
        raise ConfigError(
            f"processing_class is for the transformers engine, not for engine={config.engine!r}. Leave it out."
        )
    from seedtune.engines.transformers import tokenization
    from seedtune.engines.transformers.checkpoint import ModelSource

    own = ModelSource.resolve(config.model, trust_remote_code=config.transformers.trust_remote_code)
    tokenization.check_same(own.tokenizer(), tokenizer)
