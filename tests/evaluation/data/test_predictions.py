"""Results files, and their ids against those of the annotations."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cobra.evaluation.data.caption_set import read_caption_set
from cobra.evaluation.data.image_index import ImageNames
from cobra.evaluation.data.predictions import read_predictions as read_matched
from cobra.util.errors import UserError

FAULTS = Path(__file__).parents[2] / "faults" / "eval"


def read_predictions(path, known, *others, **flags):
    """Read results of images that have ids alone."""
    return read_matched(path, dict.fromkeys(known, ImageNames()), *others, **flags)


def results_file(folder, rows):
    path = folder / "results.json"
    path.write_text(json.dumps([{"image_id": image_id, "caption": caption} for image_id, caption in rows]))
    return path


def test_captions_come_in_the_order_asked_and_those_of_other_known_images_are_left_out(tmp_path):
    path = results_file(tmp_path, [(3, "c3"), (1, ""), (2, "c2")])
    found = read_predictions(path, [1, 2, 3], [1, 3])
    assert list(found.captions.items()) == [(1, ""), (3, "c3")]
    assert found.missing == [] and found.remark is None


@pytest.mark.fault("F13")
@pytest.mark.parametrize("name", ["bom-preds/pred.json", "bom-preds-only/pred.json", "jsonl-preds/pred.jsonl"])
def test_marks_and_lines_give_the_same_captions(name):
    images = read_caption_set((FAULTS / name).parent / "captions.json").images
    plain = json.loads((FAULTS / "bom-preds-only/pred.json").read_text("utf-8-sig"))
    ids = [image.image_id for image in images]
    found = read_predictions(FAULTS / name, ids, ids)
    assert found.captions == {entry["image_id"]: entry["caption"] for entry in plain}
    assert len(found.captions) == len(images) == 24


@pytest.mark.fault("F13")
def test_a_single_line_is_a_list_by_its_name(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"image_id": 1, "caption": "a"}')
    assert read_predictions(path, [1], [1]).captions == {1: "a"}


REFUSED = {
    "repeated": ([(1, "a"), (2, "b"), (1, "c")], "more than one caption for 1 image: 1"),
    "repeated in two words": ([(1, "a"), (2, "b"), ("1", "c")], "more than one caption for 1 image: 1"),
    "repeated and not wanted": ([(1, "a"), (2, "b"), (3, "c"), (3, "d")], "more than one caption for 1 image: 3"),
    "unknown": ([(1, "a"), (2, "b"), (8, "c"), ("x", "c")], "captions for 2 images: 8, x"),
    "missing": ([(2, "b")], "no caption for 1 image: 1.*--allow_missing"),
}


@pytest.mark.parametrize(("rows", "message"), REFUSED.values(), ids=REFUSED)
def test_results_that_do_not_match(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read_predictions(results_file(tmp_path, rows), [1, 2, 3], [1, 2])


MATCHED = [
    ("42", 42),
    (42, "42"),
    ("000042", 42),
    ("000000000042.jpg", 42),
    ("COCO_val2014_000000000042.jpg", 42),
    (42, "val2017/000000000042.jpg"),
    ("COCO_val2014_000000000042.jpg", "000000000042.jpg"),
]


@pytest.mark.parametrize(("written", "known"), MATCHED)
def test_ids_in_other_words_are_matched_by_their_number_and_that_is_said(tmp_path, written, known):
    path = results_file(tmp_path, [(written, "a dog"), (7, "a cat")])
    found = read_predictions(path, [known, 7], [7, known])
    assert found.captions == {7: "a cat", known: "a dog"}
    assert (
        f"1 image otherwise than the annotation file does: they were matched by number or file name, {written!r} with"
        in (found.remark)
    )


@pytest.mark.parametrize("written", ["042", "-1", "4 2", "\u0664\u0662", "42.0", "dog42", "42.jpg"])
def test_ids_that_are_no_number_or_of_two_images_are_unknown(tmp_path, written):
    # 42 and "42" are two images here.
    with pytest.raises(UserError, match="captions for 1 image"):
        read_predictions(results_file(tmp_path, [(written, "a dog")]), [42, "42"], [42])


def test_missing_ones_are_left_out_where_that_is_allowed_but_not_all(tmp_path):
    path = results_file(tmp_path, [(2, "b")])
    found = read_predictions(path, [1, 2, 3], [1, 2, 3], allow_missing=True)
    assert (found.captions, found.missing) == ({2: "b"}, [1, 3])
    with pytest.raises(UserError, match="no caption for 2 images: 1, 3"):
        read_predictions(path, [1, 2, 3], [1, 3], allow_missing=True)


def test_many_missing_ids_are_all_listed_in_a_file(tmp_path):
    path, listed = results_file(tmp_path, [(0, "a")]), tmp_path / "new" / "missing.txt"
    with pytest.raises(UserError, match=rf"1,999 images: 1, 2, 3, 4, 5, \.\.\.\. {listed} lists them all"):
        read_predictions(path, range(2000), range(2000), list_file=listed)
    assert listed.read_text().split() == [str(number) for number in range(1, 2000)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "a list of"),
        ('[{"image_id": 1}]', r"\[0\] has no `caption`; it has `image_id`"),
        ('[{"image_id": 1.5, "caption": ""}]', r"\[0\] has the `image_id` 1\.5; a whole number or a text"),
        ('[{"image_id": true, "caption": ""}]', r"\[0\] has the `image_id` True;"),
        ('[{"image_id": 1, "caption": NaN}]', r"\[0\] has the `caption` nan; a text was expected"),
        ('[{"image_id": 1, "caption": ["a dog"]}]', r"\[0\] has the `caption` \['a dog'\]; a text was expected"),
        ('[{"image_id": 1, "caption": ""},\n ]', "line 2"),
    ],
)
def test_results_of_another_form(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_predictions(path, [1], [1])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"predictions file does not exist: .*none\.json"):
        read_predictions(tmp_path / "none.json", [1], [1])


def test_lone_surrogates_become_question_marks(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('[{"image_id": 1, "caption": "a \\ud83d dog"}]')
    assert read_predictions(path, [1], [1]).captions == {1: "a ? dog"}


IDS = st.integers(-3, 9) | st.sampled_from(["1", "01", "2", "x", "", "000000000003.jpg", "\ud800"])


@given(st.lists(IDS, max_size=6), st.lists(IDS, max_size=6, unique_by=repr), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_ids_are_matched_one_to_one_or_refused_in_words(tmp_path, written, known, allow_missing):
    rows = [(image_id, f"caption {place}") for place, image_id in enumerate(written)]
    try:
        found = read_predictions(results_file(tmp_path, rows), known, known, allow_missing)
    except UserError as error:
        assert "results.json has" in str(error)
        return
    assert len(found.captions) == len(written) and set(found.captions) <= set(known)
    assert sorted(found.captions.values()) == sorted(caption for _, caption in rows)
    assert list(found.captions) + found.missing == sorted(
        known, key=lambda one: (one in found.missing, known.index(one))
    )


@pytest.mark.parametrize(
    "content",
    [
        b"image,caption\na.jpg,a dog\n",
        b'[{"image": "a.jpg", "text": "a dog"}]',
        b'{"a.jpg": "a dog"}',
        b'[{"image_id": 1, "caption": null}]',
        '[{"image_id": 1, "caption": "caf\xe9"}]'.encode("latin-1"),
    ],
)
def test_another_form_is_answered_with_the_expected_one(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'JSON in UTF-8: \[\{"image_id": 42, "caption": "a dog"\}'):
        read_predictions(path, [1], [1])
