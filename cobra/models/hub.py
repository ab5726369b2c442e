"""Fetch single files from the hub, with errors that name the remedy."""

import logging
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import requests

from cobra.util.errors import UserError
from cobra.util.network import check_network_variables
from cobra.util.program import command_line
from cobra.util.redaction import reason, redacted, root_reason
from cobra.util.waiting import say, tell_waiting

_TIMEOUT_SECONDS = 4.0
_LOGGER = logging.getLogger("huggingface_hub.utils._http")


class _RetryLines(logging.Filter):
    """Filter of huggingface_hub's warnings that makes one line of the two, or three, about an attempt that failed."""

    _FAILURE = re.compile(r"'?(?P<problem>.*?)'? thrown while requesting \w+ (?P<url>\S+)", re.DOTALL)
    _WAIT = re.compile(r"(?:Retrying in|Rate limited. Waiting) (?P<seconds>[\d.]+) ?s")
    _failure = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop a line of the pair and print the one that stands for both; let others pass."""
        text = record.getMessage()
        if failure := self._FAILURE.match(text):
            self._failure = f"{urlsplit(failure['url']).netloc} fails ({redacted(failure['problem'])})"
        elif wait := self._WAIT.match(text):
            say(f"{self._failure}; next attempt in {float(wait['seconds']):g} s")
        return failure is None and wait is None


_RETRIES = _RetryLines()


def check_hub() -> None:
    """Have huggingface_hub work from its cache alone where the hub does not answer, and say so once.

    Left to itself it asks six times within 25 s for each file, and prints each error as it is.

    Raises:
        UserError: A variable of the network is wrong.
    """
    from huggingface_hub import constants

    _LOGGER.addFilter(_RETRIES)
    if constants.HF_HUB_OFFLINE:
        return
    check_network_variables()
    try:
        with tell_waiting(f"waiting for {redacted(constants.ENDPOINT)}"):
            requests.head(constants.ENDPOINT, timeout=_TIMEOUT_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        constants.HF_HUB_OFFLINE = True
        say(f"{redacted(constants.ENDPOINT)} does not answer ({root_reason(error)}): files come from the cache alone")


def fetch(repo_id: str, filename: str, token: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Return the local path of a file of a hub repository, downloaded once into the cache.

    Raises:
        UserError: The hub cannot be reached, or the repository or file is not there or not open to the token.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    check_hub()
    try:
        return Path(hf_hub_download(repo_id, filename, token=token, cache_dir=cache_dir))
    except (EntryNotFoundError, RepositoryNotFoundError, HTTPError, OSError, ValueError) as error:
        # A file that is not in the cache and cannot be asked for is an EntryNotFoundError too; a repository that is
        # closed (GatedRepoError) is one that is not found.
        absent = isinstance(error, (EntryNotFoundError, RepositoryNotFoundError))
        if not absent or isinstance(error, LocalEntryNotFoundError):
            told = isinstance(error, LocalEntryNotFoundError)
            cause = "" if told else f" ({type(error).__name__}: {reason(error, 200)})"
            way = "unset HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "check the network"
            raise UserError(
                f"{filename} of {repo_id} is not in the cache and the hub cannot be reached{cause}: {way}, "
                f"or fill the cache (HF_HOME) where there is one: {command_line('fetch')}"
            ) from error
        raise UserError(
            f"the hub has no file {filename} in {repo_id} that this token may read ({type(error).__name__}): check the "
            "name, and give a token with --hf_token where the repository is closed"
        ) from error
