"""Push a fine-tune to the Hugging Face hub: the exported model, or a pack of kilobytes; with the run's ledger."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import hf_hub_download

from seedtune.config.paths import id_and_revision
from seedtune.engines.base import Engine
from seedtune.errors import StorageError, storage_cause
from seedtune.run import directory, ledger, recorded_config, replay
from seedtune.run.artifacts import hub
from seedtune.run.artifacts.export import provenance, write_export
from seedtune.run.artifacts.hub_cache import pinned
from seedtune.run.artifacts.model_card import Repository, Rights, card, hub_id
from seedtune.run.artifacts.pack import pack_run
from seedtune.run.sealing import seal, unseal


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of a push: where it is, the number of generations in it, and the bytes of its files."""

    repo_id: str
    url: str
    """Address of the commit."""

    generation: int
    bytes: int


@dataclass(frozen=True, slots=True)
class What:
    """What is pushed of a run: which generation, as a pack or as a model and in what precision."""

    generation: int | str | None = None
    is_pack: bool = False
    dtype: str | None = None
    rights: Rights = field(default_factory=Rights)


def push_run(
    run: str | Path,
    to: hub.Destination,
    what: What | None = None,
    *,
    sets: Iterable[str] = (),
    progress: replay.Progress | None = None,
) -> Pushed:
    """Push a run's model, or with ``what.is_pack`` its pack, and its ledger to the hub, in one commit.

    ``sets`` as in `seedtune.verify_run`.  The repository is created first, so that a refusal costs no replay.  Raises
    HubError if the hub refuses or cannot be reached, and the errors of `seedtune.export_run` or `seedtune.pack_run`.
    """
    root, what = Path(run), what or What()
    recorded = replay.RecordedRun.read(root)
    goal = replay.goal_of(root, recorded.contents.generations, what.generation, chosen=recorded.contents.chosen)
    config = recorded_config.for_weights(recorded.config, sets)

    def write_model(folder: Path, repository: Repository) -> None:
        with recorded.weights(config, goal, progress) as engine:
            made = provenance(recorded.config, goal, root, what.rights)
            write_export(engine, made, folder, dtype=what.dtype, to=repository)

    def write_pack(folder: Path, repository: Repository) -> None:
        folder.mkdir()
        pack = pack_run(root, folder / hub.PACK, generation=goal, rights=what.rights, sets=sets, progress=progress)
        made = provenance(recorded.config, goal, root, what.rights)
        text = card(made, pack.about.fingerprints[str(goal)], to=repository)
        (folder / hub.CARD).write_text(text, encoding="utf-8")

    write = write_pack if what.is_pack else write_model
    return _pushed(recorded, to, write, goal, is_pack=what.is_pack)


def push_engine(root: Path, engine: Engine, to: hub.Destination, what: What, generation: int) -> Pushed:
    """Push the model whose weights an engine has, those of the run after ``generation``, see `push_run`."""
    recorded = replay.RecordedRun.read(root)

    def write(folder: Path, repository: Repository) -> None:
        made = provenance(recorded.config, generation, root, what.rights)
        write_export(engine, made, folder, dtype=what.dtype, to=repository)

    return _pushed(recorded, to, write, generation, is_pack=False)


def _pushed(
    recorded: replay.RecordedRun,
    to: hub.Destination,
    write: Callable[[Path, Repository], None],
    generation: int,
    *,
    is_pack: bool,
) -> Pushed:
    """Create the repository, write its files beside the run, and upload them with the ledger."""
    root = recorded.root
    shipped = public_ledger(directory.RunPaths(root).ledger)
    repo_id = hub.create(to)
    _fetch_base_card(recorded.config.model)
    try:
        with tempfile.TemporaryDirectory(prefix=".pushing-", dir=root.absolute().parent) as scratch:
            folder = Path(scratch) / "files"
            write(folder, Repository(repo_id, is_pack))
            (folder / hub.LEDGER).write_bytes(shipped)
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            return Pushed(repo_id, hub.upload(folder, repo_id, to), generation, size)
    except OSError as error:
        cause, fix = storage_cause(error)
        raise StorageError(f"cannot write the files to push beside {root}: {cause}. {fix}, then push again.") from error


def public_ledger(path: Path) -> bytes:
    """Return a ledger for others, sealed again: with the base model's public name and without places of files.

    Raises LedgerError for a corrupted one.
    """
    ledger.read(path)
    before, after, lines = "", "", list[bytes]()
    for line in path.read_bytes().split(b"\n")[:-1]:
        found = unseal(line, before)
        if found is None:
            break
        data, before = found
        if not lines:
            data = {key: value for key, value in data.items() if key != "sources"}
            data["model"] = pinned(data["model"])
        sealed, after = seal(data, after)
        lines.append(sealed)
    return b"".join(lines)


def _fetch_base_card(model: str) -> None:
    """Bring the card of a base model of the hub to this machine, as far as possible: it states the licence."""
    if hub_id(model) is not None and "/" in model:
        place, options = id_and_revision(model)
        with suppress(Exception):
            hf_hub_download(place, hub.CARD, revision=options.get("revision"))
