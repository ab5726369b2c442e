"""Fetch single files from the hub, with errors that name the remedy."""

from pathlib import Path

from cobra.util.errors import UserError
from cobra.util.network import check_network_variables
from cobra.util.redaction import reason


def fetch(repo_id: str, filename: str, token: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Return the local path of a file of a hub repository, downloaded once into the cache.

    Raises:
        UserError: The hub cannot be reached, or the repository or file is not there or not open to the token.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    check_network_variables()
    try:
        return Path(hf_hub_download(repo_id, filename, token=token, cache_dir=cache_dir))
    except (EntryNotFoundError, RepositoryNotFoundError, HTTPError, OSError, ValueError) as error:
        # A file that is not in the cache and cannot be asked for is an EntryNotFoundError too; a repository that is
        # closed (GatedRepoError) is one that is not found.
        absent = isinstance(error, (EntryNotFoundError, RepositoryNotFoundError))
        if not absent or isinstance(error, LocalEntryNotFoundError):
            raise UserError(
                f"{filename} of {repo_id} is not in the cache and the hub cannot be reached ({type(error).__name__}: "
                f"{reason(error, 200)}): check the network, or fill the cache (HF_HOME) where there is one"
            ) from error
        raise UserError(
            f"the hub has no file {filename} in {repo_id} that this token may read ({type(error).__name__}): check the "
            "name, and give a token with --hf_token where the repository is closed"
        ) from error
