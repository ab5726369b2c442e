"""Fetch one file from the network: whole under its name, or a part that the next call resumes.

Plain HTTP with range requests (RFC 9110, section 14), for files of the Hugging Face hub too: its own client (1.23 and
2.4 read) begins a file anew after an interrupt, and one part of LLaVA-CoT-100k has 10 GB.
"""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from cobra.preprocessing.archives import check_free_space
from cobra.preprocessing.progress import Bar, ByteBars
from cobra.util.errors import UserError
from cobra.util.files import write_json
from cobra.util.network import check_network_variables
from cobra.util.redaction import reason, root_reason
from cobra.util.waiting import tell_waiting

# Seconds to wait before each new attempt, seven minutes in all; attempts that brought bytes begin anew.
RETRY_DELAYS = (1.0, 4.0, 16.0, 60.0, 120.0, 240.0)
RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504}

# Seconds after which a server is given up that has not answered since this program began.
_REACH_SECONDS = 12.0
_reached: set[str] = set()
# To connect, and between two blocks of bytes.
_TIMEOUT_SECONDS = (5, 60)
# What a dropped connection can lose.
_BLOCK_BYTES = 2**16
_HASHED_BYTES = 2**20
_GIT_DIGITS = 40


@dataclass(frozen=True)
class Remote:
    """A file on a server, with the size and digest that are known beforehand."""

    url: str
    size: int | None = None
    """Bytes."""
    digest: str | None = None
    """SHA-256 as 64 hex digits, or the 40 of git's hash of a blob; the file is checked against it."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers of the request; requests keeps a token from other hosts that the server redirects to."""
    remedy: str = ""
    """A closing sentence for the error where the server refuses."""

    def hasher(self) -> "hashlib._Hash | None":
        """Return a hasher whose hash of the whole file is `digest`; None where that is not known."""
        if self.digest is None:
            return None
        if len(self.digest) == _GIT_DIGITS:
            return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        return hashlib.sha256()


class Unreachable(UserError):
    """A server gave no answer at all; files that are on the disk may do."""


def hash_file(hasher: "hashlib._Hash", path: Path, advance: Callable[[int], None]) -> str:
    """Feed a file to `hasher` and return the hash; `advance` is called with the bytes of every block."""
    with path.open("rb") as file:
        while block := file.read(_HASHED_BYTES):
            hasher.update(block)
            advance(len(block))
    return hasher.hexdigest()


def fetch_file(
    remote: Remote, target: Path, workspace: Path, bars: ByteBars, moved: Callable[[int], None] = lambda count: None
) -> None:
    """Fetch a file to `target`, resuming where an earlier call stopped, and rename it into place when it is whole.

    The bytes that have come are only continued where the server still has the same file: by the digest, or else by its
    validator (ETag or Last-Modified) and size. Size and digest are checked.

    Args:
        remote: The file.
        target: Path of the file, on the file system of `workspace`.
        workspace: Folder for the bytes that have come so far; made here.
        bars: Gets a bar for the file.
        moved: Called with the bytes as they come; negative where some are given up. An error of it ends the call.

    Raises:
        Unreachable: The server does not answer.
        UserError: The server refuses, or fails time and again without a new byte, or the disk is too small, or the
            content is wrong twice.
        OSError: The disk cannot be written.
    """
    check_network_variables()
    partial = _Partial(remote, target.name, workspace, bars)
    with bars.bar(f"fetching {target.name}", partial.size, partial.have) as bar:

        def advance(count: int) -> None:
            bar.advance(count)
            moved(count)

        for _ in range(2):
            _receive_all(partial, bars, bar, advance)
            if partial.is_right():
                break
            partial.restart(None, remote.size, advance)
        else:
            partial.delete()
            raise UserError(
                f"{remote.url} came twice with another content than its server states (hash {remote.digest}): a proxy, "
                "the disk or the memory of this machine changes bytes. Run the same command again, best over another "
                "network."
            )
    partial.data.replace(target)
    partial.delete()


def bytes_there(remote: Remote, target: Path, workspace: Path) -> int:
    """Return how many bytes of a file :func:`fetch_file` would not have to fetch again."""
    data, state = _paths(target.name, workspace)
    return data.stat().st_size if _known_state(remote, data, state) else 0


class _Retry(Exception):
    """The attempt failed in a way that another one may mend."""


def _paths(name: str, workspace: Path) -> tuple[Path, Path]:
    return workspace / f"{name}.part", workspace / f"{name}.part.json"


def _known_state(remote: Remote, data: Path, state_path: Path) -> dict[str, Any] | None:
    """Return {file, validator, size} of the bytes that have come, or None where none can be continued."""
    try:
        state = json.loads(state_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_state = isinstance(state, dict) and state.keys() == {"file", "validator", "size"}
    return state if is_state and state["file"] == (remote.digest or remote.url) and data.is_file() else None


class _Partial:
    """The bytes of a file that have come so far, and which file of the server they belong to; both on the disk."""

    def __init__(self, remote: Remote, name: str, workspace: Path, bars: ByteBars) -> None:
        self.remote = remote
        self.data, self._state = _paths(name, workspace)
        workspace.mkdir(parents=True, exist_ok=True)
        state = _known_state(remote, self.data, self._state)
        if state is None:
            self.have = 0
            self.restart(None, remote.size, lambda count: None)
            return
        self.validator, self.size, self.have = state["validator"], state["size"], self.data.stat().st_size
        self._hasher = remote.hasher()
        if self._hasher and self.have:
            with bars.bar(f"checking the part of {name}", self.have, least=math.inf) as bar:
                hash_file(self._hasher, self.data, bar.advance)

    def restart(self, validator: str | None, size: int | None, advance: Callable[[int], None]) -> None:
        """Discard the bytes that have come and begin a file of the server's."""
        advance(-self.have)
        self.data.unlink(missing_ok=True)
        self.validator, self.size, self.have = validator, size, 0
        self._hasher = self.remote.hasher()
        self._write_state()
        self.data.touch()

    def _write_state(self) -> None:
        state = {"file": self.remote.digest or self.remote.url, "validator": self.validator, "size": self.size}
        write_json(self._state, state)

    def append_blocks(self, blocks: Iterator[bytes], advance: Callable[[int], None]) -> None:
        """Append blocks; a body without a stated size is whole at its end."""
        with self.data.open("r+b") as file:
            file.seek(self.have)
            for block in blocks:
                file.write(block)
                self.have += len(block)
                if self._hasher:
                    self._hasher.update(block)
                advance(len(block))
                if self.size is not None and self.have > self.size:
                    break
            file.flush()
            os.fsync(file.fileno())
        if self.size is None:
            self.size = self.have
            self._write_state()

    def is_right(self) -> bool:
        """Return True if the content has the digest stated, or none is stated."""
        return self._hasher is None or self._hasher.hexdigest() == self.remote.digest

    def delete(self) -> None:
        """Delete the bytes and the state."""
        self.data.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)


def _receive_all(partial: _Partial, bars: ByteBars, bar: Bar, advance: Callable[[int], None]) -> None:
    """Make requests until the file is whole; each that fails is told in a line."""
    url, failures, most, began = partial.remote.url, 0, partial.have, time.monotonic()
    while partial.have != partial.size:
        try:
            _attempt(partial, bars, bar, advance)
        except (_Retry, requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            problem = str(error) if isinstance(error, _Retry) else f"the connection failed ({root_reason(error)})"
            failures = 0 if partial.have > most else failures + 1
            most = max(most, partial.have)
            delay = next(iter(RETRY_DELAYS[max(failures - 1, 0) :]), None)
            is_late = delay is None or time.monotonic() - began + delay > _REACH_SECONDS
            if is_late and _server(url) not in _reached:
                raise Unreachable(f"{_server(url)} does not answer ({root_reason(error)})") from error
            if delay is None:
                raise UserError(
                    f"{url} could not be fetched: {problem}, in {failures} attempts. {partial.have} bytes are kept in "
                    f"{partial.data}: run the same command again to go on from there."
                ) from error
            bars.print_line(f"fetching {url.rpartition('/')[2]}: {problem}; next attempt in {delay:g} s")
            time.sleep(delay)
        except requests.RequestException as error:
            raise UserError(f"{url} could not be fetched: {reason(error)}") from error


def mark_reached(url: str) -> None:
    """Remember that a server has answered: from now on a failure may pass, and is waited for."""
    _reached.add(_server(url))


def _server(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _attempt(partial: _Partial, bars: ByteBars, bar: Bar, advance: Callable[[int], None]) -> None:
    """Make one request and append to, or begin anew, the part; the hub redirects each to a link that expires."""
    remote = partial.remote
    # Without identity the server may compress, and sizes and ranges would be those of the compressed bytes.
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    if partial.have and partial.size is not None:
        headers["Range"] = f"bytes={partial.have}-"
        if partial.validator:
            headers["If-Range"] = partial.validator
    # `auth` keeps requests from putting what ~/.netrc says of the host in the place of the token.
    with tell_waiting(f"waiting for {_server(remote.url)}", bars.print_line):
        response = requests.get(
            remote.url, headers=headers, auth=lambda request: request, stream=True, timeout=_TIMEOUT_SECONDS
        )
    mark_reached(remote.url)
    with response:
        status, answer = response.status_code, f"the server answers {response.status_code} {response.reason}"
        if status == 200:
            length = response.headers.get("Content-Length", "")
            size = int(length) if remote.size is None and length.isdecimal() else remote.size
            # The digest says better than an ETag, which may differ between the CDN's servers, what belongs together.
            partial.restart(None if remote.digest else _validator(response), size, advance)
            bar.expect(size)
        elif status == 416 or (status == 206 and _range(response) != (partial.have, partial.size)):
            partial.restart(None, remote.size, advance)
            raise _Retry("the server has another file now")
        elif status in RETRIED_STATUSES or (status != 206 and response.history):
            raise _Retry(answer)
        elif status != 206:
            raise UserError(f"{remote.url} could not be fetched: {answer}. {remote.remedy}".rstrip())
        if partial.size is not None:
            check_free_space(partial.data.parent, partial.size - partial.have)
        partial.append_blocks(response.iter_content(_BLOCK_BYTES), advance)
    if partial.have > (partial.size or 0):
        partial.restart(None, remote.size, advance)
        raise _Retry("more bytes have come than the server stated")
    if partial.have != partial.size:
        raise _Retry(f"{partial.have} of {partial.size} bytes have come")


def _validator(response: requests.Response) -> str | None:
    """Return what If-Range may name: a strong ETag, else the date of the last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _range(response: requests.Response) -> tuple[int, int] | None:
    """Return (first byte, size of the whole file) of a Content-Range header."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return (int(match[1]), int(match[2])) if match else None
