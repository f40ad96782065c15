"""Read base models and write fine-tuned ones, always under Hugging Face names."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from seedtune.config.config import Config
from seedtune.config.paths import id_and_revision
from seedtune.engines.transformers.builtin_models import BUILTIN, builtin_folder
from seedtune.engines.transformers.members.weight_format import as_tensor
from seedtune.errors import ModelError, suggest
from seedtune.numerics.model_files import quantisation, read
from seedtune.numerics.weights import WeightArray

log = logging.getLogger("seedtune")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The source of a model: the name that the user gave, and the one passed to transformers."""

    name: str
    location: str
    trust_remote_code: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    """The ``revision`` of a Hugging Face id, if the name has one."""

    @classmethod
    def resolve(cls, name: str, *, trust_remote_code: bool = False) -> ModelSource:
        """Resolve a built-in alias, a local folder or a Hugging Face id; ModelError if the name cannot be any."""
        if name in BUILTIN:
            return cls(name, str(builtin_folder(name)), trust_remote_code)
        folder = Path(name)
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                fix = "Give a Hugging Face model folder."
                if (folder / "adapter_config.json").is_file():
                    fix = "It is an adapter: give what peft makes of it and its base model (merge_and_unload)."
                raise ModelError(f"the folder {name!r} has no config.json. {fix}")
            return cls(name, str(folder), trust_remote_code)
        place, options = id_and_revision(name)
        if folder.is_absolute() or name.startswith(".") or place.count("/") > 1:
            raise ModelError(f"there is no model folder {name!r}. Check the path.{suggest(name, BUILTIN)}")
        return cls(name, place, trust_remote_code, options)

    @classmethod
    def of(cls, config: Config) -> ModelSource:
        """Resolve the model of a configuration."""
        return cls.resolve(config.model, trust_remote_code=config.trust_remote_code)

    @property
    def folder(self) -> Path | None:
        """The folder with the model's files; None if it is not on this machine."""
        if Path(self.location).is_dir():
            return Path(self.location)
        config = try_to_load_from_cache(self.location, "config.json", **self.options)
        return Path(config).parent if isinstance(config, str) else None

    def load(self) -> Any:
        """Load the model in its checkpoint's own precision, on the CPU, in its own memory.

        Tensors are copied one by one: a tensor left in the memory-mapped checkpoint would keep all of it resident.
        """
        model = self._read(AutoModelForCausalLM, config=self.config(), dtype="auto")
        for tensor in model.state_dict(keep_vars=True).values():
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        return model

    def tokenizer(self) -> Any:
        """Load the tokenizer; ModelError if that fails."""
        return self._read(AutoTokenizer)

    def config(self) -> Any:
        """Return the model's configuration.

        Raises ModelError for quantised weights, and if transformers would fetch and run an attention kernel.
        """
        config = self._read(AutoConfig)
        if (kind := quantisation(config)) is not None:
            raise ModelError(
                f"the weights of the model {self.name!r} are quantised ({kind}), in steps that are larger than a "
                "member's perturbation. Give the checkpoint that it was quantised from."
            )
        for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
            kernel = getattr(part, "_attn_implementation", None)
            if "/" in str(kernel) and not self.trust_remote_code:
                raise ModelError(
                    f"the model {self.name!r} asks for attn_implementation={kernel!r}, a kernel that is downloaded and "
                    "run. Take it out of its config.json."
                )
        return config

    def _read(self, factory: Any, **options: Any) -> Any:
        known = f"({', '.join(BUILTIN)}), a local folder or a Hugging Face id.{suggest(self.name, BUILTIN)}"
        words = {"what": f"the model {self.name!r}", "fix": f"Give a built-in name {known}"}
        try:
            trusted = self.trust_remote_code
            return read(factory, self.location, trust_remote_code=trusted, **words, **self.options, **options)
        except ModelError as error:
            if "trust_remote_code" in str(error.__cause__) and not self.trust_remote_code:
                raise ModelError(
                    f"the model {self.name!r} brings code of its own, which is not run. Read it, and if you trust it, "
                    "give: --set trust_remote_code=true"
                ) from error
            raise


def write_model(
    source: ModelSource, tensors: Mapping[str, WeightArray], path: Path, *, dtype: str | None = None
) -> None:
    """Write the base model, with ``tensors`` (the current weights, by name) in place of its own, as a model folder.

    The folder has Hugging Face's layout.  Tensors are rounded once to the checkpoint's precision, or to ``dtype``
    ("float32", "bfloat16", "float16").
    """
    model = source.load()
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in tensors.items():
            parameters[name].copy_(as_tensor(array))
    model.save_pretrained(path)
    source.tokenizer().save_pretrained(path)
    if source.folder is not None:
        _copy_extras(source.folder, path)


EXTRAS = (
    *("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*"),
    *("*.model", "*.tiktoken", "tekken.json", "vocab.*", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
    "*processor_config.json",
)
"""Files of a base model that must accompany derived ones, and those that converters and other programs read."""


def _copy_extras(base: Path, path: Path) -> None:
    """Copy the files of the base model that `EXTRAS` names and transformers did not write.

    A link may lead to another file of the model's folder or, in the cache of Hugging Face, into the ``blobs`` of its
    repository; no other one is followed.
    """
    inside = base.resolve()
    places = [inside, inside.parents[1] / "blobs"] if inside.parent.name == "snapshots" else [inside]
    for file in {file for pattern in EXTRAS for file in base.glob(pattern)}:
        real, target = file.resolve(), path / file.name
        if not (any(map(real.is_relative_to, places)) and real.is_file()):
            log.warning("%s is not copied: it is no file of the model's folder", file)
        elif not target.exists():
            shutil.copyfile(real, target)
