"""Fetch files by URL, and list a dataset of the Hugging Face hub: its files, their commit and hashes."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, hf_hub_url
from huggingface_hub.hf_api import DatasetInfo
from huggingface_hub.utils import build_hf_headers

from cobra.preprocessing import transfer
from cobra.preprocessing.progress import ByteBars
from cobra.preprocessing.transfer import RETRIED_STATUSES, Remote, Unreachable, fetch_file
from cobra.util.errors import UserError
from cobra.util.network import check_network_variables
from cobra.util.redaction import reason, root_reason
from cobra.util.waiting import say, tell_waiting

_TIMEOUT_SECONDS = 5.0
# Seconds after which a hub that cannot be reached at all is reported, without further retries.
_REACH_SECONDS = 3.0
_RESOLVE_URL = re.compile(r"https://huggingface\.co/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Snapshot:
    """The files of a dataset at one commit."""

    commit: str
    files: dict[str, Remote]
    """The files by their names in the repository; each with its size and digest."""


def fetch(url: str, folder: Path, token: str | None = None) -> Path:
    """Fetch `url` into `folder` and return the file, named as in the URL; a file that is there already is taken.

    Datasets of the Hugging Face hub are checked by their hashes; for `token` see :func:`list_dataset`. The folder is
    made; it keeps the bytes of an interrupted call, and the next call resumes there.

    Raises:
        UserError: As :func:`list_dataset` and :func:`fetch_file`, or the dataset has no such file.
        OSError: The disk cannot be written.
    """
    target = folder / url.rsplit("/", 1)[-1]
    if not target.is_file():
        with ByteBars() as bars:
            fetch_file(_remote(url, token), target, folder, bars)
    return target


def _remote(url: str, token: str | None) -> Remote:
    match = _RESOLVE_URL.fullmatch(url)
    if not match:
        return Remote(url)
    repo_id, revision, name = match.groups()
    files = list_dataset(repo_id, revision, token).files
    if name not in files:
        raise UserError(f"the dataset {repo_id} on the Hugging Face hub has no file {name} at {revision}")
    return files[name]


def list_dataset(repo_id: str, revision: str = "main", token: str | None = None) -> Snapshot:
    """List the files of the dataset `owner/name` of the hub at a branch, tag or commit; HF_ENDPOINT is respected.

    Without a token HF_TOKEN and the login of `hf auth login` count.

    Raises:
        Unreachable: No network, or HF_HUB_OFFLINE is set.
        UserError: The hub refuses, or fails time and again.
    """
    info = _dataset_info(repo_id, revision, token)
    headers = {key: value for key, value in build_hf_headers(token=token).items() if isinstance(value, str)}
    transfer.mark_reached(constants.ENDPOINT)
    files = {}
    for file in info.siblings or ():
        digest = file.lfs.sha256 if file.lfs else file.blob_id
        if file.size is None or digest is None:
            raise UserError(f"{constants.ENDPOINT} does not state size and hash of {file.rfilename}: unset HF_ENDPOINT")
        # The commit, not the branch: all files are of one state even if the branch moves on while they come.
        url = hf_hub_url(repo_id, file.rfilename, repo_type="dataset", revision=info.sha)
        files[file.rfilename] = Remote(url, file.size, digest, headers, _terms_remedy(repo_id))
    return Snapshot(str(info.sha), files)


def _dataset_info(repo_id: str, revision: str, token: str | None) -> DatasetInfo:
    try:
        check_network_variables()
    except UserError as error:
        raise Unreachable(str(error)) from error
    began = time.monotonic()
    for delay in (*transfer.RETRY_DELAYS, None):
        try:
            with tell_waiting(f"waiting for {constants.ENDPOINT}"):
                return HfApi().dataset_info(
                    repo_id, revision=revision, token=token, files_metadata=True, timeout=_TIMEOUT_SECONDS
                )
        except errors.OfflineModeIsEnabled as error:
            raise Unreachable("HF_HUB_OFFLINE is set, so the Hugging Face hub is not asked: unset it") from error
        except errors.HfHubHTTPError as error:
            if error.response.status_code not in RETRIED_STATUSES:
                raise _refusal(repo_id, revision, error) from error
            problem: Exception = error
        except (errors.HTTPError, OSError) as error:
            if time.monotonic() - began > _REACH_SECONDS:
                raise Unreachable(f"{constants.ENDPOINT} cannot be reached ({root_reason(error)})") from error
            problem = error
        if delay is not None:
            say(f"{constants.ENDPOINT} fails ({root_reason(problem)}); next attempt in {delay:g} s")
            time.sleep(delay)
    raise UserError(
        f"{constants.ENDPOINT} fails time and again ({reason(problem)}): run the same command later"
    ) from problem


def _refusal(repo_id: str, revision: str, error: Exception) -> UserError:
    """Return the error with the remedy for a refusal."""
    page = f"{constants.ENDPOINT}/datasets/{repo_id}"
    if isinstance(error, errors.RevisionNotFoundError):
        remedy = f"It has no revision {revision!r}: give --revision a branch, tag or commit of {page}/commits."
    elif isinstance(error, errors.GatedRepoError):
        remedy = _terms_remedy(repo_id)
    else:
        remedy = (
            f"See whether {page} opens in a browser; a closed dataset needs a valid token in --hf_token (or HF_TOKEN)."
        )
    return UserError(f"the Hugging Face hub refuses the dataset {repo_id} ({reason(error)}). {remedy}")


def _terms_remedy(repo_id: str) -> str:
    return (
        f"Where {constants.ENDPOINT}/datasets/{repo_id} asks for it, accept its terms, and give --hf_token (or "
        "HF_TOKEN) the token of that account."
    )
