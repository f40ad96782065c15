"""Repositories of the Hugging Face hub: created, filled in one commit, and read, with errors of one line.

Address, token and offline mode are those of huggingface_hub: HF_ENDPOINT, HF_TOKEN (or ``hf auth login``) and
HF_HUB_OFFLINE.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from seedtune.config.paths import id_and_revision
from seedtune.errors import HubError, SeedtuneError, first_line
from seedtune.run.artifacts.model_card import is_of_seedtune
from seedtune.types import __version__

PACK, LEDGER, CARD = "fine-tune.pack", "ledger.jsonl", "README.md"
"""Files of a repository with a fine-tune."""

_REPLACED = ["*.safetensors", "*.safetensors.index.json", PACK]
"""Files that a push deletes if it does not write them: weights in another number of files, or a pack."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A repository to push to, in whose name, and what of it is new."""

    repo_id: str
    """``user/name``, or ``name`` of the token's owner."""

    private: bool | None = None
    """Whether a new repository is private; by default as the owner's settings on the hub say."""

    commit_message: str = "End of training"
    token: str | None = None
    """The token, by default huggingface_hub's: HF_TOKEN, or that of ``hf auth login``."""

    def api(self) -> HfApi:
        """Return a client; HubError without a token or offline, before anything is sent."""
        if constants.HF_HUB_OFFLINE:
            raise HubError("HF_HUB_OFFLINE is set, and a push needs the hub. Unset it.")
        token = self.token or get_token()
        if not token:
            raise HubError("there is no token for the hub. Log in with 'hf auth login', or set HF_TOKEN to one.")
        return HfApi(token=token, library_name="seedtune", library_version=__version__)


def create(to: Destination) -> str:
    """Create the repository, or find that it is seedtune's; return its id.

    Raises HubError if the hub cannot be reached or refuses, and if the repository holds anything else.
    """
    with explained(to.repo_id, "Nothing was sent."):
        api = to.api()
        repo_id = api.create_repo(to.repo_id, private=to.private, exist_ok=True).repo_id
        info = api.model_info(repo_id)
        names = {file.rfilename for file in info.siblings or ()} - {".gitattributes"}
        text = Path(api.hf_hub_download(repo_id, CARD)).read_text("utf-8", "replace") if CARD in names else ""
    if names and not is_of_seedtune(text):
        raise HubError(
            f"{repo_id} exists and holds what seedtune did not push ({', '.join(sorted(names)[:3])}). Give another "
            "name, or delete that repository."
        )
    if to.private and not info.private:
        raise HubError(
            f"{repo_id} exists and is public; --private is for new repositories. Change its visibility in its settings "
            "on the hub, then push again."
        )
    return repo_id


def upload(folder: Path, repo_id: str, to: Destination) -> str:
    """Commit a folder's files to the repository, all or none; return the address of the commit.  Raises HubError."""
    fix = f"{repo_id} is unchanged: a push is one commit. Push again; files that the hub has are not sent twice."
    with explained(repo_id, fix):
        commit = to.api().upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=to.commit_message, delete_patterns=_REPLACED
        )
    return commit.commit_url


def fetch_pack(name: str) -> Path:
    """Download the pack of ``user/name`` or ``user/name@revision``; HubError if there is none, or no way to it."""
    place, options = id_and_revision(name)
    try:
        with explained(place, "Check the name."):
            api = HfApi(library_name="seedtune", library_version=__version__)
            return Path(api.hf_hub_download(place, PACK, revision=options.get("revision")))
    except HubError as error:
        if isinstance(error.__cause__, RemoteEntryNotFoundError):
            raise HubError(
                f"{name} has no {PACK}: it is no pack of seedtune. A whole model is loaded with "
                f'from_pretrained("{place}"); packs are pushed with: seedtune push RUN {place} --pack'
            ) from error
        raise


@contextmanager
def explained(repo_id: str, fix: str) -> Iterator[None]:
    """Turn any error of huggingface_hub within into a HubError of one line that ends with a fix, by default ``fix``."""
    try:
        yield
    except SeedtuneError:
        raise
    except Exception as error:  # the named boundary: httpx, hf_xet and huggingface_hub raise many types
        raise HubError(_message(repo_id, error, fix)) from error


def _message(repo_id: str, error: Exception, fix: str) -> str:
    place = constants.ENDPOINT
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = (error.server_message if isinstance(error, HfHubHTTPError) else None) or first_line(error)
    said = said.rstrip(".")
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is no id of a repository: give USER/NAME, of letters, digits, '-', '_' and '.'."
    if isinstance(error, LocalEntryNotFoundError):
        way = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{place} cannot be reached"
        return f"{repo_id} is not in the cache of this machine, and {way}. Try again with a way to the hub."
    if isinstance(error, GatedRepoError):
        return f"access to {repo_id} has to be granted: {said}. Ask for it at {place}/{repo_id}."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision: {said}. Check it at {place}/{repo_id}."
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return f"{place} does not take the token: {said}. Log in again with 'hf auth login', or set HF_TOKEN. {fix}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{place} has no repository {repo_id}, or it is private and the token has no access to it. Check the name; "
            "log in with 'hf auth login', or set HF_TOKEN."
        )
    if status in (402, 403):
        return (
            f"{place} refuses {repo_id} to this token: {said}. Use a token that may write there, or another name. {fix}"
        )
    if status is not None:
        return f"{place} answered {status} for {repo_id}: {said}. {fix}"
    if "Invalid metadata" in said:
        said = " ".join(str(error).split())
        return f"{place} does not take the card: {said} Give --licence or --base-licence another value. {fix}"
    if isinstance(error, (HfHubHTTPError.__mro__[1], OSError)):
        return f"cannot reach {place} for {repo_id}: {said}. Check the network and HF_ENDPOINT. {fix}"
    return f"{place} and huggingface_hub do not get on about {repo_id}: {said}. {fix}"
