"""Access to closed repositories of the hub."""

import os
from pathlib import Path


def read_hf_token(name_or_path: str) -> str | None:
    """Return the token in an environment variable or file of that name, or None where there is neither."""
    if name_or_path in os.environ:
        return os.environ[name_or_path]
    path = Path(name_or_path)
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
