"""The hub's access token, from an environment variable or a file."""

import os
import re
from pathlib import Path

from cobra.util.errors import UserError
from cobra.util.redaction import remember_secret

# The hub's tokens have 37 characters.
_MAX_CHARACTERS = 1000
_EXPECTED = "the hub's token, one line of plain letters and digits"


def read_hf_token(name_or_path: str) -> str | None:
    """Return the token in an environment variable or file of that name, or None where there is neither or it is blank.

    White space and a byte order mark around it are no part of it. It is hidden in messages from now on. Where there is
    none, HF_TOKEN, which huggingface_hub takes then, is held to the same.

    Raises:
        UserError: The variable or file holds something else, cannot be read, or the token itself was given; the
            message does not show what it holds.
    """
    token = _read_named(name_or_path)
    if token is None and "HF_TOKEN" in os.environ:
        _checked_token(os.environ["HF_TOKEN"], "the environment variable HF_TOKEN")
    return token


def _read_named(name_or_path: str) -> str | None:
    if name_or_path in os.environ:
        return _checked_token(os.environ[name_or_path], f"the environment variable {name_or_path}")
    path = Path(name_or_path)
    where = f"the token file {path}"
    try:
        if not path.exists():
            if re.fullmatch(r"\s*hf_[A-Za-z0-9]{8,}\s*", name_or_path):
                remember_secret(name_or_path.strip())
                raise UserError(
                    "--hf_token is given what looks like a token itself, which would stay in the shell's history and "
                    "the run's files: put it into a file or an environment variable, and give the name of that"
                )
            return None
        # Anything else may never end.
        if not path.is_file():
            raise UserError(f"{where} is no file: --hf_token names an environment variable, or a file with {_EXPECTED}")
        with path.open("rb") as file:
            content = file.read(4 * _MAX_CHARACTERS + 1)
        return _checked_token(content.decode("utf-8-sig"), where)
    except UnicodeDecodeError:
        # Its own message, and a chained traceback, show bytes of the token.
        raise _token_error(where, "is not UTF-8 text; Windows' Notepad and PowerShell's > may write UTF-16") from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{where} cannot be read ({getattr(error, 'strerror', None) or type(error).__name__}): mend its "
            "permissions, or give another with --hf_token"
        ) from None


def _checked_token(text: str, where: str) -> str | None:
    token = text.strip().strip("\ufeff").strip()
    remember_secret(token)
    if len(token) > _MAX_CHARACTERS:
        raise _token_error(where, f"holds more than {_MAX_CHARACTERS:,} characters")
    if len(token.splitlines()) > 1:
        raise _token_error(where, f"holds {len(token.splitlines())} lines")
    if not re.fullmatch(r"[!-~]*", token):
        raise _token_error(where, "holds characters that no token has, spaces or others beyond ASCII")
    return token or None


def _token_error(where: str, found: str) -> UserError:
    return UserError(f"{where} {found}; expected {_EXPECTED}, or nothing: write the token alone into it")
