"""One file from the network: whole under its name, or a part that the next call goes on with.

Files of the Hugging Face hub go through huggingface_hub, which resumes and verifies by itself; all others come over
plain HTTP with range requests (RFC 9110, section 14).
"""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from cobra.preprocessing.archives import check_free_space
from cobra.preprocessing.progress import byte_progress
from cobra.util.errors import UserError
from cobra.util.files import write_json

# Seconds to wait before each new attempt; attempts that brought bytes are not counted.
RETRY_DELAYS = (1.0, 4.0, 16.0, 60.0)

_TIMEOUT_SECONDS = (10, 60)
# What a dropped connection can lose.
_BLOCK_BYTES = 2**15
_RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_HUB_DATASET = re.compile(r"https://huggingface\.co/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class _Retry(Exception):
    """The attempt failed in a way that another one may mend."""


def fetch(url: str, folder: Path) -> Path:
    """Fetch `url` into `folder` and return the file, named as in the URL; a file that is there already is taken.

    Raises:
        UserError: The server refuses, cannot be reached, or the file does not fit on the disk. What has come stays,
            and the next call goes on from there.
    """
    target = folder / url.rsplit("/", 1)[-1]
    folder.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        return target
    if match := _HUB_DATASET.fullmatch(url):
        return fetch_from_hub(match[1], match[2], match[3], folder)
    fetch_over_http(url, target)
    return target


def fetch_from_hub(repo_id: str, revision: str, filename: str, folder: Path) -> Path:
    """Fetch one file of a dataset on the Hugging Face hub into `folder` and return it.

    HF_ENDPOINT and HF_TOKEN are respected.

    Raises:
        UserError: The hub refuses or cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(hf_hub_download(repo_id, filename, repo_type="dataset", revision=revision, local_dir=folder))
    except (HTTPError, OSError) as error:
        raise UserError(
            f"{filename} of the dataset {repo_id} could not be fetched from the Hugging Face hub: "
            f"{' '.join(str(error).split())} Run the same command again; what has come is kept."
        ) from error


def fetch_over_http(url: str, target: Path) -> None:
    """Fetch `url` to `target`, going on where an earlier call stopped, and rename it into place when it is whole.

    A part is only continued where the server still has the same file, by its validator (ETag or Last-Modified) and
    size. The size is checked against Content-Length.

    Raises:
        UserError: The server refuses, or fails time and again without a new byte, or the disk is too small.
    """
    partial = _Partial(target)
    failures = 0
    most = partial.bytes_there
    while not partial.is_whole(url):
        try:
            with _http_errors(url):
                _attempt(url, partial)
        except _Retry as error:
            failures = 0 if partial.bytes_there > most else failures + 1
            most = max(most, partial.bytes_there)
            if failures > len(RETRY_DELAYS):
                raise UserError(
                    f"{url} could not be fetched: {error}, in {failures} attempts. {partial.bytes_there} bytes are "
                    f"kept in {partial.data}: run the same command again to go on from there."
                ) from error
            time.sleep(RETRY_DELAYS[max(failures - 1, 0)])
    partial.data.replace(target)
    partial.state.unlink()


class _Partial:
    """The bytes of a file that have come so far, and which file of the server they belong to."""

    def __init__(self, target: Path) -> None:
        self.data = target.with_name(target.name + ".part")
        self.state = target.with_name(target.name + ".part.json")

    @property
    def bytes_there(self) -> int:
        return self.data.stat().st_size if self.data.is_file() else 0

    def known(self, url: str) -> dict[str, Any] | None:
        """Return {url, validator, size, done} of the part, or None where there is nothing to go on with."""
        try:
            state = json.loads(self.state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = isinstance(state, dict) and state.keys() == {"url", "validator", "size", "done"} and state["url"] == url
        return state if same and self.data.is_file() else None

    def remember(self, url: str, validator: str | None, size: int | None, done: bool = False) -> None:
        write_json(self.state, {"url": url, "validator": validator, "size": size, "done": done})

    def is_whole(self, url: str) -> bool:
        state = self.known(url)
        return state is not None and (state["done"] or state["size"] == self.bytes_there)

    def drop(self) -> None:
        self.data.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)


@contextmanager
def _http_errors(url: str) -> Iterator[None]:
    """Turn what requests raises into a retry where the connection failed, and into a user's error otherwise."""
    try:
        yield
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _Retry(f"the connection failed ({error})") from error
    except requests.RequestException as error:
        raise UserError(f"{url} could not be fetched: {error}") from error


def _attempt(url: str, partial: _Partial) -> None:
    """Make one request and append to, or begin anew, the part."""
    state = partial.known(url)
    have = partial.bytes_there if state else 0
    # Without identity the server may compress, and sizes and ranges would be those of the compressed bytes.
    headers = {"Accept-Encoding": "identity"}
    if state and have:
        headers["Range"] = f"bytes={have}-"
        if state["validator"]:
            headers["If-Range"] = state["validator"]
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
        if response.status_code == 200:
            have = 0
            size = _content_length(response)
            partial.drop()
            partial.data.touch()
            partial.remember(url, _validator(response), size)
        elif response.status_code == 206 and state and _range(response) == (have, state["size"]):
            size = state["size"]
        elif response.status_code in (206, 416):
            partial.drop()
            raise _Retry("the server has another file now")
        elif response.status_code in _RETRIED_STATUSES:
            raise _Retry(f"the server answers {response.status_code} {response.reason}")
        else:
            raise UserError(f"{url} could not be fetched: the server answers {response.status_code} {response.reason}")
        _receive(response, partial, have, size)
        if size is None:
            partial.remember(url, None, None, done=True)


def _receive(response: requests.Response, partial: _Partial, have: int, size: int | None) -> None:
    if size is not None:
        check_free_space(partial.data.parent, size - have)
    name = partial.data.name.removesuffix(".part")
    with partial.data.open("r+b") as file, byte_progress(f"fetching {name}", size, have) as advance:
        file.seek(have)
        for block in response.iter_content(_BLOCK_BYTES):
            file.write(block)
            advance(len(block))
        file.flush()
        os.fsync(file.fileno())
    if size is not None and partial.bytes_there != size:
        raise _Retry(f"{partial.bytes_there} of {size} bytes have come")


def _content_length(response: requests.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _validator(response: requests.Response) -> str | None:
    """Return what If-Range may name: a strong ETag, else the date of the last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _range(response: requests.Response) -> tuple[int, int] | None:
    """Return (first byte, size of the whole file) of a Content-Range header."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return (int(match[1]), int(match[2])) if match else None
