"""Model cards: metadata that the Hugging Face hub accepts, how a model was made, and how to check it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from seedtune.config.config import Config
from seedtune.config.data_and_rewards import OBJECTS, DatasetSettings
from seedtune.config.paths import BUILTIN_MODELS, id_and_revision, is_folder, public_name
from seedtune.tasks.data.datasets import is_data_file
from seedtune.types import __version__

TAG = "seedtune"
"""The tag of a card by which a repository is known as one that seedtune pushed."""

_LICENCES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gemma gfdl gpl
gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 lppl-1.3c mit mpl-2.0
ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib
"""
"""The hub's identifiers of licences (docs/hub/repositories-licenses); any other text is the name of another licence."""

_MEASURES = {"eval_reward": "reward", "eval_accuracy": "accuracy"}
"""Held-out metrics of a run → the hub's names of them."""


@dataclass(frozen=True, slots=True)
class Rights:
    """Licences of the base model and of the fine-tune, and a note, as far as they are known."""

    base_licence: str | None = None
    licence: str | None = None
    note: str | None = None

    def text(self) -> str:
        """Return the text for the model card."""
        base = f" ({self.base_licence})" if self.base_licence else ""
        own = f" Licence of the fine-tune: {self.licence}." if self.licence else ""
        note = f"\n\n{self.note}" if self.note else ""
        return f"The licence of the base model{base} applies.{own}{note}"


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a model was made, as far as its card says it."""

    config: Config
    generation: int
    rights: Rights = Rights()
    evaluations: Sequence[Mapping[str, Any]] = ()
    """Rows of the run's metrics; those of held-out evaluations count."""

    base: str = ""
    """The base model's name with the commit of its revision, if known; by default the name in ``config``."""


@dataclass(frozen=True, slots=True)
class Repository:
    """The repository on the hub that a card is for: its id, and whether it holds a pack instead of the model."""

    repo_id: str
    is_pack: bool


def card(made: Provenance, fingerprint: str, *, to: Repository | None = None) -> str:
    """Return the card of a model with this fingerprint of its weights, or of a pack that rebuilds it."""
    config, name = made.config, id_and_revision(public_name(made.config.model))[0]
    perturbation = f"{config.perturbation} perturbation"
    perturbation += f" of rank {config.rank}" if config.perturbation == "lowrank" else ""
    rows = [row for row in made.evaluations if "eval_reward" in row]
    results = {place: _measures(rows, generation) for place, generation in (("before", 0), ("after", made.generation))}
    parts = [
        f"# {name}, fine-tuned by evolution strategies",
        f"Made with [seedtune](https://pypi.org/project/seedtune/) {__version__} (arXiv 2509.24372): no gradients,\n"
        f"{made.generation} generations of {config.population} members, {config.sigma_words()}, {config.step_words()}, "
        f"{perturbation},\ntask `{config.identity()['task']}`, seed {config.seed}.",
        f"Base model: {_base_words(made)}.",
        *_held_out(results["before"], results["after"]),
        *(_use(made, to) if to else ()),
        f"Versions: {', '.join(_versions())}.",
        f"Weights fingerprint `{fingerprint}`. {made.rights.text()}",
    ]
    front = _metadata(made, results["after"], to).to_yaml(line_break="\n")
    return f"---\n{front}\n---\n\n" + "\n\n".join(parts) + "\n"


def is_of_seedtune(text: str) -> bool:
    """Whether the text of a repository's card has seedtune's tag."""
    from huggingface_hub import ModelCard

    try:
        return TAG in (ModelCard(text, ignore_metadata_errors=True).data.get("tags") or [])
    except (ValueError, TypeError):
        return False


def hub_id(model: str) -> str | None:
    """Return the id on the hub of a model or data set, without its revision; None for a folder or a built-in name."""
    place = id_and_revision(model)[0]
    if is_folder(model) or model in BUILTIN_MODELS or model == OBJECTS or is_data_file(place):
        return None
    try:
        validate_repo_id(place)
    except HFValidationError:
        return None
    return place


def _metadata(made: Provenance, after: Mapping[str, float], to: Repository | None) -> ModelCardData:
    datasets = list(dict.fromkeys(_datasets(made.config)))
    results = list(_eval_results(made.config, datasets, after))
    name = to.repo_id.rpartition("/")[2] if to else public_name(made.config.model)
    return ModelCardData(
        base_model=_base_id(made.config),
        datasets=datasets or None,
        library_name="seedtune" if to and to.is_pack else "transformers",
        pipeline_tag="text-generation",
        tags=[TAG, "evolution-strategies", "arxiv:2509.24372"],
        model_name=name if results else None,
        eval_results=results or None,
        **licence_metadata(made.rights.licence or made.rights.base_licence),
    )


def licence_metadata(licence: str | None) -> dict[str, Any]:
    """Return the metadata of a licence: the hub's identifier, or ``other`` with a name."""
    if not licence:
        return {}
    if licence.lower() in _LICENCES.split():
        return {"license": licence.lower()}
    name = re.sub(r"[^a-z0-9.+-]+", "-", licence.lower()).strip("-")
    return {"license": "other"} | ({"license_name": name} if name and name != "other" else {})


def _base_id(config: Config) -> str | None:
    return None if config.engine == "toy" else hub_id(config.model)


def _base_words(made: Provenance) -> str:
    place, options = id_and_revision(public_name(made.base or made.config.model))
    if _base_id(made.config) is None:
        kind = "a model that comes with seedtune" if place in BUILTIN_MODELS else "not on the hub under this name"
        return f"`{place}`, {kind}"
    revision = f" at revision `{options['revision']}`" if options else ""
    return f"[{place}](https://huggingface.co/{place}){revision}"


def _datasets(config: Config) -> Iterator[str]:
    held_out = config.eval_dataset
    for given in (config.train_dataset, *(held_out.values() if isinstance(held_out, dict) else [held_out])):
        if isinstance(given, DatasetSettings) and (found := hub_id(given.path)) is not None:
            yield found


def _measures(rows: Sequence[Mapping[str, Any]], generation: int) -> dict[str, float]:
    """Return the last held-out measures after a generation, by their names on the hub."""
    row: Mapping[str, Any] = next((row for row in reversed(rows) if row["generation"] == generation), {})
    found = {name: row.get(key) for key, name in _MEASURES.items()}
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def _eval_results(config: Config, datasets: Sequence[str], after: Mapping[str, float]) -> Iterator[EvalResult]:
    task = config.identity()["task"]
    for name, value in after.items():
        yield EvalResult(
            task_type="text-generation",
            dataset_type=datasets[-1] if datasets else re.sub(r"[^\w.-]+", "-", task),
            dataset_name=f"held-out prompts of the task {task}",
            metric_type=name,
            metric_name=f"held-out {name}, measured by the author",
            metric_value=value,
        )


def _held_out(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[str]:
    if after:
        rows = [f"| {name} | {before.get(name, math.nan):.4g} | {value:.4g} |" for name, value in after.items()]
        yield "\n".join(["| held out | base model | fine-tuned |", "| --- | ---: | ---: |", *rows]).replace("nan", "–")


def _use(made: Provenance, to: Repository) -> Iterator[str]:
    """Yield how to load or rebuild the model, and how to verify it."""
    base = "" if _base_id(made.config) or made.config.model in BUILTIN_MODELS else " --model BASE"
    if to.is_pack:
        yield (
            "This repository holds no weights but a pack: the seeds and coefficients that make them from the base "
            "model.\nRebuild the model, bit for bit:\n\n"
            f"```bash\npip install seedtune\nseedtune apply {to.repo_id} -o my-model{base}\n```"
        )
    else:
        yield (
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{to.repo_id}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{to.repo_id}")\n```'
        )
    yield (
        "Verify that the base model and the ledger of the run give these weights:\n\n"
        f"```bash\nhf download {to.repo_id} ledger.jsonl --local-dir run\nseedtune verify run{base}\n```"
    )


def _versions() -> Iterator[str]:
    for package in ("torch", "transformers", "safetensors", "huggingface_hub"):
        with suppress(PackageNotFoundError):
            yield f"{package} {version(package)}"
