"""COCO's files, whole and broken."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cobra.evaluation.data.caption_set import read_caption_set
from cobra.evaluation.data.coco import parse_captions, sample
from cobra.util.errors import UserError


def captions_file(folder, images, annotations):
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    return path


@pytest.fixture
def small(tmp_path):
    images = [{"id": 9, "file_name": "val/b.png", "width": 3}, {"id": 4, "file_name": "a.png"}]
    annotations = [
        {"id": 1, "image_id": 4, "caption": "a dog"},
        {"id": 2, "image_id": 9, "caption": "a cat"},
        {"id": 3, "image_id": 4, "caption": "one dog"},
    ]
    return captions_file(tmp_path, images, annotations)


def test_captions_are_grouped_in_the_files_order(small):
    images = read_caption_set(small).images
    assert [(image.image_id, image.file_name, image.references) for image in images] == [
        (9, "val/b.png", ("a cat",)),
        (4, "a.png", ("a dog", "one dog")),
    ]


def test_missing_file_names_the_command_that_fetches_it(tmp_path):
    with pytest.raises(UserError, match=r"does not exist: .*none\.json.*preprocess\.py --dataset_id coco-captions"):
        read_caption_set(tmp_path / "none.json")


def test_malformed_json_names_the_line(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text('{"images": [],\n "annotations": [}\n')
    with pytest.raises(UserError, match="line 2, column 18"):
        read_caption_set(path)


IMAGE = {"id": 1, "file_name": "a.png"}
CAPTION = {"image_id": 1, "caption": "a dog"}
BROKEN = {
    "no images": ([], [], "lists no images"),
    "no captions of its images": ([IMAGE], [{"image_id": 7, "caption": "x"}], "1 image: 1.*first caption .*image 7"),
    "repeated image": ([IMAGE, IMAGE], [CAPTION], r"images\[1\].*was there before"),
    "file name of wrong type": ([{"id": 1, "file_name": 5}], [CAPTION], r"images\[0\] has the `file_name` 5; a text"),
    "caption of wrong type": ([IMAGE], [{"image_id": 1, "caption": None}], r"annotations\[0\].*`caption`"),
    "true as an id": ([{"id": True, "file_name": "a"}], [CAPTION], r"images\[0\]"),
    "not an object": ([IMAGE], [5], r"annotations\[0\] is 5"),
    "outside the folder": ([{"id": 1, "file_name": "../a.png"}], [CAPTION], "leads out of its folder"),
    "absolute": ([{"id": 1, "file_name": "/etc/a.png"}], [CAPTION], "absolute"),
    "instances": ([IMAGE], [{"image_id": 1, "category_id": 3, "bbox": []}], "instances file.*captions_"),
    "drive": ([{"id": 1, "file_name": "C:\\a.png"}], [CAPTION], "drive"),
}


@pytest.mark.parametrize(("images", "annotations", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_annotations(tmp_path, images, annotations, message):
    with pytest.raises(UserError, match=message):
        read_caption_set(captions_file(tmp_path, images, annotations))


@pytest.mark.parametrize("content", [[], 5, {"images": []}, {"images": {}, "annotations": []}])
def test_other_json_is_not_a_caption_file(tmp_path, content):
    with pytest.raises(UserError, match="no lists `images` and `annotations`"):
        parse_captions(content, tmp_path / "x.json")


def test_many_ids_are_counted_and_only_a_few_shown(tmp_path):
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(100)]
    path = captions_file(tmp_path, images, [])
    with pytest.raises(UserError, match=r"100 images: 0, 1, 2, 3, 4, \.\.\."):
        read_caption_set(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["images", "annotations", "id", "image_id", "caption", "file_name"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_json_is_read_or_refused_in_words(tmp_path, content):
    path = tmp_path / "any.json"
    try:
        parse_captions(content, path)
    except UserError as error:
        assert str(path) in str(error)


def test_a_sample_is_seeded_in_order_and_without_repeats(small):
    images = [read_caption_set(small).images[0]] * 50
    numbered = [type(image)(number, image.file_name, image.references) for number, image in enumerate(images)]
    ids = [image.image_id for image in sample(numbered, 10, seed=7)]
    assert ids == sorted(set(ids)) and len(ids) == 10 and ids != list(range(10))
    assert ids == [image.image_id for image in sample(numbered, 10, seed=7)]
    assert ids != [image.image_id for image in sample(numbered, 10, seed=8)]
    assert sample(numbered, None, 7) == sample(numbered, 99, 7) == numbered
