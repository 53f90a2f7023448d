"""A stand-in for the Hugging Face hub on loopback: the few addresses that huggingface_hub 1.x ... 2.x asks.

    with Hub() as hub:
        hub.add("acme/tiny", {"config.json": b"{}"}, tags={"v1": "a" * 40})
        hub.add("acme/gated", {}, answer="gated")
        subprocess.run([...], env={**os.environ, **hub.environment()})

huggingface_hub reads its endpoint when it is imported, so the code under test runs in a process of its own.
`hub.requests` lists what was asked, as "METHOD /path".
"""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

Answer = Literal["ok", "unauthorised", "gated", "forbidden", "missing", "broken"]

_REFUSALS: dict[str, tuple[int, str, str]] = {  # status, X-Error-Code, X-Error-Message, as huggingface.co sends them
    "unauthorised": (401, "RepoNotFound", "Invalid username or password."),
    "gated": (403, "GatedRepo", "Access to this model is restricted; you are not in the authorized list."),
    "forbidden": (403, "", "This token lacks the permission."),
    "missing": (404, "RepoNotFound", "Repository not found"),
    "broken": (500, "", "Internal error"),
}
_PATHS = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(?:/(?P<verb>revision|tree|auth-check)(?:/(?P<rev>[^/]+))?.*)?$"
)
_FILES = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)$")


@dataclass
class Repo:
    """One repository: the same files in every revision; branches and tags by name."""

    files: dict[str, bytes]
    commit: str
    revisions: dict[str, str]
    answer: Answer = "ok"
    token: str | None = None  # with a token set, only requests that carry it are answered


@dataclass
class Hub:
    """A server for repositories that a test adds; use it as a context manager."""

    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    answer: Answer = "ok"  # "broken": every address answers 500

    def add(
        self,
        name: str,
        files: Mapping[str, bytes] | Path,
        *,
        kind: Literal["models", "datasets"] = "models",
        commit: str | None = None,
        tags: Mapping[str, str] | None = None,
        answer: Answer = "ok",
        token: str | None = None,
    ) -> Repo:
        """Add a repository from a mapping or a folder; `tags` maps further revision names to commits."""
        if isinstance(files, Path):
            files = {str(p.relative_to(files)): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()}
        commit = commit or hashlib.sha1(name.encode()).hexdigest()
        revisions = {"main": commit, commit: commit, **(tags or {})}
        repo = Repo(dict(files), commit, revisions | {c: c for c in revisions.values()}, answer, token)
        self.repos[kind, name] = repo
        return repo

    @property
    def url(self) -> str:
        """Address for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, **more: str) -> dict[str, str]:
        """Variables that send a child process here instead of to the real hub."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **more}

    def __enter__(self) -> Self:
        hub = self

        class Bound(_Handler):
            pass

        Bound.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Keep the test output clean; `hub.requests` has it."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.answer != "ok":
            return self._refuse(self.hub.answer)
        if match := _PATHS.match(path):
            kind, name, revision = match["kind"], match["name"], match["rev"] or "main"
        elif match := _FILES.match(path):
            kind, name, revision = ("datasets" if match["kind"] else "models"), match["name"], match["rev"]
        else:
            return self._refuse("missing")
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            return self._refuse("missing")
        if repo.answer == "gated":  # as the real hub: its description is public, its files are not
            if match.re is _FILES or match["verb"] == "auth-check":
                return self._refuse("gated")
        elif repo.answer != "ok":
            return self._refuse(repo.answer)
        if repo.token is not None and self.headers.get("Authorization") != f"Bearer {repo.token}":
            return self._refuse("unauthorised")
        commit = repo.revisions.get(revision)
        if commit is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        if match.re is _FILES:
            return self._file(repo, match["path"], commit)
        if match["verb"] == "auth-check":
            return self._json({})
        return self._json(_tree(repo) if match["verb"] == "tree" else _info(name, repo, commit))

    def _file(self, repo: Repo, path: str, commit: str) -> None:
        content = repo.files.get(path)
        head = {"X-Repo-Commit": commit}
        if content is None:
            return self._send(404, b"", head | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        return self._send(200, content, head | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _refuse(self, answer: str) -> None:
        status, code, message = _REFUSALS[answer]
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _json(self, data: object) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _info(name: str, repo: Repo, commit: str) -> dict[str, object]:
    siblings = [{"rfilename": path} for path in repo.files]
    return {"id": name, "sha": commit, "siblings": siblings, "private": False, "gated": False, "tags": []}


def _tree(repo: Repo) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for path, content in repo.files.items()
    ]
