"""COCO images told by their paths."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobra.preprocessing.llava_cot.report.coco_ids import CocoIds, coco_image, is_visual_genome


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("coco/train2017/000000000009.jpg", ("train2017", 9)),
        ("coco/val2017/000000581781.jpg", ("val2017", 581781)),
        ("train2014/123.png", ("train2014", 123)),
        ("a/b/Test2015/000000000001.JPG", ("test2015", 1)),
        ("aokvqa/images/COCO_val2014_000000123456.jpg", ("val2014", 123456)),
        # The name tells more than the folder.
        ("coco/train2017/COCO_val2014_000000123456.jpg", ("val2014", 123456)),
        ("coco/train2017/000000000009.txt", None),
        ("coco/train2017/0000000000009.jpg", None),
        ("coco/train2017/x9.jpg", None),
        ("coco/train2016/000000000009.jpg", None),
        ("coco/000000000009.jpg", None),
        ("nottrain2017/000000000009.jpg", None),
        ("coco/train2017/\u0661.jpg", None),
        ("sqa/train/9/image.png", None),
        ("", None),
    ],
)
def test_split_and_id_of_a_path(path, expected):
    assert coco_image(path) == expected


@given(st.sampled_from(["train2017", "val2017", "train2014"]), st.integers(0, 10**12 - 1), st.sampled_from(["", "x/"]))
def test_every_id_is_read_back(split, image_id, before):
    assert coco_image(f"{before}{split}/{image_id:012d}.jpg") == (split, image_id)
    assert coco_image(f"{before}COCO_{split}_{image_id:012d}.jpg") == (split, image_id)


@given(st.text())
def test_any_path_is_answered(path):
    found = coco_image(path)
    assert found is None or found[1] >= 0 and found[0][:-4] in ("train", "val", "test")
    assert not is_visual_genome(path) or "/" in path


def test_visual_genome_is_told_by_its_folders():
    assert is_visual_genome("vg/VG_100K/1.jpg") and is_visual_genome("images/VG_100K_2/1.jpg")
    assert not is_visual_genome("vg.jpg") and not is_visual_genome("vgg/1.jpg")


def test_file_holds_each_id_once_ascending_and_both_main_splits_always(tmp_path):
    found = CocoIds()
    for path in ("coco/train2017/30.jpg", "coco/train2017/4.jpg", "coco/train2017/30.jpg", "sqa/1.png"):
        found.add(path)
    found.write(tmp_path / "coco_ids.json")
    assert json.loads((tmp_path / "coco_ids.json").read_text()) == {"train2017": [4, 30], "val2017": []}
    first = (tmp_path / "coco_ids.json").read_bytes()
    turned = CocoIds()
    for path in ("coco/train2017/4.jpg", "coco/train2017/30.jpg"):
        turned.add(path)
    turned.write(tmp_path / "coco_ids.json")
    assert (tmp_path / "coco_ids.json").read_bytes() == first
    turned.add("coco/val2014/5.jpg")
    assert turned.counts() == {"train2017": 2, "val2017": 0, "val2014": 1}
