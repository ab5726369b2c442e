"""The wheel holds the whole package, and an editable install is one that type checkers see."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGED = ("pyproject.toml", "README.md", "LICENSE")
pytest.importorskip("setuptools", minversion="77")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A wheel and an editable wheel, built without a network from a copy of the sources."""
    folder = tmp_path_factory.mktemp("source")
    for path in [*(ROOT / name for name in PACKAGED), *(ROOT / "cobra").rglob("*")]:
        if path.is_file() and "__pycache__" not in path.parts:
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    code = (
        "from setuptools import build_meta\n"
        "for kind in ('wheel', 'editable'): print('BUILT', getattr(build_meta, f'build_{kind}')(f'out-{kind}'))"
    )
    command = [sys.executable, "-c", f"import os; os.mkdir('out-wheel'); os.mkdir('out-editable')\n{code}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder, *(zipfile.ZipFile(next(folder.glob(f"out-{kind}/*.whl"))) for kind in ("wheel", "editable"))


@pytest.mark.fault("E12")
def test_the_wheel_holds_every_file_of_the_package_and_the_command(wheels):
    folder, wheel, _ = wheels
    files = {path.relative_to(folder).as_posix() for path in (folder / "cobra").rglob("*") if path.is_file()}
    assert "cobra/py.typed" in files and files <= set(wheel.namelist())
    [entries] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "cobra-vlm = cobra.__main__:main" in wheel.read(entries).decode()


@pytest.mark.fault("E12")
def test_an_editable_install_is_a_path_that_type_checkers_read(wheels):
    folder, _, editable = wheels
    [path] = [name for name in editable.namelist() if name.endswith(".pth")]
    assert editable.read(path).decode().strip() == str(folder)
    assert not [name for name in editable.namelist() if name.endswith(".py")]
