"""seedtune pack and apply: the same bits elsewhere from a few kilobytes, or a reason and nothing written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import runs
from seedtune import Rights, apply_pack, export_run, pack_run
from seedtune.errors import PackError
from seedtune.run import directory, ledger, recorded_config, replay, sealing
from seedtune.run.artifacts import pack_format
from seedtune.run.artifacts.hub_cache import licence_of
from seedtune.trainer import ESTrainer


def trained(root: Path, **settings) -> Path:
    ESTrainer(args=runs.toy(root, **settings)).train()
    return root


def bits(folder: Path) -> bytes:
    """The weights, in the order and types of the file."""
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def file(run, tmp_path) -> Path:
    pack_run(run, tmp_path / "toy.pack")
    return tmp_path / "toy.pack"


# ------------------------------------------------------------------------ there and back


def test_a_packed_run_applied_elsewhere_is_the_export_bit_for_bit(command, run, tmp_path):
    code, output, errors = command("pack", run, "-o", tmp_path / "toy.pack", "--base-licence", "MIT")
    assert (code, errors) == (0, "")
    size = (tmp_path / "toy.pack").stat().st_size
    assert output.splitlines()[0] == f"packed 5 generations into {tmp_path / 'toy.pack'}, {size:,} bytes"
    assert output.splitlines()[-1] == f"rebuild it with: seedtune apply {tmp_path / 'toy.pack'} -o MODEL"
    code, output, errors = command("apply", tmp_path / "toy.pack", "-o", tmp_path / "applied")
    assert (code, errors) == (0, "")
    assert output.splitlines()[0].startswith("replayed 5 generations in ")
    assert output.splitlines()[1] == f"wrote the model after generation 5 to {tmp_path / 'applied'}"
    assert command("export", run, "-o", tmp_path / "exported")[0] == 0
    assert bits(tmp_path / "applied") == bits(tmp_path / "exported")


@pytest.mark.parametrize(
    "settings",
    [
        {"antithetic": False, "population": 3},
        {"rank": 3, "generations": 40, "fingerprint_steps": 1},
        {"shaping": "per_prompt", "rank": 2},
        {"prompts_per_generation": 1, "sigma": 1e-9},
        {"perturbation": "gaussian", "trainable": ("!layers.0.*",)},
        {"perturbation": "flipout", "shared_noise": 2, "generations": 9},
        {"perturbation": "gaussian", "weights_dtype": "model", "dtype": "bfloat16"},
        {"weights_dtype": "model", "toy": {"size": 5}, "dtype": "float16", "rank": 2, "generations": 30},
    ],
    ids=str,
)
def test_runs_of_other_settings_come_back_bit_for_bit(tmp_path, settings):
    root = trained(tmp_path / "run", **settings)
    pack_run(root, tmp_path / "pack")
    apply_pack(tmp_path / "pack", tmp_path / "applied")
    export_run(root, tmp_path / "exported")
    assert bits(tmp_path / "applied") == bits(tmp_path / "exported")


@pytest.mark.parametrize("generation", [0, 3, 4])
def test_an_earlier_generation_is_packed_as_it_was(run, tmp_path, generation):
    progress = []
    packed = pack_run(run, tmp_path / "pack", generation=generation, progress=lambda *done: progress.append(done))
    # Only where the ledger has no fingerprint is there something to replay.
    assert bool(progress) == (generation not in (2, 4))
    assert len(packed.updates) == packed.about.generations == generation
    apply_pack(tmp_path / "pack", tmp_path / "applied")
    export_run(run, tmp_path / "exported", generation=generation)
    assert bits(tmp_path / "applied") == bits(tmp_path / "exported")


def test_a_fingerprint_after_some_earlier_generations_travels_along(tmp_path):
    root = trained(tmp_path / "run", generations=40, fingerprint_steps=2)
    about = pack_run(root, tmp_path / "pack").about
    assert list(about.fingerprints) == ["2", "10", "20", "30", "40"]
    recorded = ledger.read(directory.RunPaths(root).ledger).fingerprints
    assert about.fingerprints == {done: recorded[int(done)] for done in about.fingerprints}


@pytest.mark.parametrize(("antithetic", "kilobytes"), [(True, 13), (False, 25)])
def test_two_hundred_generations_of_thirty_two_members_take_few_kilobytes(antithetic, kilobytes, tmp_path):
    size = {"generations": 200, "population": 32, "prompts_per_generation": 2}
    root = trained(tmp_path / "run", **size, evaluate_unperturbed=False, antithetic=antithetic)
    pack_run(root, tmp_path / "pack")
    assert (tmp_path / "pack").stat().st_size <= kilobytes * 1000
    apply_pack(tmp_path / "pack", tmp_path / "applied")
    export_run(root, tmp_path / "exported")
    assert bits(tmp_path / "applied") == bits(tmp_path / "exported")


def test_the_same_run_packs_to_the_same_bytes(run, file, tmp_path):
    pack_run(run, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


# ------------------------------------------------------------------- what it says and does not


def test_the_first_line_says_what_it_is_and_whose(run, tmp_path):
    rights = Rights(licence="apache-2.0", base_licence="llama: 3\nx", note="by me — see [paper]")
    pack_run(run, tmp_path / "pack", rights=rights)
    header = json.loads((tmp_path / "pack").read_bytes().split(b"\n")[0])
    recorded = ledger.read(directory.RunPaths(run).ledger).header
    assert header["base_fingerprint"] == recorded.base_fingerprint
    assert (header["model"], header["noise"], header["resolved_weights_dtype"]) == ("toy", "v1", "float32")
    assert header["config"]["seed"] == 0
    assert (header["licence"], header["base_licence"], header["note"]) == (
        "apache-2.0",
        "llama: 3\nx",
        "by me — see [paper]",
    )
    apply_pack(tmp_path / "pack", tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], "base_model" in front) == ("apache-2.0", False)  # a toy is no model of the hub
    assert "The licence of the base model (llama: 3\nx) applies. Licence of the fine-tune: apache-2.0." in card
    assert card.endswith("by me — see [paper]\n")


def test_no_reward_prompt_or_place_of_this_machine_is_in_it(tmp_path):
    place = tmp_path / "secret" / "base"
    place.mkdir(parents=True)
    root = trained(tmp_path / "run", system_prompt=None, stop=("confidential",))
    runs.edit_ledger(root, lambda data: data.update(model=str(place)) if "model" in data else None)
    about = pack_run(root, tmp_path / "pack").about
    raw = (tmp_path / "pack").read_bytes()
    assert about.model == "base"
    assert not any(word in raw for word in (b"secret", b"confidential", b"rewards", b"prompts"))


@pytest.mark.parametrize(
    ("card", "config", "licence"),
    [
        ("---\nlicense: mit\n---\n# Model", "{}", "mit"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "{}", "qwen-research"),
        ("---\nlicense: mit\nauthor: José\n---\n", "{}", "mit"),
        ("---\nlicense: [1]\n---\n", "{}", None),
        ("---\nlicense: [1\n---\n", "{}", None),
        ("---\njust text\n---\n", "{}", None),
        ("# Model\nlicense: mit", '{"license": "bsd"}', "bsd"),
        (None, '{"license": 1}', None),
        (None, "[", None),
        (None, "[]", None),
    ],
)
def test_the_licence_of_a_base_model_is_what_its_card_or_config_states(tmp_path, card, config, licence):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode("latin-1"))
    (tmp_path / "config.json").write_text(config)
    assert licence_of(str(tmp_path)) == licence


def test_a_model_that_is_not_on_this_machine_states_no_licence(tmp_path):
    assert licence_of(str(tmp_path / "nothing")) is None
    assert licence_of("nobody/no-such-model") is None


# --------------------------------------------------------------------------- refusals


def refused(failure, tmp_path: Path, file: Path, *, base: str = "toy") -> str:
    """The one line of a refused ``apply``, which has written nothing."""
    before = set(tmp_path.rglob("*"))
    message = failure("apply", file, "--model", base, "-o", tmp_path / "out" / "model")
    assert set(tmp_path.rglob("*")) == before
    return message


def test_a_truncated_file_is_refused(failure, file, tmp_path):
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    message = refused(failure, tmp_path, file)
    assert message == f"{file} is truncated: it has {len(whole) - 20} of {len(whole)} bytes. Copy it again."


def test_an_edited_file_is_refused(failure, file, tmp_path):
    whole = file.read_bytes()
    file.write_bytes(whole[:-50] + bytes([whole[-50] ^ 4]) + whole[-49:])
    assert refused(failure, tmp_path, file).startswith(f"{file} was changed after it was written: the checksum of it")
    file.write_bytes(whole.replace(b'"seed":0', b'"seed":1'))
    message = refused(failure, tmp_path, file)
    assert message.startswith(f"{file} was changed after it was written: the checksum of its header")


def test_another_file_is_refused(failure, run, tmp_path):
    message = refused(failure, tmp_path, directory.RunPaths(run).ledger)
    assert message.endswith("ledger.jsonl is not a pack. Give a file that 'seedtune pack' wrote.")
    assert refused(failure, tmp_path, tmp_path / "nothing").endswith("No such file or directory. Check the path.")


def forge(file: Path, **changes) -> None:
    """Other things in the header, and good checksums."""
    pack = pack_format.read(file)
    line, _, _ = file.read_bytes().partition(b"\n")
    header, _ = sealing.unseal(line)
    line, _ = sealing.seal({**header, **changes})
    body = line + pack_format.dump(pack).partition(b"\n")[2][: -pack_format.DIGEST]
    file.write_bytes(body + hashlib.blake2b(body, digest_size=pack_format.DIGEST).digest())


def test_a_newer_format_is_refused(failure, file, tmp_path):
    forge(file, seedtune_pack=2, seedtune="3.0")
    assert "has pack format 2, made by seedtune 3.0; this version reads format 1" in refused(failure, tmp_path, file)


def test_noise_and_settings_of_another_version_are_refused(failure, file, tmp_path):
    config = pack_format.read(file).about.config
    forge(file, noise="v2", seedtune="3.0")
    message = refused(failure, tmp_path, file)
    assert message.startswith(f"{file} was made by seedtune 3.0 and needs another version: ")
    assert "noise scheme 'v2'" in message
    forge(file, noise="v1", config={**config, "hyper": 1})
    assert "unknown setting 'hyper'" in refused(failure, tmp_path, file)


def test_a_wrong_base_is_refused_with_both_fingerprints(failure, file, tmp_path):
    about = pack_format.read(file).about
    message = refused(failure, tmp_path, file, base="other")
    assert f"made from the base model 'toy' with fingerprint {about.base_fingerprint}, but 'other' has " in message
    assert message.endswith("Give the same base model, in its original precision.")


@pytest.mark.parametrize("done", ["2", "5"])
def test_weights_that_come_out_otherwise_are_refused(failure, file, tmp_path, done):
    fingerprints = pack_format.read(file).about.fingerprints
    forge(file, fingerprints={**fingerprints, done: "ab" * 16})
    message = refused(failure, tmp_path, file)
    assert message.startswith(
        f"{file} does not give what it was made from: after {done} generations the fingerprint is "
    )
    assert message.endswith("Nothing was written.")


def test_forged_coefficients_are_found_by_the_fingerprint(file, tmp_path):
    pack = pack_format.read(file)
    first = pack.updates[0]
    terms = (first.terms[0]._replace(weight=first.terms[0].weight * 1.001), *first.terms[1:])
    changed = pack_format.Pack(pack.about, (type(first)(0, terms), *pack.updates[1:]))
    file.write_bytes(pack_format.dump(changed))
    with pytest.raises(PackError, match="after 2 generations the fingerprint is"):
        apply_pack(file, tmp_path / "model")


def test_weights_of_another_element_type_are_refused(failure, file, tmp_path):
    forge(file, resolved_weights_dtype="bfloat16")
    message = refused(failure, tmp_path, file)
    assert message.startswith(f"{file} was made with weights in bfloat16; here it would be float32, the type of 'toy'")


def test_an_output_that_is_used_is_refused_and_left_alone(failure, run, file, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("x")
    assert "is not empty" in failure("apply", file, "-o", tmp_path / "model")
    before = file.read_bytes()
    assert failure("pack", run, "-o", file) == f"'{file}' exists already. Choose another --output."
    assert file.read_bytes() == before


def test_settings_that_the_pack_decides_cannot_be_changed(failure, file, command, tmp_path):
    message = failure("apply", file, "-o", tmp_path / "model", "--set", "rank=2", "--set", "seed=4")
    assert message == "rank: 1 → 2; seed: 0 → 4: the run is what it is. Leave that out, or start a new run with it."
    assert command("apply", file, "-o", tmp_path / "model", "--set", "toy.delay=0.1")[0] == 0


def test_a_precision_that_cannot_be_written_is_refused(failure, file, tmp_path):
    assert failure("apply", file, "-o", tmp_path / "model", "--dtype", "int4").startswith("--dtype 'int4' is")
    assert not (tmp_path / "model").exists()


def test_a_generation_the_run_does_not_have_is_named(failure, run, tmp_path):
    message = failure("pack", run, "-o", tmp_path / "pack", "--generation", "6")
    assert message == f"generation 6 is not in {run}: it has generations 0 to 5."
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [({}, "lowrank perturbation of rank 1,"), ({"perturbation": "gaussian"}, "gaussian perturbation,")],
)
def test_the_card_of_an_applied_model_is_that_of_its_export_and_tells_how_it_was_made(tmp_path, settings, line):
    root = trained(tmp_path / "run", **settings)
    pack_run(root, tmp_path / "pack")
    apply_pack(tmp_path / "pack", tmp_path / "applied")
    export_run(root, tmp_path / "exported")
    card, exported = ((tmp_path / name / "README.md").read_text() for name in ("applied", "exported"))
    assert line in card
    assert exported.count("\n\n") == card.count("\n\n") + 1  # what the run measured is no part of a pack
    prose = [part for part in exported.split("\n\n")[1:] if not part.startswith("| held out |")]
    assert card.split("\n\n")[1:] == prose


def test_a_pack_that_cannot_be_written_leaves_nothing(failure, run, tmp_path):
    (tmp_path / "blocked").write_text("x")
    assert failure("pack", run, "-o", tmp_path / "blocked" / "pack").startswith("cannot write ")


def test_an_applied_model_answers_as_the_trained_one(run, file, tmp_path):
    apply_pack(file, tmp_path / "model")
    config = recorded_config.run_config(run)
    engine, _ = replay.load(run, config, ledger.read(directory.RunPaths(run).ledger))
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert all(np.array_equal(saved[name], array) for name, array in engine.weights.tensors.items())


def test_a_pack_that_names_no_engine_is_applied_with_one_that_is_given(file, tmp_path):
    config = dict(pack_format.read(file).about.config)
    del config["engine"]
    forge(file, config=config)
    apply_pack(file, tmp_path / "model", base="toy", sets=["engine=toy"])
    assert any((tmp_path / "model").iterdir())


@pytest.mark.parametrize("model", ["$SECRET", "org/${SECRET}", "\0"])
def test_the_card_has_the_packs_name_of_the_base_model_as_it_is(file, tmp_path, monkeypatch, model):
    monkeypatch.setenv("SECRET", "hf_token")
    forge(file, model=model)
    apply_pack(file, tmp_path / "model", base="toy")
    assert "hf_token" not in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("model", ["~", "~/base", "/etc/base", "./base", ".", ".."])
def test_a_pack_that_names_its_base_model_by_a_path_is_refused(failure, file, tmp_path, model):
    forge(file, model=model)
    assert f"names its base model by a path, {model!r}" in refused(failure, tmp_path, file)
