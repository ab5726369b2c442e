"""What is made once has a place also for a user without a home and a name."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cobra.util.cache import cache_folders

pytestmark = pytest.mark.fault("F18")

NOBODY = """
import os, pwd, sys
pwd.getpwuid = {}.__getitem__
from cobra.models.mamba.ops import numba_runtime
from huggingface_hub import constants
print(constants.HF_HOME, numba_runtime._cache_folder(), sep="\\n")
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_home_comes_first(temporary, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    own = temporary / f"cobra-{os.getuid()}"
    assert list(cache_folders()) == [Path("/home/somebody/.cache/cobra"), own]
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert list(cache_folders()) == [Path("/cache/cobra"), own]
    assert own.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("taken", ["open to others", "a link", "a file"])
def test_a_folder_that_is_not_ones_own_is_not_used(temporary, monkeypatch, taken):
    """Compiled code is kept there, and the folder for temporary files is everybody's."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    own = temporary / f"cobra-{os.getuid()}"
    if taken == "open to others":
        own.mkdir()
        own.chmod(0o777)
    elif taken == "a link":
        own.symlink_to(temporary)
    else:
        own.touch()
    assert list(cache_folders()) == [Path("/cache/cobra")]


def test_libraries_make_no_folder_called_tilde(temporary, tmp_path):
    names = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "NUMBA_CACHE_DIR", "TRITON_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", NOBODY], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(temporary) for line in done.stdout.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
