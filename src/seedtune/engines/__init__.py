"""Engines evaluate members: they turn prompts into completions under perturbed weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from seedtune.engines import threads
from seedtune.engines.base import Engine, Tokenizer
from seedtune.errors import ConfigError
from seedtune.numerics.noise import Noise

if TYPE_CHECKING:  # processes that only compile kernels import this module, and start sooner without these imports
    from seedtune.config.config import Config
    from seedtune.engines.transformers.tokenization import ModelTokenizer


def _engine(config: Config, noise: Noise, *, kind: str, name: str) -> Engine:
    engine: Engine = getattr(import_module(f"seedtune.engines.{kind}.engine"), name)(config, noise=noise)
    return engine


def _ray(config: Config, noise: Noise) -> Engine:
    from seedtune.engines.ray import cluster

    cluster.check()
    from seedtune.engines.ray.engine import RayEngine

    return RayEngine(config, noise=noise)


ENGINES: dict[str, Callable[[Config, Noise], Engine]] = {
    "transformers": partial(_engine, kind="transformers", name="TransformersEngine"),
    "vllm": partial(_engine, kind="vllm", name="VllmEngine"),
    "toy": partial(_engine, kind="toy", name="ToyEngine"),
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
        subspaces=config.subspaces,
        shared_noise=config.shared_noise,
    )


def tokenizer(config: Config) -> Tokenizer:
    """Return the tokenizer of the engine that a configuration names; ModelError if there is no such model."""
    if set(config.kinds) == {"toy"}:
        from seedtune.engines.toy.engine import Characters

        return Characters()
    found = _model_tokenizer(config)
    found.check_ids("stop_token_ids", config.stop_token_ids)
    return found


def check_tokenizer(config: Config, given: Any) -> None:
    """Raise ConfigError if ``given`` is not the tokenizer that the engine tokenises prompts with."""
    if "transformers" not in config.kinds:
        raise ConfigError(
            f"processing_class is for the transformers engine, not for engine={config.engine!r}. Leave it out."
        )
    _model_tokenizer(config).check_same(given)


def _model_tokenizer(config: Config) -> ModelTokenizer:
    from seedtune.engines.transformers.checkpoint import ModelSource
    from seedtune.engines.transformers.tokenization import ModelTokenizer

    return ModelTokenizer(
        ModelSource.of(config), limit=config.vllm.option("max_model_len") if "vllm" in config.kinds else None
    )
