"""Ids and file names of one file against those of another: never a number against the wrong name space."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobra.evaluation.data.caption_set import read_caption_set
from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_index import ImageIndex, ImageNames, match_ids, match_images
from cobra.evaluation.data.predictions import read_predictions
from cobra.evaluation.metrics.base import Captions, References, count_ngrams, value
from cobra.evaluation.metrics.bleu import BleuReferences, bleu_metrics
from cobra.evaluation.metrics.chair import Objects, chair
from cobra.evaluation.metrics.ptb_tokenizer import tokenize
from cobra.util.errors import UserError

EVAL = Path(__file__).parents[2] / "faults" / "eval"


def scored(captions_file, results, allow_missing=False):
    """Return the caption set, the predictions and their BLEU-1."""
    found = read_caption_set(EVAL / captions_file)
    wanted = [image.image_id for image in found.images]
    predictions = read_predictions(EVAL / results, found.known, wanted, allow_missing)
    references = [
        [count_ngrams(tokenize(text)) for text in image.references]
        for image in found.images
        if image.image_id in predictions.captions
    ]
    captions = [count_ngrams(tokenize(caption)) for caption in predictions.captions.values()]
    return found, predictions, value(bleu_metrics(BleuReferences(references).count(captions))["bleu_1"])


@pytest.mark.fault("F1")
def test_file_names_are_compared_with_file_names_where_ids_were_numbered_anew():
    _, by_id, right = scored("renumbered/captions.json", "renumbered/pred-by-id.json")
    _, by_name, same = scored("renumbered/captions.json", "renumbered/pred-by-name.json")
    assert by_name.captions == by_id.captions and same == right > 0.9
    assert "'000000000021.jpg' with 1 for one" in by_name.remark
    # Whole numbers are ids by the results format; that they also are the numbers of other files is said.
    _, by_photo, wrong = scored("renumbered/captions.json", "renumbered/pred-by-photo.json")
    assert wrong < 0.7
    for numbers in (by_id, by_photo):
        assert "were read as ids of the annotation file, whose file names have other numbers" in numbers.remark


@pytest.mark.fault("F1")
@pytest.mark.parametrize(
    "written",
    [
        "COCO_val2014_{:012d}.jpg",
        "COCO_train2014_{:012d}",
        "{:012d}",
        "{:012d}.JPG",
        "val2017/{:012d}.jpg",
        "C:\\data\\val2017\\{:012d}.jpg",
        "http://images.cocodataset.org/val2017/{:012d}.jpg",
        "/data/val2014/COCO_val2014_{:012d}.jpg",
        "{:012d}.png",
    ],
)
def test_all_words_for_a_photo_of_coco_mean_its_file(written):
    captions = json.loads((EVAL / "renumbered" / "captions.json").read_text())
    known = {image["id"]: ImageNames(image["file_name"]) for image in captions["images"]}
    names = {written.format(int(names.file_name[:12])): image_id for image_id, names in known.items()}
    assert match_ids(names, known).ids == names


FIXTURES = {
    "dup-same": ("captions.json", "pred.json", 24, "a second time, word for word, and that count once: "),
    "float-ids": ("captions.json", "pred.json", 24, None),
    "stem-ids": ("captions.json", "pred.json", 24, "matched by number or file name"),
    "mixed-id-types": ("captions.json", "pred.json", 24, "1 with '1' for one"),
    "no-file-name": ("captions.json", "pred.json", 24, None),
    "subset-images": ("captions.json", "pred.json", 12, None),
    "subset-annotations": ("captions.json", "pred.json", 12, None),
}


@pytest.mark.fault("F15")
@pytest.mark.parametrize("name", FIXTURES)
def test_results_and_annotations_as_people_have_them(name):
    captions, results, number, remark = FIXTURES[name]
    _, predictions, bleu = scored(f"{name}/{captions}", f"{name}/{results}")
    assert len(predictions.captions) == number and bleu > 0.9
    assert (predictions.remark is None) if remark is None else remark in predictions.remark


@pytest.mark.fault("F15")
@pytest.mark.parametrize("results", ["name", "stem", "num", "imgid"])
def test_flickr_by_file_name_stem_number_and_imgid(results):
    folder = "karpathy-flickr"
    _, predictions, bleu = scored(f"{folder}/dataset_flickr30k.json", f"{folder}/pred-{results}.json")
    assert list(predictions.captions) == [20, 21, 22, 23] and bleu > 0.9


@pytest.mark.fault("F15")
def test_what_is_left_of_a_cut_file_is_scored_and_the_rest_is_told():
    images = read_caption_set(EVAL / "subset-images" / "captions.json")
    assert len(images.images) == 12 and "60 captions of" in images.remarks[0] and "12 images" in images.remarks[0]
    annotations = read_caption_set(EVAL / "subset-annotations" / "captions.json")
    assert len(annotations.images) == 12 and len(annotations.known) == 24
    assert annotations.remarks[0].startswith("12 images of") and "no caption" in annotations.remarks[0]


def names_of(*names):
    return {number: ImageNames(name) for number, name in enumerate(names, 1)}


UNKNOWN = {
    "a base name in two folders": (["1.jpg"], names_of("a/1.jpg", "b/1.jpg")),
    "another folder": (["train/1.jpg"], names_of("val/1.jpg")),
    "a number in a name that is an id": (["000000000002.jpg"], names_of("a.jpg", "b.jpg")),
    "a stem of digits that is an id": (["000000000002"], names_of("a.jpg", "b.jpg")),
    "a file that is there twice": (["a.jpg"], names_of("a.jpg", "a.jpg")),
    "numbers of two kinds": ([1, 7, 2], names_of("000000000007.jpg", "000000000001.jpg")),
    "two spellings of one name": (["A%20B.jpg"], names_of("a b.jpg", "A B.jpg")),
}


@pytest.mark.fault("F1")
@pytest.mark.parametrize(("found", "known"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_may_be_several_images_is_none(found, known):
    assert len(match_ids(found, known).ids) < len(found)


KNOWN = {
    "a path in front": (["/mnt/x/a/1.jpg"], names_of("a/1.jpg", "b/1.jpg"), [1]),
    "a folder less": (["b/1.jpg"], names_of("images/a/1.jpg", "images/b/1.jpg"), [2]),
    "case decides": (["A.jpg", "a.jpg"], names_of("a.jpg", "A.jpg"), [2, 1]),
    "percent codes": (["a%20b.jpg"], names_of("a b.jpg"), [1]),
    "composed letters": (["caf\u00e9.jpg"], names_of("cafe\u0301.jpg"), [1]),
    "numbers of which one is no id": ([1, 7], names_of("000000000007.jpg", "000000000001.jpg"), [2, 1]),
    "numbers in all names": ([7, "8"], names_of("000000000007.jpg", "8.jpg"), [1, 2]),
    "a table's floats as text": (["2.0"], names_of("a.jpg", "b.jpg"), [2]),
    "ids and names in one list": ([2, "a.jpg"], names_of("a.jpg", "b.jpg"), [2, 1]),
    "a folder for each image": (["s/2/image.png"], names_of("s/1/image.png", "s/2/image.png"), [2]),
}


@pytest.mark.fault("F1", "F15")
@pytest.mark.parametrize(("found", "known", "expected"), KNOWN.values(), ids=KNOWN)
def test_what_can_be_one_image_alone_is_that(found, known, expected):
    matched = match_ids(found, known)
    assert [matched.ids[entry] for entry in found] == expected and matched.unclear is None


@pytest.mark.fault("F1")
def test_a_list_of_images_to_keep_is_not_guessed(tmp_path):
    (tmp_path / "ids.json").write_text("[3, 24]")
    with pytest.raises(UserError, match="3 is the id of '000000000024.jpg' and the number of '000000000003.jpg'"):
        read_caption_set(EVAL / "renumbered" / "captions.json", image_ids=tmp_path / "ids.json")
    (tmp_path / "ids.json").write_text('["000000000003.jpg", "000000000024.jpg"]')
    kept = read_caption_set(EVAL / "renumbered" / "captions.json", image_ids=tmp_path / "ids.json").images
    assert {image.file_name for image in kept} == {"000000000003.jpg", "000000000024.jpg"}


@pytest.mark.fault("F1")
def test_objects_are_those_of_the_same_file():
    images = [
        CaptionedImage(1, "000000000002.jpg", ("A photo.",)),
        CaptionedImage(2, "val2014/COCO_val2014_000000000001.jpg", ("A photo.",)),
    ]
    categories = {1: frozenset({"dog"}), 2: frozenset({"cat"})}
    named = Objects(categories, {1: ImageNames("000000000001.jpg"), 2: ImageNames("000000000002.jpg")})
    right = chair(named)(References(images))(Captions(["A cat.", "A dog."]))
    assert value(right["chair_i"]) == 0
    with pytest.raises(UserError, match="ids and the numbers in their file names differ"):
        chair(Objects(categories, dict.fromkeys(categories, ImageNames())))(References(images))
    others = Objects(categories, {1: ImageNames("000000000007.jpg"), 2: ImageNames("000000000008.jpg")})
    with pytest.raises(UserError, match="lacks 2 images"):
        chair(others)(References(images))


NAMES = st.sampled_from(
    ["1.jpg", "a/1.jpg", "b/1.jpg", "A/1.JPG", "000000000001.jpg", "1", "COCO_val2014_000000000002", "", "/"]
)


@given(st.dictionaries(st.integers(1, 4), st.none() | NAMES), st.lists(NAMES | st.integers(0, 4)))
def test_any_names_are_matched_to_images_that_have_them(names, found):
    known = {image_id: ImageNames(name) for image_id, name in names.items()}
    index = ImageIndex(known)
    for entry, image_id in match_ids(found, known).ids.items():
        assert image_id in known
        if isinstance(entry, str) and not entry.isdecimal():
            digits = re.findall(r"[0-9]", known[image_id].file_name or str(image_id))
            assert index.by_name(entry) == image_id and re.findall(r"[0-9]", entry)[-1] == digits[-1]
    pairs = [(image_id, name or f"row {image_id}") for image_id, name in names.items()]
    assert all(known[one].file_name is not None or one == other for one, other in match_images(pairs, known).items())
