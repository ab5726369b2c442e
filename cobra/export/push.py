"""Upload of an export to the hub."""

from pathlib import Path

from cobra.util.errors import UserError
from cobra.util.network import check_network_variables
from cobra.util.redaction import reason


def push(folder: Path, repo_id: str, private: bool, token: str | None) -> str:
    """Upload a folder to a repository, made where there is none, and return its address; `HF_ENDPOINT` names the hub.

    `private` refuses a repository that is open to everybody; without a token that of the hub's own login is taken.

    Raises:
        UserError: The hub cannot be reached or refuses, or the repository is not private.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    again = f"the folder is whole; to try again: hf upload {repo_id} {folder}"
    api = HfApi(token=token)
    check_network_variables()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        is_open = private and not api.model_info(repo_id).private
        if not is_open:
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload the model"))
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"{repo_id} cannot be uploaded to ({type(error).__name__}: {reason(error, 200)}): check "
            f"the network and that the token (--hf_token, or hf auth login) may write there; {again}"
        ) from error
    raise UserError(
        f"the repository {repo_id} is there already and is open to everybody, so nothing was uploaded: give --private "
        f"false if that is wanted, or another --push_to; {again}"
    )
