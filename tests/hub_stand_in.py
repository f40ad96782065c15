"""A stand-in of the Hugging Face hub: a local HTTP server that speaks what huggingface_hub calls.

Repositories are created, filled (pre-upload, LFS batch and upload, commit), described and read; the card's metadata are
checked by huggingface_hub's own classes.  Files over a few bytes of weights go by LFS.  Xet is not spoken: clients need
HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import disable_progress_bars

OWNERS = {"hf_ada": "ada", "hf_bob": "bob", "hf_reads": "ada", "hf_user": "user"}
"""Token → user; ``hf_reads`` may not write."""

LFS = (".safetensors", ".pack", "tokenizer.json")


@dataclass
class Repository:
    """Commits of a repository, the last one its head: their ids and files."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]

    def commit(self, files: dict[str, bytes], message: str) -> str:
        number = hashlib.sha1(repr((len(self.commits), message, sorted(files.items()))).encode()).hexdigest()
        self.commits.append((number, files))
        self.messages.append(message)
        return number


@dataclass
class Hub:
    """What the server holds, what it was asked, and how it fails."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failing: str | None = None
    """Requests whose line has this text are answered with 500."""

    address: str = ""

    def environment(self, folder: Path, token: str | None = "hf_ada") -> dict[str, str]:
        """The variables of a process that uses this hub, with its caches in ``folder``."""
        variables = {"HF_ENDPOINT": self.address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder)}
        return variables | {"HF_TOKEN": token or "", "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}

    def add(self, repo_id: str, files: dict[str, bytes], *, private: bool = False) -> Repository:
        """Put a repository on the hub."""
        self.repositories[repo_id] = Repository(private)
        self.repositories[repo_id].commit(files, "initial commit")
        return self.repositories[repo_id]


class RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - http.server's names

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.body, line = self.rfile.read(length), f"{self.command} {self.path}"
            hub.requests.append(line)
            try:
                if hub.failing is not None and hub.failing in line:
                    raise RefusedError(500, "the stand-in fails here")
                self._routed(unquote(urlsplit(self.path).path).strip("/").split("/"))
            except RefusedError as refused:
                self._send(
                    json.dumps({"error": str(refused)}).encode(), refused.status, code=refused.code, said=refused
                )

        def _send(self, data: bytes, status: int = 200, *, code: str = "", said: object = "", **headers: str) -> None:
            self.send_response(status)
            shown = {"X-Error-Code": code, "X-Error-Message": str(said), "Content-Length": str(len(data)), **headers}
            for name, value in shown.items():
                if value:
                    self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _send_json(self, value: Any) -> None:
            self._send(json.dumps(value).encode(), Content_Type="application/json")

        @property
        def user(self) -> str | None:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token and token not in OWNERS:
                raise RefusedError(401, "Invalid credentials in Authorization header")
            return OWNERS.get(token)

        def _routed(self, parts: list[str]) -> None:
            match self.command, parts:
                case "POST", ["api", "repos", "create"]:
                    self._create(json.loads(self.body))
                case "POST", ["api", "validate-yaml"]:
                    self._validate(json.loads(self.body)["content"])
                case "GET", ["api", "models", owner, name, *rest] if rest[:1] in ([], ["revision"], ["tree"]):
                    self._describe(f"{owner}/{name}", rest)
                case "POST", ["api", "models", owner, name, "preupload", _]:
                    self._preupload(self._writable(f"{owner}/{name}"), json.loads(self.body)["files"])
                case "POST", [owner, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                    self._writable(f"{owner}/{name.removesuffix('.git')}")
                    self._batch(json.loads(self.body)["objects"])
                case "PUT", ["blobs", oid]:
                    hub.blobs[oid] = self.body
                    self._send(b"")
                case "POST", ["api", "models", owner, name, "commit", _]:
                    self._commit(f"{owner}/{name}", [json.loads(line) for line in self.body.splitlines()])
                case (("GET" | "HEAD"), [owner, name, "resolve", revision, *path]):
                    self._resolve(f"{owner}/{name}", revision, "/".join(path))
                case _:
                    raise RefusedError(404, f"the stand-in does not speak {self.command} {self.path}")

        def _readable(self, repo_id: str) -> Repository:
            found = hub.repositories.get(repo_id)
            if found is None or (found.private and self.user != repo_id.partition("/")[0]):
                raise RefusedError(404, "Repository not found", "RepoNotFound")
            return found

        def _writable(self, repo_id: str) -> Repository:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if self.user != repo_id.partition("/")[0] or token == "hf_reads":
                raise RefusedError(403, "Forbidden: pass a token with write access")
            return self._readable(repo_id)

        def _create(self, asked: dict[str, Any]) -> None:
            if self.user is None:
                raise RefusedError(401, "Invalid username or password.")
            repo_id = f"{asked.get('organization') or self.user}/{asked['name']}"
            if "hf_reads" in self.headers["Authorization"] or not repo_id.startswith(f"{self.user}/"):
                raise RefusedError(403, f'You don\'t have the rights to create a model under "{repo_id}"')
            if repo_id in hub.repositories:
                url = {"url": f"{hub.address}/{repo_id}", "error": "You already created this model repo"}
                return self._send(json.dumps(url).encode(), 409, said="You already created this model repo")
            hub.add(repo_id, {".gitattributes": b""}, private=asked.get("visibility") == "private")
            return self._send_json({"url": f"{hub.address}/{repo_id}", "name": repo_id})

        def _validate(self, content: str) -> None:
            try:
                ModelCard(content)
                self._send_json({"errors": [], "warnings": []})
            except ValueError as error:
                self._send(json.dumps({"errors": [{"message": str(error)}], "warnings": []}).encode(), 400)

        def _describe(self, repo_id: str, rest: list[str]) -> None:
            repository = self._readable(repo_id)
            number, files = self._at(repository, rest[1] if rest else "main")
            if rest[:1] == ["tree"]:
                below = "".join(f"{part}/" for part in rest[2:])
                files = {path: data for path, data in files.items() if path.startswith(below)}
                if not files:
                    raise RefusedError(404, f"{below} does not exist", "EntryNotFound")
                rows = [{"type": "file", "path": path, "size": len(d), "oid": _oid(d)} for path, d in files.items()]
                return self._send_json(rows)
            siblings = [{"rfilename": name} for name in files]
            return self._send_json(
                {"id": repo_id, "sha": number, "private": repository.private, "siblings": siblings, "tags": []}
            )

        def _preupload(self, repository: Repository, files: list[dict[str, Any]]) -> None:
            rows = []
            for file in files:
                mode, there = "lfs" if file["path"].endswith(LFS) else "regular", repository.files.get(file["path"])
                oid = None if there is None else (hashlib.sha256(there).hexdigest() if mode == "lfs" else _oid(there))
                rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self._send_json({"files": rows})

        def _batch(self, objects: list[dict[str, Any]]) -> None:
            rows = [
                {**one, "actions": {"upload": {"href": f"{hub.address}/blobs/{one['oid']}", "header": {}}}}
                if one["oid"] not in hub.blobs
                else one
                for one in objects
            ]
            self._send_json({"transfer": "basic", "objects": rows})

        def _commit(self, repo_id: str, lines: list[dict[str, Any]]) -> None:
            repository = self._writable(repo_id)
            files, header = dict(repository.files), {}
            for line in lines:
                value = line["value"]
                match line["key"]:
                    case "header":
                        header = value
                    case "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    case "lfsFile":
                        files[value["path"]] = hub.blobs[value["oid"]]
                    case "deletedFile":
                        del files[value["path"]]
            number = repository.commit(files, header["summary"])
            self._send_json({"commitUrl": f"{hub.address}/{repo_id}/commit/{number}", "commitOid": number})

        def _at(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
            if revision == "main":
                return repository.commits[-1]
            for number, files in repository.commits:
                if number == revision:
                    return number, files
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

        def _resolve(self, repo_id: str, revision: str, path: str) -> None:
            number, files = self._at(self._readable(repo_id), revision)
            if path not in files:
                raise RefusedError(404, "Entry not found", "EntryNotFound")
            self._send(files[path], ETag=f'"{_oid(files[path])}"', X_Repo_Commit=number)

    return Handler


def _oid(data: bytes) -> str:
    """Git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def served() -> Iterator[Hub]:
    """Serve an empty hub on a port of this machine while open."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(hub: Hub, folder: Path, monkeypatch: Any, token: str | None = "hf_ada") -> None:
    """Let huggingface_hub in this process, which read its variables when it was imported, use the hub."""
    for name, value in hub.environment(folder, token).items():
        monkeypatch.setenv(name, value)
    values = {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_TOKEN_PATH": str(folder / "token"),
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    disable_progress_bars()
