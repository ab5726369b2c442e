"""What must not change when a run goes on: every flag is compared unless it is listed, and what files hold."""

import json
import shutil
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cobra.models.run_folder import PROVENANCE
from cobra.preprocessing.packed.rows import RowImages
from cobra.training import resume_settings as setting_module
from cobra.training.config import PretrainConfig
from cobra.training.resume_settings import MAY_CHANGE, check_setting, flags_that_stay, setting_of, weights_hash
from cobra.util.errors import UserError
from cobra.util.provenance import resumed_record

pytestmark = pytest.mark.fault("A8")


def flags(config, prefix="") -> dict:
    """Return the values of all flags by name, groups that may change as one."""
    found = {}
    for field in fields(config):
        value, flag = getattr(config, field.name), prefix + field.name
        if is_dataclass(value) and flag not in MAY_CHANGE:
            found |= flags(value, f"{flag}.")
        else:
            found[flag] = value
    return found


def changed(config, flag):
    """Return a configuration with another value of one flag."""
    group, _, name = flag.rpartition(".")
    if group:
        return replace(config, **{group: changed(getattr(config, group), name)})
    value = getattr(config, name)
    other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "other"
    return replace(config, **{name: other})


def test_the_list_names_flags_that_there_are():
    assert MAY_CHANGE <= flags(PretrainConfig()).keys()


@pytest.mark.parametrize("flag", sorted(flags(PretrainConfig()).keys() - MAY_CHANGE))
def test_every_other_flag_is_compared(flag):
    config = PretrainConfig()
    config.lora.rank = 4
    matters = not flag.startswith("model.align_")
    assert (flags_that_stay(changed(config, flag)) != flags_that_stay(config)) == matters


@pytest.mark.parametrize("flag", sorted(MAY_CHANGE))
def test_listed_flags_may_change(flag):
    config = PretrainConfig()
    assert flags_that_stay(changed(config, flag)) == flags_that_stay(config)


def test_adapters_that_are_not_there_are_not_compared():
    config = PretrainConfig()
    assert flags_that_stay(changed(config, "lora.alpha")) == flags_that_stay(config)
    assert flags_that_stay(changed(config, "lora.rank")) != flags_that_stay(config)


def test_one_number_of_one_weight_tells_a_start_from_another():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 3).bfloat16())
    before = weights_hash(model)
    assert weights_hash(model) == before
    with torch.no_grad():
        model[0].weight[7, 3] += 1e-6
    assert weights_hash(model) != before
    scalar = nn.ParameterDict({"scale": nn.Parameter(torch.tensor(2.0))})
    assert weights_hash(scalar) != weights_hash(nn.ParameterDict({"scale": nn.Parameter(torch.tensor(3.0))}))


class Examples(list):
    """Rows of an annotation file."""

    sha256 = "a" * 64

    @property
    def has_image(self):
        return np.array(["image" in row for row in self])


class Rows:
    """A data set of rows with images, the last one missing."""

    def __init__(self, folder: Path) -> None:
        self.image_dir, self.images = folder, RowImages(Path(), folder)
        self.names = [f"{index}.png" for index in range(4)]
        for index, name in enumerate(self.names[:-1]):
            Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / name)
        rows = [{"image": name} for name in self.names] + [{}]
        self.rows = rows
        self.examples = Examples(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        if not (self.image_dir / self.rows[index]["image"]).is_file():
            raise UserError("missing")
        return {}


@pytest.fixture
def rows(tmp_path):
    return Rows(tmp_path)


def saved(tmp_path, monkeypatch, setting) -> Path:
    monkeypatch.setattr(setting_module, "read_state", lambda path: SimpleNamespace(setting=setting))
    return tmp_path / "state"


def made(rows, **changes):
    config = PretrainConfig()
    for name, value in changes.items():
        setattr(config.model, name, value)
    return setting_of(config, nn.Linear(2, 2), rows, None)


def test_images_are_compared_and_missing_ones_may_come(rows, tmp_path, monkeypatch):
    torch.manual_seed(0)
    before = made(rows)
    assert sorted(before["images"]) == rows.names[:-1] and json.loads(json.dumps(before)) == before
    state = saved(tmp_path, monkeypatch, before)
    Image.new("RGB", (4, 4)).save(tmp_path / rows.names[-1])
    torch.manual_seed(0)
    assert check_setting(tmp_path, state, made(rows)) == []
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "1.png")
    torch.manual_seed(0)
    with pytest.raises(UserError, match=r"begun with another image 1.png \(1 of 4 compared differ\)"):
        check_setting(tmp_path, state, made(rows))


def test_what_differs_is_named(rows, tmp_path, monkeypatch):
    torch.manual_seed(0)
    state = saved(tmp_path, monkeypatch, made(rows))
    rows.examples.sha256 = "b" * 64
    with pytest.raises(UserError) as refused:
        check_setting(tmp_path, state, made(rows, llm_max_length=77))
    told = str(refused.value)
    assert "model.llm_max_length 2048 (now 77)" in told
    assert "other weights to start from (--pretrained_checkpoint, or the backbones) (SHA-256 " in told
    assert "other rows (SHA-256 aaaaaaaaaaaa, now bbbbbbbbbbbb)" in told


def test_a_state_of_an_older_version_goes_on_and_what_it_does_not_tell_is_named(rows, tmp_path, monkeypatch):
    torch.manual_seed(0)
    setting = made(rows)
    old = ("learning_rate", "max_steps", "model", "stage", "seed", "rows", "data", "lora")
    state = saved(tmp_path, monkeypatch, {name: setting[name] for name in old})
    unknown = check_setting(tmp_path, state, setting)
    assert {"start", "images", "model.llm_max_length", "dataset.truncation"} <= set(unknown)
    with pytest.raises(UserError, match=r"seed 7 \(now 8\)"):
        check_setting(tmp_path, state, setting | {"seed": 8})


def test_the_record_of_the_beginning_stays(tmp_path):
    first, later = tmp_path / "first.pt", tmp_path / "later.pt"
    shutil.copy(__file__, first)
    begun = {"started": "1", "weights": {"path": str(first), "sha256": "1"}, "data": {"path": "rows", "sha256": "2"}}
    path = tmp_path / PROVENANCE
    path.write_text(json.dumps(begun))
    again = {"started": "2", "weights": {"path": str(later), "sha256": "3"}, "data": {"path": "moved", "sha256": "2"}}
    record = resumed_record(path, again)
    assert (record["started"], record["weights"]) == ("1", begun["weights"])
    assert record["data"] == again["data"] and record["resumed"] == [{"started": "2"}]
    path.write_text(json.dumps(record))
    assert resumed_record(path, again | {"started": "3"})["resumed"] == [{"started": "2"}, {"started": "3"}]
    path.write_text("{")
    assert resumed_record(path, again) == again
