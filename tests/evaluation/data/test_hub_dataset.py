"""Captions and images out of data sets: Parquet files as the hub has them, and what `save_to_disk` writes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
from huggingface_hub.errors import HTTPError
from PIL import Image
from unreadable import unreadable_images

from cobra.evaluation.data.caption_set import read_caption_set
from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_sources import check_present
from cobra.util.errors import UserError

datasets = pytest.importorskip("datasets")

EVAL = Path(__file__).parents[2] / "faults" / "eval"


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def colour(number):
    return Image.new("RGB", (4, 3), (number, 0, 0))


def table(**columns):
    made = datasets.Dataset.from_dict(columns)
    return made.cast_column("image", datasets.Image()) if "image" in columns else made


def lmms(*numbers):
    """Rows in the columns of lmms-lab/COCO-Caption2017."""
    names = [f"{number:012d}.jpg" for number in numbers]
    return table(
        question_id=names,
        image=[colour(number) for number in numbers],
        question=["Please carefully observe the image."] * len(names),
        answer=[[f"caption {number}", "a dog"] for number in numbers],
        id=list(range(len(names))),
        file_name=names,
    )


def repository(folder, **splits):
    """Write Parquet files as a repository of the hub holds them."""
    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        rows.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


def reds(found):
    return [found.pictures.load(image).getpixel((0, 0))[0] for image in found.images]


def test_the_columns_of_lmms_lab(tmp_path):
    found = read_caption_set(repository(tmp_path / "set", val=lmms(42, 7), test=lmms(9)))
    assert found.images == [
        CaptionedImage(42, "000000000042.jpg", ("caption 42", "a dog")),
        CaptionedImage(7, "000000000007.jpg", ("caption 7", "a dog")),
    ]
    assert found.form == "data set, split val" and set(found.known) == {42, 7}
    check_present(found.images, found.pictures)
    assert reds(found) == [42, 7] and unreadable_images(found.images, found.pictures) == {}
    assert found.pictures.load(found.images[1]).mode == "RGB"
    other = read_caption_set(tmp_path / "set", split="test")
    assert [image.image_id for image in other.images] == [9] and other.sha256 != found.sha256


def test_one_file_and_a_saved_data_set_have_the_same_content(tmp_path):
    folder = repository(tmp_path / "set", val=lmms(42, 7))
    lmms(42, 7).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"val": lmms(42, 7), "train": lmms(1)}).save_to_disk(str(tmp_path / "saved_splits"))
    sources = (folder, folder / "data" / "val-00000-of-00001.parquet", tmp_path / "saved", tmp_path / "saved_splits")
    found = [read_caption_set(source) for source in sources]
    assert len({one.sha256 for one in found}) == 1 and [reds(one) for one in found] == [[42, 7]] * 4


def test_rows_of_one_image_are_put_together(tmp_path):
    rows = table(cocoid=[5, 6, 5], caption=["a", "b", "c"], image=[colour(5), colour(6), colour(5)])
    found = read_caption_set(repository(tmp_path / "set", test=rows))
    assert found.images == [
        CaptionedImage(5, "000000000005.jpg", ("a", "c")),
        CaptionedImage(6, "000000000006.jpg", ("b",)),
    ]
    assert reds(found) == [5, 6]


def test_ids_and_names_are_taken_where_they_are(tmp_path):
    raw = [[{"raw": "a"}], [{"raw": "b"}]]
    flickr = table(filename=["100.jpg", "../x.jpg"], img_id=["0", "1"], sentences=raw)
    found = read_caption_set(repository(tmp_path / "flickr", test=flickr))
    assert [(image.image_id, image.file_name) for image in found.images] == [
        ("100.jpg", "100.jpg"),
        ("../x.jpg", "row 1"),
    ]
    assert found.pictures is None
    bare = read_caption_set(repository(tmp_path / "bare", test=table(caption=["a", "b"])))
    assert [(image.image_id, image.file_name) for image in bare.images] == [(0, "row 0"), (1, "row 1")]


def test_a_folder_of_images_goes_before_those_of_the_rows(tmp_path):
    (tmp_path / "images").mkdir()
    colour(200).save(tmp_path / "images" / "000000000042.png")
    rows = lmms(42).remove_columns("file_name").add_column("file_name", ["000000000042.png"])
    found = read_caption_set(repository(tmp_path / "set", val=rows), tmp_path / "images")
    assert reds(found) == [200]


def test_damaged_and_absent_images_are_counted_not_refused(tmp_path):
    rows = datasets.Dataset.from_dict(
        {
            "image_id": [1, 2, 3],
            "image": [{"bytes": b"none", "path": "a.jpg"}, None, {"bytes": None, "path": str(tmp_path / "gone.jpg")}],
            "caption": ["a", "b", "c"],
        }
    )
    found = read_caption_set(repository(tmp_path / "set", val=rows))
    unreadable = unreadable_images(found.images, found.pictures)
    assert list(unreadable) == [1, 2, 3]
    assert "not a readable image" in unreadable[1] and "does not exist" in unreadable[2]
    assert "BytesIO" not in unreadable[1]


BROKEN = {
    "no such split": (dict(val=lmms), {"split": "train"}, "has no split 'train'; it has val.*--split"),
    "no usual split": (dict(one=lmms, two=lmms), {}, "several splits.*it has one, two.*--split"),
}


@pytest.mark.parametrize(("splits", "flags", "message"), BROKEN.values(), ids=BROKEN)
def test_splits_that_are_not_there(tmp_path, splits, flags, message):
    folder = repository(tmp_path / "set", **{name: rows(1) for name, rows in splits.items()})
    with pytest.raises(UserError, match=message):
        read_caption_set(folder, **flags)


def test_sets_without_captions_are_refused(tmp_path):
    with pytest.raises(UserError, match="no column of captions, answer, .*; it has image_id"):
        read_caption_set(repository(tmp_path / "none", val=table(image_id=[1])))
    with pytest.raises(UserError, match="the split test of .*has no caption for 2 images: 1, 2.*--split"):
        read_caption_set(repository(tmp_path / "null", test=table(image_id=[1, 2], answer=[[], []])))
    with pytest.raises(UserError, match=r"row 0 of .*, caption is \[5\], and a text"):
        read_caption_set(repository(tmp_path / "number", val=table(image_id=[1], caption=[[5]])))


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "set.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"set\.parquet cannot be read as a data set"):
        read_caption_set(tmp_path / "set.parquet")


class TreeHub(hub_server.HubServer):
    """The hub with the listing of one folder that `datasets` asks for besides."""

    def answer(self, handler):
        # A connection that is closed without a word costs a client that goes on with it, and `datasets` gives up then.
        end_headers = type(handler).end_headers.__get__(handler)
        handler.end_headers = lambda: (handler.send_header("Connection", "close"), end_headers())
        asked = re.fullmatch(r"/api/datasets/\w+/\w+/tree/(\w+)/?([^?]*)(?:\?.*)?", handler.path)
        if not asked:
            return super().answer(handler)
        folder = self._commits[asked[1]]
        return hub_server._send_json(handler, [self._listed(folder, path) for path in (folder / asked[2]).iterdir()])

    def _listed(self, folder, path):
        entry = {"type": "directory", "oid": "0" * 40, "size": 0, "path": path.relative_to(folder).as_posix()}
        if path.is_file():
            sha256, git = self._hash(path)
            size = path.stat().st_size
            entry |= {"type": "file", "oid": git, "size": size, "lfs": {"oid": sha256, "size": size, "pointerSize": 9}}
        return entry


def test_of_the_hubs_files_only_those_of_the_split_are_fetched(tmp_path):
    folder = repository(tmp_path / "set", val=lmms(42, 7), test=lmms(9))
    program = (
        "from cobra.evaluation.data.caption_set import read_caption_set\n"
        "found = read_caption_set('lab/captions')\n"
        "print([(image.image_id, found.pictures.load(image).getpixel((0, 0))) for image in found.images], found.form)"
    )
    with TreeHub(folder, repo_id="lab/captions") as hub:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
        )
        assert done.stdout == "[(42, (42, 0, 0)), (7, (7, 0, 0))] data set, split val\n", done.stderr
        val = folder / "data" / "val-00000-of-00001.parquet"
        assert hub.bytes_sent() == hub.bytes_sent("data/val-00000-of-00001.parquet") == val.stat().st_size


UNREACHABLE = [
    datasets.exceptions.DatasetNotFoundError("Dataset 'no/such' doesn't exist on the Hub"),
    datasets.exceptions.DatasetGenerationError("a file broke off"),
    HTTPError("Server disconnected without sending a response."),
    ConnectionError("Couldn't reach 'no/such' on the Hub"),
    ValueError("Config name is missing"),
]


@pytest.mark.parametrize("problem", UNREACHABLE, ids=lambda problem: type(problem).__name__)
def test_what_the_hub_does_not_give_is_told_in_words(monkeypatch, problem):
    def broken(name, data_files):
        raise problem

    monkeypatch.setattr(datasets, "load_dataset_builder", broken)
    with pytest.raises(UserError) as error:
        read_caption_set("no/such")
    assert str(error.value).startswith("no/such is neither a file or folder here nor a data set")
    assert str(problem) in str(error.value)


def test_names_of_files_are_not_taken_for_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"annotation file does not exist: data/captions\.json"):
        read_caption_set("data/captions.json")


def test_predictions_of_lmms_eval_match_the_rows(tmp_path):
    from cobra.evaluation.data.predictions import read_predictions

    found = read_caption_set(repository(tmp_path / "set", val=lmms(42, 7)))
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": 7, "caption": "x"}, {"image_id": 42, "caption": "y"}]))
    ids = [image.image_id for image in found.images]
    assert read_predictions(tmp_path / "p.json", found.known, ids).captions == {42: "y", 7: "x"}


@pytest.mark.fault("F15")
@pytest.mark.parametrize("file", ["pq-images-list", "pq-raw-bytes"])
def test_images_as_lists_of_one_and_as_plain_bytes(file):
    found = read_caption_set(EVAL / file / "val.parquet")
    check_present(found.images, found.pictures)
    assert len(found.images) == 8 and unreadable_images(found.images, found.pictures) == {}
    assert {found.pictures.load(image).size for image in found.images} == {(48, 48)}


@pytest.mark.fault("F15")
def test_rows_of_several_images_are_refused_by_their_column(tmp_path):
    encoded = [{"bytes": b"x", "path": None}]
    rows = datasets.Dataset.from_dict({"image_id": [1, 2], "images": [encoded, encoded * 2], "caption": ["a", "b"]})
    with pytest.raises(UserError, match=r"column images of the split val of .* has 2 images in a row"):
        read_caption_set(repository(tmp_path / "set", val=rows))
    lists = table(image_id=[1, 2], images=[[colour(5)], []], caption=["a", "b"])
    lists = lists.cast_column("images", datasets.List(datasets.Image()))
    found = read_caption_set(repository(tmp_path / "lists", val=lists))
    assert found.pictures.load(found.images[0]).getpixel((0, 0)) == (5, 0, 0)
    assert list(unreadable_images(found.images, found.pictures)) == [2]


@pytest.mark.fault("F15")
def test_ids_that_a_table_has_made_floats_are_whole_again(tmp_path):
    found = read_caption_set(repository(tmp_path / "set", val=table(image_id=[42.0, 7.0], caption=["a", "b"])))
    assert [image.image_id for image in found.images] == [42, 7]


@pytest.mark.fault("F9")
def test_the_column_counts_where_the_files_are_one_split_of_all_rows():
    folder = EVAL / "flickr-parquet"
    found = read_caption_set(folder, split="test")
    assert [image.file_name for image in found.images] == [f"10000928{number}.jpg" for number in range(15, 19)]
    assert read_caption_set(folder).images == found.images
    assert len(found.known) == 24 and found.form == "data set, split test"
    assert found.remarks[0].startswith(f"The column split of {folder} has train (")
    assert "those of test are taken" in found.remarks[0]
    assert [len(read_caption_set(folder, split=split).images) for split in ("train", "training")] == [20, 20]
    with pytest.raises(UserError, match=r"no split 'val'; its column split has train \(20 rows\), test \(4 rows\)"):
        read_caption_set(folder, split="val")


@pytest.mark.fault("F9")
@pytest.mark.parametrize("results", ["pred.json", "pred-ids.json"])
def test_results_name_the_file_or_the_number_of_the_row(results):
    from cobra.evaluation.data.predictions import read_predictions

    found = read_caption_set(EVAL / "flickr-parquet")
    ids = [image.image_id for image in found.images]
    captions = read_predictions(EVAL / "flickr-parquet" / results, found.known, ids).captions
    assert captions["1000092816.jpg"] == "A picture of a cyan cross." and list(captions) == ids


COLUMNS = {
    "nothing but training rows": ("train", ["train", "train"], None, [1, 2], r"taken whole.*train \(2 rows\)"),
    "files without a name of their own": ("train", ["train", "val"], None, [2], "those of val are taken"),
    "the files agree": ("val", ["val", "val"], None, [1, 2], None),
    "other spellings": ("train", ["Train", "Validation"], "val", [2], "those of val are taken"),
    "something else": ("val", ["left", "right"], None, [1, 2], None),
    "splits of a year": ("test", ["train2014", "test2014"], "test", [2], "those of test are taken"),
    "rows of no split": ("test", ["test", None], "test", [1], "those of test are taken"),
}


@pytest.mark.fault("F9")
@pytest.mark.parametrize(("files", "column", "asked", "ids", "remark"), COLUMNS.values(), ids=COLUMNS)
def test_columns_of_splits(tmp_path, files, column, asked, ids, remark):
    rows = table(image_id=[1, 2], caption=["a", "b"], split=column)
    found = read_caption_set(repository(tmp_path / "set", **{files: rows}), split=asked)
    assert [image.image_id for image in found.images] == ids
    assert not found.remarks if remark is None else re.search(remark, found.remarks[0])


@pytest.mark.fault("F9")
@pytest.mark.parametrize("name", ["Split", "data_split", "set", "partition"])
def test_columns_of_splits_by_other_names(tmp_path, name):
    rows = table(image_id=[1, 2], subset=["sqa", "geo"], caption=["a", "b"], **{name: ["train", "test"]})
    found = read_caption_set(repository(tmp_path / "set", test=rows))
    assert [image.image_id for image in found.images] == [2] and f"The column {name} of" in found.remarks[0]


@pytest.mark.fault("F9")
def test_a_column_of_numbered_classes_is_read_by_their_names(tmp_path):
    rows = table(image_id=[1, 2, 3], caption=["a", "b", "c"], split=[1, 0, None])
    rows = rows.cast_column("split", datasets.ClassLabel(names=["train", "test"]))
    found = read_caption_set(repository(tmp_path / "set", test=rows))
    assert [image.image_id for image in found.images] == [1] and "train (1 row)" in found.remarks[0]


@pytest.mark.fault("F15")
@pytest.mark.parametrize(
    "columns", [{"image_id": [1, None]}, {"image_id": [1.0, None]}, {"image_id": [None, 5], "id": [5, 9]}]
)
def test_a_row_without_an_id_is_refused_and_takes_no_other_images(tmp_path, columns):
    rows = table(caption=["a", "b"], **columns)
    with pytest.raises(UserError, match=r"rows 0 and 1 of .* have their ids in different places, .*one column of"):
        read_caption_set(repository(tmp_path / "set", test=rows))
