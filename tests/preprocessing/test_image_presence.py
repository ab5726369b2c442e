"""Looking for the images of all rows: what is missing is found, quickly, and no folder holds it up."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from example_rows import PAIR, write_rows

from cobra.preprocessing.datasets import image_presence as presence
from cobra.preprocessing.datasets.arrow_rows import read_rows
from cobra.preprocessing.datasets.image_presence import look_for_images, name_rows
from cobra.preprocessing.packed.rows import RowImages

pytestmark = pytest.mark.fault("F10")

MISSING_LATE = Path(__file__).parents[1] / "faults" / "missing-late"


def rows_of(folder, images):
    rows = [
        {"id": place, "conversations": PAIR} | ({} if image is None else {"image": image})
        for place, image in enumerate(images)
    ]
    return read_rows(write_rows(folder, rows))


@pytest.mark.parametrize("listed", [1, 1000])
def test_missing_images_are_found_by_listing_and_by_asking(folder, monkeypatch, listed):
    monkeypatch.setattr(presence, "_LISTED", listed)
    (folder / "images" / "deep").mkdir()
    shutil.copy(folder / "images" / "a.png", folder / "images" / "deep" / "\u00e9 b.png")
    there = ["a.png", "./a.png", "deep/\u00e9 b.png", "deep/../a.png", str(folder / "images" / "a.png"), None]
    gone = [
        "b.png",
        "deep/a.png",
        "nowhere/a.png",
        "a.png/b.png",
        "x" * 300,
        "x/" * 3000 + "a.png",
        "\x00",
        "\ud800.png",
    ]
    found = look_for_images(rows_of(folder, [*there, *gone]), RowImages(Path(), folder / "images"))
    assert found.missing == list(range(len(there), len(there) + len(gone)))
    assert (found.looked_for, found.late) == (len(there) + len(gone) - 1, False)


def test_a_folder_is_listed_once_for_many_rows_and_other_folders_are_not_listed(folder, monkeypatch):
    images = [f"{number}.png" for number in range(100)]
    for name in images[:-1]:
        shutil.copy(folder / "images" / "a.png", folder / "images" / name)
    (folder / "images" / "few").mkdir()
    shutil.copy(folder / "images" / "a.png", folder / "images" / "few" / "a.png")
    looks = []
    exists, names = presence.os.path.exists, presence._names
    monkeypatch.setattr(presence.os.path, "exists", lambda path: looks.append(Path(path).name) or exists(path))
    monkeypatch.setattr(presence, "_names", lambda path: looks.append(Path(path).name) or names(path))
    found = look_for_images(rows_of(folder, [*images, "few/a.png"]), RowImages(Path(), folder / "images"))
    assert found.missing == [99]
    assert sorted(looks) == ["99.png", "a.png", "images"]


def test_of_rows_that_were_selected_the_numbers_are_those_of_the_selection(folder):
    rows = rows_of(folder, ["b.png", "a.png", "c.png"])
    chosen = rows.select(np.array([1, 2]))
    assert chosen.images() == ["a.png", "c.png"]
    assert look_for_images(chosen, RowImages(Path(), folder / "images")).missing == [1]


def test_when_the_time_is_over_it_says_so_and_blames_nobody(folder):
    found = look_for_images(rows_of(folder, ["a.png", "b.png"]), RowImages(Path(), folder / "images"), seconds=-1)
    assert found.late and found.missing == [] and found.looked_for == 0


def test_a_name_that_the_listing_writes_otherwise_is_not_missing(folder, monkeypatch):
    monkeypatch.setattr(presence, "_LISTED", 1)
    monkeypatch.setattr(presence, "_names", lambda path: iter(["A.PNG"]))
    assert look_for_images(rows_of(folder, ["a.png"]), RowImages(Path(), folder / "images")).missing == []


def test_the_one_that_is_missing_is_named():
    rows = read_rows(MISSING_LATE / "rows.json")
    found = look_for_images(rows, RowImages(Path(), MISSING_LATE / "images"))
    assert name_rows(rows, found.missing) == f"1 of 40 rows of {MISSING_LATE / 'rows.json'} (id 'r17': 17.png)"


def test_many_are_counted_and_a_few_named(folder):
    rows = rows_of(folder, [f"{'x' * 200}{number}.png" for number in range(40)])
    named = name_rows(rows, look_for_images(rows, RowImages(Path(), folder / "images")).missing)
    assert named.startswith("40 of 40 rows of ") and named.endswith(", ...)")
    assert named.count("id ") == 5 and len(named) < 800
