"""Training images among those of an evaluation."""

import json

import pytest

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.contamination import find_overlap, find_training_ids, leave_out, read_training_ids
from cobra.preprocessing.llava_cot.report.coco_ids import CocoIds
from cobra.util.errors import UserError

IMAGES = [
    CaptionedImage(139, "000000000139.jpg", ("a",)),
    CaptionedImage(285, "val2014/COCO_val2014_000000000285.jpg", ("a",)),
    CaptionedImage("x", "000000000632.jpg", ("a",)),
    CaptionedImage(9, "other/9.png", ("a",)),
]
ROW = {"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def rows(*paths):
    return [ROW | ({} if path is None else {"image": path}) for path in paths]


def test_what_prepare_writes_is_found_and_read(tmp_path):
    ids = CocoIds()
    for path in ("coco/train2017/000000000139.jpg", "coco/train2017/000000000009.jpg", "COCO_val2014_000000000285.jpg"):
        ids.add(path)
    assert find_training_ids([tmp_path]) is None
    file = tmp_path / "mine" / "download" / "llava-cot-100k" / "coco_ids.json"
    ids.write(file)
    assert find_training_ids([tmp_path, tmp_path / "mine"]) == file
    training = read_training_ids(file)
    assert (training.numbers, training.source) == ({139, 9, 285}, str(file))


FORMS = {
    "splits": ({"train2017": [139, 7], "val2017": [632]}, {139, 7, 632}),
    "no splits": ({}, set()),
    "list": ([139, "632", "train2017/000000000007.jpg"], {139, 7, 632}),
    "rows": (
        rows("coco/train2017/000000000139.jpg", "sqa/train/9/image.png", None, "./coco/val2017/000000000632.jpg"),
        {139, 632},
    ),
}


@pytest.mark.parametrize(("content", "numbers"), FORMS.values(), ids=FORMS)
def test_forms_of_training_files(tmp_path, content, numbers):
    assert read_training_ids(write(tmp_path / "x.json", content)).numbers == numbers


def test_rows_come_as_lines_too(tmp_path):
    lines = "\n".join(json.dumps(row) for row in rows("coco/train2017/000000000139.jpg", "vg/VG_100K/632.jpg"))
    assert read_training_ids(write(tmp_path / "x.jsonl", lines)).numbers == {139}


BROKEN = {
    "number": (5, "holds 5; expected is coco_ids.json"),
    "captions": ({"images": [], "info": {}}, "expected is coco_ids.json"),
    "name": ([1, "dog.jpg"], r"has 'dog\.jpg' among its ids"),
    "null": ({"train2017": [None]}, "has None among its ids"),
    "true": ([True], "has True among its ids"),
    "other rows": ([{"image": "a.jpg"}], "row 0 .* has no conversations"),
    "not JSON": ("[1,", "column 4: it ends in the middle"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_other_files_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_training_ids(write(tmp_path / "x.json", content))


def test_a_file_that_is_not_there(tmp_path):
    for name in ("none.json", "none.jsonl"):
        with pytest.raises(UserError, match=rf"does not exist: .*{name}.*prepare_llava_cot"):
            read_training_ids(tmp_path / name)


def test_photos_are_compared_by_their_file_names_and_left_out(tmp_path):
    training = read_training_ids(write(tmp_path / "coco_ids.json", {"train2017": [285, 9, 632], "val2017": []}))
    overlap = find_overlap(IMAGES, training)
    # 9 is a number of its own, not that of a photo of COCO.
    assert overlap.image_ids == (285, "x") and overlap.images == 4
    assert "2 of 4 images (50.0%) (--exclude_ids leaves them out)" in overlap.sentence
    assert overlap.to_json() == {"source": training.source, "n": 2, "image_ids": [285, "x"], "excluded": False}
    kept, excluded = leave_out(IMAGES, overlap)
    assert [image.image_id for image in kept] == [139, 9]
    assert "2 of 4 images (50.0%), which were left out." in excluded.sentence and excluded.to_json()["excluded"]


def test_all_or_none_in_training(tmp_path):
    none = find_overlap(IMAGES, read_training_ids(write(tmp_path / "x.json", [1])))
    assert ": 0 of 4 images (0.0%). What" in none.sentence and leave_out(IMAGES, none)[0] == IMAGES
    every = find_overlap(IMAGES[:1], read_training_ids(write(tmp_path / "x.json", [139])))
    with pytest.raises(UserError, match=r"Nothing is left to evaluate: of 1 image all are among .*--exclude_ids"):
        leave_out(IMAGES[:1], every)


def test_where_nothing_is_known_that_is_said():
    overlap = find_overlap(IMAGES, None)
    assert "not known" in overlap.sentence and "--exclude_ids" in overlap.sentence
    assert overlap.to_json() == {"source": None, "n": None, "image_ids": None, "excluded": False}
    assert leave_out(IMAGES, overlap)[0] == IMAGES
