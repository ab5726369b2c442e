"""A data set from outside the package trains by its name, and says how its files are made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from few_steps import losses, train, write_colours

from cobra.util.errors import UserError

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


@pytest.fixture(autouse=True)
def registered(extend):
    extend("colour_rows")


def test_it_trains_by_its_name(tmp_path):
    write_colours(tmp_path)
    run = train(tmp_path, "--dataset.type", "colours", "--pretrained_checkpoint", "cobra-tiny")
    first, *_, last = losses(run)
    assert last < first
    assert "dataset_id: colours" in (run / "config.yaml").read_text()


def test_missing_rows_name_the_command_that_makes_them(tmp_path):
    with pytest.raises(UserError, match=f"rows.json. Make it: python make_colours.py --to {tmp_path}"):
        train(tmp_path, "--dataset.type", "colours")


def test_the_scripts_know_it_by_the_variable():
    known = start("colour_rows", "--help")
    assert known.returncode == 0 and "colours" in known.stdout
    unknown = start("colour_rows", "--dataset.type", "shapes")
    assert unknown.returncode == 2 and "colours" in unknown.stderr
    missing = start("colour_rows,no_such", "--help")
    assert missing.returncode == 2 and "COBRA_EXTENSIONS names 'no_such'" in missing.stderr


def start(extensions: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run scripts/pretrain.py with extensions out of this folder."""
    path = os.pathsep.join([str(FOLDER), str(ROOT)])
    environment = os.environ | {"COBRA_EXTENSIONS": extensions, "PYTHONPATH": path}
    command = [sys.executable, "scripts/pretrain.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
