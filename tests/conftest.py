"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden fixtures; COBRA_GOLDEN_DIR points the golden tests at another set of the same form."""
    return Path(os.environ.get("COBRA_GOLDEN_DIR", Path(__file__).parent / "golden"))
