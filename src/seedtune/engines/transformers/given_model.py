"""Save a loaded model, which a Python program passes, as a folder beside the run, so that any program can replay it."""

from __future__ import annotations

import copy
import filecmp
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from seedtune.errors import ModelError, StorageError, storage_cause
from seedtune.numerics.model_files import quantisation, read


def save(model: Any, tokenizer: Any, folder: Path) -> str:
    """Save ``model`` as safetensors in ``folder``, unless it is there already, and return the folder's path.

    The model is not changed.  ``tokenizer`` None: that of ``model.name_or_path``, as in TRL.  Raises ModelError if the
    folder holds another model, or if no folder can hold this one, and StorageError if it cannot be written.
    """
    _check(model)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
            part = Path(place) / "model"
            _write(model, part)
            if folder.exists():
                _check_same(part, folder)
            else:
                (_tokenizer_of(model) if tokenizer is None else tokenizer).save_pretrained(part)
                part.rename(folder)
    except OSError as error:
        cause, fix = storage_cause(error)
        raise StorageError(f"cannot save the model in {str(folder)!r}: {cause}. {fix}.") from error
    return str(folder)


def _check(model: Any) -> None:
    """Raise ModelError for a model that a folder cannot hold as it is."""
    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        fix = "Give what model.merge_and_unload() returns." if type(model).__module__.startswith("peft") else ""
        raise ModelError(
            f"model is a {kind}, not a model's id, its folder or a PreTrainedModel of transformers. {fix}".rstrip()
        )
    if (method := quantisation(model.config)) is not None:
        raise ModelError(f"the model ({kind}) is quantised ({method}). Load it without a quantization_config.")
    if any(tensor.is_meta for tensor in model.state_dict(keep_vars=True).values()):
        raise ModelError(f"the model ({kind}) has tensors on the meta device, without values. Load it without offload.")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"the model ({kind}) has adapters. Merge them into it, or give its name.")
    first: Any = model.get_input_embeddings()
    last: Any = model.get_output_embeddings()
    tied = last is not None and first.weight.data_ptr() == last.weight.data_ptr()
    stated = bool(model.config.get_text_config().tie_word_embeddings)
    if last is not None and tied != stated:
        raise ModelError(
            f"the model ({kind}) has embeddings that are {'tied' if tied else 'not tied'}, but its config says "
            f"tie_word_embeddings={stated}, so it would load as another model. Set model.config.tie_word_embeddings="
            f"{tied}."
        )


def _write(model: Any, folder: Path) -> None:
    """Write weights and settings; transformers notes the precision and the class in the settings that it writes."""
    own = model.config, model.generation_config
    model.config, model.generation_config = copy.deepcopy(own)
    try:
        model.save_pretrained(folder)
    finally:
        model.config, model.generation_config = own


def _tokenizer_of(model: Any) -> Any:
    name = model.config.name_or_path
    if not name:
        raise ModelError("the model has no name, by which its tokenizer could be found. Give processing_class.")
    return read(AutoTokenizer, name, what=f"the tokenizer of {name!r}", fix="Give it: processing_class=tokenizer.")


def _check_same(part: Path, folder: Path) -> None:
    """Raise ModelError if a saved folder has other weights."""
    names = sorted(file.name for file in part.glob("*.safetensors"))
    held = sorted(file.name for file in folder.glob("*.safetensors"))
    if names != held or filecmp.cmpfiles(part, folder, names, shallow=False)[0] != names:
        raise ModelError(
            f"{str(folder)!r} holds another model, which was given to the run of this output_dir. Give that one again, "
            "as it was before training, or choose another output_dir."
        )
