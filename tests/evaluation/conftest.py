"""A small caption data set."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_vlm import COLOURS
from PIL import Image

from cobra.evaluation.data.caption_set import read_caption_set
from cobra.evaluation.metrics import java_metrics


@dataclass
class CaptionSet:
    annotations: Path
    image_dir: Path
    predictions: Path

    @property
    def images(self):
        return read_caption_set(self.annotations).images


@pytest.fixture(autouse=True, scope="module")
def without_java_metrics(request):
    """METEOR and SPICE take seconds for every set of captions: only their own tests run them."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_java_metrics":
            patch.setattr(java_metrics, "PACKAGE", "pycocoevalcap_that_is_not_installed")
        yield


@pytest.fixture
def captions(tmp_path):
    """Six one-coloured images in a subfolder, two captions each, and a results file for them."""
    folder = tmp_path / "coco"
    (folder / "images" / "val").mkdir(parents=True)
    images, annotations = [], []
    for number, (name, colour) in enumerate([*COLOURS.items()] * 2):
        Image.new("RGB", (8, 8), colour).save(folder / "images" / "val" / f"{number}.png")
        images.append({"id": 100 - number, "file_name": f"val/{number}.png"})
        annotations += [
            {"image_id": 100 - number, "caption": f"A {name} square on a wall."},
            {"image_id": 100 - number, "caption": f"There is a {name} square."},
        ]
    found = CaptionSet(folder / "captions.json", folder / "images", folder / "results.json")
    found.annotations.write_text(json.dumps({"images": images, "annotations": annotations}))
    found.predictions.write_text(json.dumps([{"image_id": image["id"], "caption": "A square."} for image in images]))
    return found
