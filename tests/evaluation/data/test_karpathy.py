"""Karpathy's splits, as a file and as ids."""

import importlib.util
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cobra.evaluation.data.caption_set import read_caption_set
from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_index import ImageNames
from cobra.evaluation.data.karpathy import keep_ids, read_ids
from cobra.util.errors import UserError


def entry(number, split, *captions, **others):
    return {
        "filepath": "val2014",
        "filename": f"COCO_val2014_{number:012d}.jpg",
        "cocoid": number,
        "imgid": 900 + number,
        "split": split,
        "sentences": [{"raw": text, "tokens": text.split(), "sentid": place} for place, text in enumerate(captions)],
        **others,
    }


def write(folder, *entries):
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps({"images": list(entries), "dataset": "coco"}))
    return path


@pytest.fixture
def splits(tmp_path):
    return write(
        tmp_path, entry(9, "test", "a dog", "one dog"), entry(4, "restval", "a cat"), entry(2, "test", "a cow")
    )


def test_the_test_split_is_the_default(splits):
    found = read_caption_set(splits)
    assert found.images == [
        CaptionedImage(9, "val2014/COCO_val2014_000000000009.jpg", ("a dog", "one dog")),
        CaptionedImage(2, "val2014/COCO_val2014_000000000002.jpg", ("a cow",)),
    ]
    assert set(found.known) == {9, 4, 2}
    assert (found.form, found.pictures) == ("Karpathy's captions, split test", None)
    assert [image.image_id for image in read_caption_set(splits, split="restval").images] == [4]


def test_flickr_has_ids_and_folders_of_its_own(tmp_path):
    bare = {"filename": "1000092795.jpg", "imgid": 3, "split": "test", "sentences": [{"raw": "a dog"}]}
    assert read_caption_set(write(tmp_path, bare)).images == [CaptionedImage(3, "1000092795.jpg", ("a dog",))]


BROKEN = {
    "no such split": ([entry(1, "train", "a")], "split 'test'; it has: 'train' \\(1 image\\).*--split"),
    "repeated": ([entry(1, "test", "a"), entry(1, "train", "a")], r"images\[1\]: the cocoid 1 was there before"),
    "no captions": ([entry(1, "test")], "no caption for 1 image: 1"),
    "no text": ([entry(1, "test", sentences=[{"tokens": []}])], r"images\[0\] has the sentence .*`raw`"),
    "no list": ([entry(1, "test", sentences={})], r"images\[0\] has the sentences \{\}"),
    "no name": ([entry(1, "test", "a", filename=None)], r"images\[0\].*`filename`"),
    "outside": ([entry(1, "test", "a", filepath="../..")], r"images\[0\].*leads out of its folder"),
    "no object": ([entry(1, "test", "a"), 5], r"images\[1\] is 5"),
}


@pytest.mark.parametrize(("entries", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files(tmp_path, entries, message):
    with pytest.raises(UserError, match=message):
        read_caption_set(write(tmp_path, *entries))


VALUES = (
    st.none() | st.integers(0, 2) | st.text(max_size=2) | st.sampled_from(["test", "a.jpg", [], [{"raw": "x"}], [5]])
)
ENTRIES = st.dictionaries(st.sampled_from("filename cocoid imgid split sentences filepath".split()), VALUES)


@given(st.lists(ENTRIES | VALUES, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_any_entries_are_read_or_refused_in_words(tmp_path, entries):
    path = write(tmp_path, {"sentences": []} | entry(1, "test", "a"), *entries)
    try:
        assert read_caption_set(path).images
    except UserError as error:
        assert str(path) in str(error)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the form of eccv-caption, whose code must not run."""
    data = tmp_path / "site" / "eccv_caption" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise RuntimeError")
    (data / "original_image_to_caption.json").write_text(json.dumps({"9": [1, 2], "4": [3]}))
    monkeypatch.syspath_prepend(data.parents[1])


def coco_file(folder, *numbers):
    path = folder / "captions_val2014.json"
    images = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in numbers]
    captions = [{"image_id": number, "caption": f"caption {number}"} for number in numbers]
    path.write_text(json.dumps({"images": images, "annotations": captions}))
    return path


def test_the_packages_ids_keep_the_test_images_in_the_files_order(tmp_path, package):
    found = read_caption_set(coco_file(tmp_path, 4, 5, 9), image_ids="karpathy-test")
    assert [image.image_id for image in found.images] == [4, 9]
    assert set(found.known) == {4, 5, 9}
    assert found.form == "COCO captions, 2 of karpathy-test"


def test_captions_of_another_year_lack_test_images(tmp_path, package):
    with pytest.raises(UserError, match=r"does not hold 1 image: 000000000009\.jpg\..*captions_val2014\.json"):
        read_caption_set(coco_file(tmp_path, 4, 5), image_ids="karpathy-test")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"eccv-caption.*pip install 'cobra-vlm\[karpathy\]'"):
        read_ids("karpathy-test")


@pytest.mark.parametrize(
    "content",
    ["[9, 4, 9]", '["9", "COCO_val2014_000000000004.jpg"]', "9\n4\n", "val2014/COCO_val2014_000000000009.jpg 4"],
)
def test_ids_come_as_json_or_lines_of_ids_or_names(tmp_path, content):
    path = tmp_path / "ids.txt"
    path.write_text(content)
    found = read_caption_set(coco_file(tmp_path, 4, 5, 9), image_ids=path)
    assert [image.image_id for image in found.images] == [4, 9]


@pytest.mark.parametrize("content", ["[]", "", "{}", "[1.5]", "[true]", "[[1]]", '{"9": 1}'])
def test_other_files_are_no_lists_of_ids(tmp_path, content):
    path = tmp_path / "ids.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"ids\.json is not a list of image ids"):
        read_ids(path)


def test_a_file_of_ids_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"does not exist: .*none\.json.*karpathy-test"):
        read_ids(tmp_path / "none.json")


def test_all_ids_that_are_missing_are_listed(tmp_path):
    images, listed = [CaptionedImage(1, "a.jpg", ("a",))], tmp_path / "missing.txt"
    with pytest.raises(UserError, match="x.json does not hold 9 images"):
        keep_ids(images, {1: ImageNames("a.jpg")}, range(1, 11), "x.json", listed)
    assert listed.read_text().split() == [str(number) for number in range(2, 11)]
