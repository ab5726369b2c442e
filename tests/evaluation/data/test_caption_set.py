"""Which form a caption file has is told by its content."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cobra.evaluation.data.caption_set import read_caption_set
from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_sources import check_present
from cobra.util.errors import UserError

EVAL = Path(__file__).parents[2] / "faults" / "eval"

EXPECTED = [
    CaptionedImage("a.png", "a.png", ("a dog", "one dog")),
    CaptionedImage("sub/b.png", "sub/b.png", ("a cat",)),
]
NAMED = {
    "by name": {"a.png": ["a dog", "one dog"], "sub/b.png": "a cat"},
    "entries": [
        {"file_name": "a.png", "captions": ["a dog", "one dog"]},
        {"file_name": "sub/b.png", "captions": ["a cat"], "license": 1},
    ],
}


def write(folder, content, name="captions.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("content", NAMED.values(), ids=NAMED)
def test_a_folder_with_captions_brings_its_images(tmp_path, content):
    path = write(tmp_path, content)
    Image.new("RGB", (2, 2), (9, 0, 0)).save(tmp_path / "a.png")
    found = read_caption_set(tmp_path)
    assert found.images == EXPECTED and set(found.known) == {"a.png", "sub/b.png"}
    assert found.form == "captions by file name" and found.source == str(tmp_path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.pictures.load(found.images[0]).getpixel((0, 0)) == (9, 0, 0)
    alone = read_caption_set(path)
    assert alone.images == EXPECTED and alone.pictures is None


def test_coco_captions_by_content_alone(tmp_path):
    content = {"images": [{"id": 4, "file_name": "a.png"}], "annotations": [{"image_id": 4, "caption": "a dog"}]}
    found = read_caption_set(write(tmp_path, content, "whatever.txt"), tmp_path)
    assert (found.form, found.images) == ("COCO captions", [CaptionedImage(4, "a.png", ("a dog",))])
    assert found.pictures.name == f"the folder {tmp_path}"
    # In a folder under the name of the simple form it is still what it is.
    write(tmp_path, content)
    assert read_caption_set(tmp_path).form == "COCO captions"


UNKNOWN = {
    "results": ([{"image_id": 1, "caption": "x"}], r"a list of objects with the keys 'image_id', 'caption'\. Expected"),
    "rows": ([{"id": 1, "image": "a.png", "conversations": []}], "a list of objects with the keys 'id', 'image'"),
    "instances": ({"images": [], "annotations": 5, "categories": []}, "no lists `images` and `annotations`"),
    "settings": ({"a": 1, "b": 2}, "an object with the keys 'a', 'b'"),
    "empty object": ({}, r"in a known form: \{\}"),
    "empty list": ([], r"in a known form: \[\]"),
    "number": (5, "in a known form: 5"),
    "images alone": ({"images": [{"id": 1}]}, "an object with the keys 'images'"),
    "no captions": ({"a.png": ["a"], "b.png": []}, "no caption for 1 image: b.png"),
    "captions of wrong type": ({"a.png": ["a"], "b.png": [1]}, r"'b\.png' has the file name .* and the captions \[1\]"),
    "captions missing": ([{"file_name": "a.png", "captions": ["a"]}, {"file_name": "b.png"}], r"\[1\] has the file"),
    "no object": ([{"file_name": "a.png", "captions": ["a"]}, 5], r"\[1\] has the file name None"),
    "repeated": ([{"file_name": "a.png", "captions": ["a"]}] * 2, r"\[1\]: the file name 'a\.png' was there before"),
    "outside": ({"../a.png": ["a"]}, "leads out of its folder"),
    "not JSON": ('{"a.png": ["a"],}', "column 17: a comma stands before"),
}


@pytest.mark.parametrize(("content", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_other_files_are_refused_with_what_was_found_and_expected(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        read_caption_set(path)
    assert str(path) in str(error.value)


def test_files_without_splits_take_none(tmp_path):
    with pytest.raises(UserError, match="has no splits: leave --split out"):
        read_caption_set(write(tmp_path, NAMED["by name"]), split="val")


def test_files_and_folders_that_hold_nothing(tmp_path):
    with pytest.raises(UserError, match=r"holds neither captions\.json nor metadata\.jsonl nor Parquet files"):
        read_caption_set(tmp_path)
    with pytest.raises(UserError, match=r"does not exist: .*none\.json.*preprocess\.py"):
        read_caption_set(tmp_path / "none.json")
    with pytest.raises(UserError, match="image folder does not exist"):
        read_caption_set(write(tmp_path, NAMED["by name"]), tmp_path / "none")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("images annotations file_name captions sentences a.png".split()), inner)
    ),
    max_leaves=10,
)


@given(JSON)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_json_is_read_or_refused_in_words(tmp_path, content):
    path = write(tmp_path, content)
    try:
        found = read_caption_set(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert all(image.references for image in found.images) and found.images


def test_deep_and_large_content_makes_a_short_message(tmp_path):
    for content in ("[" * 400 + "]" * 400, json.dumps(["x" * 10**6] * 3), json.dumps({"x" * 10**6: 1})):
        with pytest.raises(UserError) as error:
            read_caption_set(write(tmp_path, content))
        assert len(str(error.value)) < 800


@pytest.mark.fault("F15")
def test_an_image_folder_of_the_hub_brings_captions_and_images():
    found = read_caption_set(EVAL / "metadata-jsonl")
    assert found.form == "captions by file name" and len(found.images) == 6
    check_present(found.images, found.pictures)
    assert found.images[2].references == ("Three shapes: three blue crosses.",)
    assert read_caption_set(EVAL / "metadata-jsonl" / "metadata.jsonl").images == found.images
