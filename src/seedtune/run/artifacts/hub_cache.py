"""What this machine knows of a base model of the Hugging Face hub: its licence, and the commit of its revision."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from seedtune.config.foreign_data import parse_json, parse_yaml
from seedtune.config.paths import BUILTIN_MODELS, id_and_revision, is_folder, public_name


def pinned(model: str) -> str:
    """Return a model's public name; an id of the hub with the commit that this machine has of its revision."""
    if is_folder(model) or model in BUILTIN_MODELS:
        return public_name(model)
    place, options = id_and_revision(model)
    with suppress(OSError, ValueError):
        found = try_to_load_from_cache(place, "config.json", **options)
        if isinstance(found, str) and Path(found).parent.parent.name == "snapshots":
            return f"{place}@{Path(found).parent.name}"
    return model


def licence_of(model: str) -> str | None:
    """Return the licence that a base model's card or config.json states; None if there is none on this machine."""
    if model in BUILTIN_MODELS:
        return BUILTIN_MODELS[model]
    folder = Path(model).expanduser()
    card = _metadata(folder / "README.md" if folder.is_dir() else model)
    stated = card.get("license_name") if card.get("license") == "other" else card.get("license")
    if not isinstance(stated, str):
        with suppress(OSError, ValueError, AttributeError):
            stated = parse_json((folder / "config.json").read_bytes()).get("license")
    return stated if isinstance(stated, str) else None


def _metadata(card: Path | str) -> dict[str, Any]:
    """Read the metadata of a card, or of the card of a Hugging Face id if it was downloaded with the model."""
    with suppress(OSError, ValueError):
        place, options = id_and_revision(str(card))
        found = try_to_load_from_cache(place, "README.md", **options) if isinstance(card, str) else card
        text = Path(found).read_text("utf-8-sig", "replace") if isinstance(found, str | Path) else ""
        front = REGEX_YAML_BLOCK.search(text)
        stated = parse_yaml(front.group(2)) if front else None
        return stated if isinstance(stated, dict) else {}
    return {}
