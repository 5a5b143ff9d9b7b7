"""A server on this machine that answers `huggingface_hub` as the hub does, and fails on demand."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

LARGE = (".safetensors", ".npz", ".bin", ".pth")  # stored apart, with a redirection to the content


@dataclass
class Repo:
    """Commits, oldest first; `refs` are branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    refuses: int = 0  # the status of every answer: 401 of a wrong token, 403 of one too narrow

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """Add a commit, to which `ref` points from now on; its hash."""
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name], self.refs[ref] = files, name
        return name


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.requested: list[tuple[str, str]] = []  # (method, file)
        # What becomes of a file's content: "stall", "cut", "swap", or "stall once".
        self.faults: dict[str, str] = {}
        self.down = False

    @property
    def fetched(self) -> list[str]:
        """The files of which the content was asked for."""
        return [file for method, file in self.requested if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub, path = self.server, self.path.lstrip("/")
        if hub.down:
            return self._send(503, {})
        if path.startswith("content/"):
            owner, name, commit, file = unquote(path.removeprefix("content/")).split("/", 3)
            hub.requested.append((self.command, file))
            return self._send_file(hub.repos[f"{owner}/{name}"].commits[commit][file], file, {})
        where, found, rest = path.partition("/resolve/")
        if not found:
            return self._send(404, {})
        repo = hub.repos.get(where)
        if repo is None:  # the hub does not tell strangers which repositories exist
            return self._send(401, {"X-Error-Code": "RepoNotFound"})
        if repo.gated and self.headers.get("authorization") != "Bearer hf_granted":
            return self._send(403, {"X-Error-Code": "GatedRepo"})
        if repo.refuses:
            said = {401: "Invalid credentials in Authorization header", 403: "Forbidden"}
            return self._send(repo.refuses, {"X-Error-Message": said[repo.refuses]})
        revision, _, file = rest.partition("/")
        revision, file = unquote(revision), unquote(file)
        if revision == "refs":
            kind, number, file = file.split("/", 2)
            revision = f"refs/{kind}/{number}"
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        hub.requested.append((self.command, file))
        known = {"X-Repo-Commit": commit}
        if file not in repo.commits[commit]:
            return self._send(404, known | {"X-Error-Code": "EntryNotFound"})
        content = repo.commits[commit][file]
        if file.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            known |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"'}
            elsewhere = hub.url.replace("127.0.0.1", "localhost")  # another host, as the hub's
            known["Location"] = f"{elsewhere}/content/{where}/{commit}/{file}"
            return self._send(302, known | {"ETag": '"of-the-pointer"'})
        digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self._send_file(content, file, known | {"ETag": f'"{digest}"'})

    def _send_file(self, content: bytes, file: str, headers: dict[str, str]) -> None:
        fault = self.server.faults.get(file, "") if self.command == "GET" else ""
        if fault == "swap":
            content = content[:-1] + bytes([content[-1] ^ 1])
        begin = 0
        if wanted := self.headers.get("Range"):
            begin = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        status, part = (206 if wanted else 200), content[begin:]
        if fault in ("stall", "cut", "stall once"):
            self._send(status, headers, part, stop=0 if wanted else len(part) // 2)
            if fault == "stall once":
                del self.server.faults[file]
            if fault != "cut":
                time.sleep(0.6)  # longer than the client waits
            self.close_connection = True
            return
        self._send(status, headers, part)

    def _send(
        self, status: int, headers: dict[str, str], body: bytes = b"", stop: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:stop])
            self.wfile.flush()


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
