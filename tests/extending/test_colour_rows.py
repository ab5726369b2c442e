"""A data set from outside the package trains by its name, and says how its files are made."""

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


def test_the_scripts_know_it_when_they_are_run_with_it():
    command = [sys.executable, FOLDER / "extended.py", "colour_rows", "scripts/pretrain.py"]
    known = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "colours" in known
    unknown = subprocess.run([*command, "--dataset.type", "shapes"], cwd=ROOT, capture_output=True, text=True)
    assert unknown.returncode == 2 and "colours" in unknown.stderr
