"""A stand-in for the Hugging Face hub and its CDN on loopback, which misbehaves on demand.

It speaks what huggingface_hub 1 and 2 ask of a dataset: the list of files with sizes and hashes, and for each file a
redirect from the hub to a signed link of the CDN, which answers ranges. Hub and CDN are two hosts (127.0.0.1 and
localhost): a token must reach the first and not the second.

In a test:

    with HubServer(folder) as hub:                      # serves the files in `folder` as they are on the disk
        hub.faults += [Fault("drop", after=1000), Fault("status", status=503)]
        subprocess.run([...], env={**os.environ, **hub.environment})
        assert hub.bytes_sent("image.zip.part-aa") == ...

As a process of its own (prints its URL, serves until it is killed; `GET /counts` tells the bytes sent of each file):

    python tests/hub_server.py FOLDER --chaos 0.3 --seed 1 --bytes_per_second 1000000
"""

import argparse
import hashlib
import json
import random
import re
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPO_ID = "Xkev/LLaVA-CoT-100k"
_BLOCK_BYTES = 2**16
_QUIET_SECONDS, _SETTLE_SECONDS = 0.05, 30.0


@dataclass
class Fault:
    """One request that goes wrong."""

    kind: str
    """`status` answers `status`; `drop` closes the connection after `after` bytes of the body; `truncate` does so too,
    but states the shorter length; `wrong` flips the byte at `after` of what it sends; `slow` waits `after` seconds
    first."""
    at: str = "cdn"
    """Which requests: of the `api` (list of files), the `hub` (redirects, small files) or the `cdn`."""
    name: str = ""
    """Only requests of this file; any if empty."""
    after: float = 0
    status: int = 503


@dataclass(frozen=True)
class Request:
    """A request that came."""

    at: str
    method: str
    name: str
    """The file asked for; empty for the list of files."""
    start: int
    """First byte asked for."""
    authorization: str | None


class HubServer:
    """Serves folders as commits of a dataset.

    Args:
        folder: Its files, subfolders too, are the first commit; `main` points to it.
        repo_id: Name of the dataset.
        plain: Names that are kept in git itself rather than LFS: served by the hub, hashed as git blobs.
        token: Where given, the hub answers only with it.
        link_seconds: How long a CDN link holds; 403 afterwards.
        bytes_per_second: Of each body.
        chaos: Share of the requests to hub and CDN that get a random fault.
        seed: Of the random faults.
        port: Of the hub; 0 takes a free one.
    """

    def __init__(
        self,
        folder: Path,
        repo_id: str = REPO_ID,
        plain: tuple[str, ...] = (),
        token: str | None = None,
        link_seconds: float = 600,
        bytes_per_second: float = float("inf"),
        chaos: float = 0,
        seed: int = 0,
        port: int = 0,
    ):
        self.repo_id, self.plain, self.token = repo_id, plain, token
        self.link_seconds, self.bytes_per_second, self.chaos = link_seconds, bytes_per_second, chaos
        self.random = random.Random(seed)
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.branches: dict[str, str] = {}
        self._commits: dict[str, Path] = {}
        self._hashes: dict[Path, tuple[str, str]] = {}
        self._sent: Counter[str] = Counter()
        self._answering, self._last_answer = 0, 0.0
        self._lock = threading.Lock()
        self.publish(folder)
        self._servers = [ThreadingHTTPServer(("127.0.0.1", number), _handler(self)) for number in (port, 0)]
        hosts = ("127.0.0.1", "localhost")
        self.url, self.cdn_url = (
            f"http://{host}:{server.server_address[1]}" for host, server in zip(hosts, self._servers, strict=True)
        )

    @property
    def environment(self) -> dict[str, str]:
        """What to add to a process' environment so that it takes this server for the hub."""
        local = {
            "no_proxy": "127.0.0.1,localhost",
            "NO_PROXY": "127.0.0.1,localhost",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
        }
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_TELEMETRY": "1", **local}

    def take_over(self, monkeypatch) -> None:
        """Let huggingface_hub in this process take this server for the hub; it has read HF_ENDPOINT already."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def publish(self, folder: Path, branch: str = "main") -> str:
        """Make the files in `folder` a new commit, which `branch` points to from now on, and return it."""
        commit = hashlib.sha1(f"{len(self._commits)} {folder}".encode()).hexdigest()
        self._commits[commit] = folder
        self.branches[branch] = commit
        return commit

    def bytes_sent(self, name: str | None = None, settled: bool = True) -> int:
        """Bytes of bodies sent, of one file or of all; as soon as no request is being answered, or at once."""
        if settled:
            self._settle()
        with self._lock:
            return self._sent.total() if name is None else self._sent[name]

    def forget(self) -> None:
        """Set the counters back, as soon as no request is being answered."""
        self._settle()
        with self._lock:
            self._sent.clear()
            self.requests.clear()

    def _settle(self) -> None:
        """Wait for threads that still answer, or count, what a client has or has given up, and that were slow to."""
        end = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < end:
            with self._lock:
                if not self._answering and time.monotonic() - self._last_answer > _QUIET_SECONDS:
                    return
            time.sleep(_QUIET_SECONDS / 5)
        raise TimeoutError(f"requests are still being answered after {_SETTLE_SECONDS:.0f} s")

    def start(self) -> "HubServer":
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    __enter__ = start

    def __exit__(self, *exception):
        self.stop()

    def answer(self, handler):
        """Answer one request."""
        with self._lock:
            self._answering += 1
        try:
            self._answer(handler)
        finally:
            with self._lock:
                self._answering -= 1
                self._last_answer = time.monotonic()

    def _answer(self, handler):
        path = urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path)
        if path == "/counts":
            return _send_json(handler, dict(self._sent))
        if path == "/api/agent-harnesses":
            # huggingface_hub asks for it once in a process, before anything else, and does without.
            return _refuse(handler, 404)
        at, folder, name = self._locate(handler, path)
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        authorization = handler.headers.get("Authorization")
        with self._lock:
            self.requests.append(Request(at, handler.command, name, start, authorization))
            fault = self._fault(at, name, folder)
        if fault.kind == "slow":
            time.sleep(fault.after)
        if fault.kind == "status" or (fault.kind in ("drop", "truncate") and at == "api"):
            return _refuse(handler, fault.status if fault.kind == "status" else 0)
        if at == "cdn":
            return self._answer_cdn(handler, folder / name, name, start, bool(asked), fault)
        return self._answer_hub(handler, at, folder, name, fault)

    def _locate(self, handler, path):
        """Return (api, hub or cdn, the commit's folder or None, name of the file)."""
        if match := re.fullmatch(r"/cdn/([0-9a-f]{40})/(.+)", path):
            return "cdn", self._commits[match[1]], match[2]
        revision, name = None, ""
        if match := re.fullmatch(rf"/api/datasets/{re.escape(self.repo_id)}(?:/revision/(.+))?", path):
            at, revision = "api", match[1] or "main"
        elif match := re.fullmatch(rf"/datasets/{re.escape(self.repo_id)}/resolve/([^/]+)/(.+)", path):
            at, revision, name = "hub", match[1], match[2]
        else:
            at = "unknown"
        return at, self._commits.get(self.branches.get(revision, revision)), name

    def _fault(self, at, name, folder):
        for index, fault in enumerate(self.faults):
            if fault.at == at and fault.name in ("", name):
                return self.faults.pop(index)
        if at in ("hub", "cdn") and folder and self.random.random() < self.chaos:
            size = (folder / name).stat().st_size if (folder / name).is_file() else 0
            after = self.random.randrange(size + 1)
            status = self.random.choice([403, 500, 503]) if at == "cdn" else 503
            return Fault(self.random.choice(["status", "drop", "truncate"]), at, name, after, status)
        return Fault("none")

    def _answer_hub(self, handler, at, folder, name, fault):
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            return _refuse(handler, 401, "RepoNotFound")
        if at == "unknown":
            return _refuse(handler, 401, "RepoNotFound")
        if folder is None:
            return _refuse(handler, 404, "RevisionNotFound")
        commit = next(commit for commit, files in self._commits.items() if files == folder)
        if at == "api":
            return _send_json(handler, {"id": self.repo_id, "sha": commit, "siblings": self._siblings(folder)})
        file = folder / name
        if not file.is_file():
            return _refuse(handler, 404, "EntryNotFound")
        sha256, git = self._hash(file)
        if name in self.plain:
            headers = {"ETag": f'"{git}"', "X-Repo-Commit": commit}
            return self._send_file(handler, file, name, 0, False, fault, headers)
        handler.send_response(302)
        expires = time.time() + self.link_seconds
        link = f"{self.cdn_url}/cdn/{commit}/{urllib.parse.quote(name)}?Expires={expires}"
        for key, value in {
            "Location": link,
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{sha256}"',
            "X-Linked-Size": str(file.stat().st_size),
            "Content-Length": "0",
        }.items():
            handler.send_header(key, value)
        return handler.end_headers()

    def _answer_cdn(self, handler, file, name, start, ranged, fault):
        expires = float(urllib.parse.parse_qs(urllib.parse.urlsplit(handler.path).query)["Expires"][0])
        if time.time() > expires:
            return _refuse(handler, 403)
        if handler.headers.get("Authorization"):
            # As S3 does: a signed link and a token at once are a mistake.
            return _refuse(handler, 400)
        return self._send_file(handler, file, name, start, ranged, fault, {"ETag": f'"{self._hash(file)[0][:32]}"'})

    def _send_file(self, handler, file, name, start, ranged, fault, headers):
        size = file.stat().st_size
        if ranged and start >= size:
            return _refuse(handler, 416)
        end = size if fault.kind != "truncate" else min(size, start + int(fault.after))
        handler.send_response(206 if ranged else 200)
        if ranged:
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        for key, value in {**headers, "Content-Length": str(end - start), "Connection": "close"}.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.close_connection = True
        if handler.command == "GET":
            last = min(end, start + int(fault.after)) if fault.kind == "drop" else end
            self._send_body(handler, file, name, start, last, fault)

    def _send_body(self, handler, file, name, start, end, fault):
        began, sent = time.monotonic(), 0
        with file.open("rb") as source:
            source.seek(start)
            while block := source.read(min(_BLOCK_BYTES, end - start - sent)):
                if fault.kind == "wrong" and sent <= fault.after < sent + len(block):
                    place = int(fault.after) - sent
                    block = block[:place] + bytes([block[place] ^ 255]) + block[place + 1 :]
                handler.wfile.write(block)
                sent += len(block)
                with self._lock:
                    self._sent[name] += len(block)
                time.sleep(max(0.0, sent / self.bytes_per_second - (time.monotonic() - began)))

    def _siblings(self, folder):
        found = []
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name, size = file.relative_to(folder).as_posix(), file.stat().st_size
            sha256, git = self._hash(file)
            entry = {"rfilename": name, "size": size, "blobId": git}
            if name not in self.plain:
                entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 135}
            found.append(entry)
        return found

    def _hash(self, file):
        """Return (SHA-256, hash as a git blob); made once for each file."""
        if file not in self._hashes:
            git = hashlib.sha1(f"blob {file.stat().st_size}\0".encode())
            with file.open("rb") as source:
                sha256 = hashlib.file_digest(source, "sha256").hexdigest()
                source.seek(0)
                while block := source.read(2**20):
                    git.update(block)
            self._hashes[file] = sha256, git.hexdigest()
        return self._hashes[file]


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            try:
                hub.answer(self)
            except ConnectionError:
                self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    return Handler


def _refuse(handler, status, code=""):
    """Answer with a status and no body; status 0 closes the connection without a word."""
    handler.close_connection = True
    if status:
        handler.send_response(status)
        if code:
            handler.send_header("X-Error-Code", code)
        handler.send_header("Content-Length", "0")
        # Else the client may send its next request before it sees that the connection is closed.
        handler.send_header("Connection", "close")
        handler.end_headers()


def _send_json(handler, value):
    body = json.dumps(value).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(body)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in (("port", 0), ("seed", 0), ("chaos", 0.0)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--bytes_per_second", type=float, default=float("inf"))
    parser.add_argument("--link_seconds", type=float, default=600)
    server = HubServer(**vars(parser.parse_args()))
    with server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
