"""Looking at images: modes, processes, and outcomes that the next run takes over."""

import json

import pytest
from small_publication import picture

from cobra.preprocessing.datasets.rows import Defect, RowError
from cobra.preprocessing.llava_cot.rows import image_checks as images
from cobra.preprocessing.llava_cot.rows.image_checks import ImageChecker


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(picture(f"{number}.png", "red"))
    (tmp_path / "same.png").write_bytes(picture("0.png", "red"))
    (tmp_path / "cut.png").write_bytes(picture("0.png", "red")[:300])
    (tmp_path / "text.png").write_bytes(b"<html>404</html>")
    return tmp_path


ALL = [*(f"{number}.png" for number in range(6)), "same.png", "cut.png", "text.png", "absent.png"]


@pytest.mark.parametrize(
    ("mode", "unreadable"), [("full", {"cut.png", "text.png"}), ("fast", {"text.png"}), ("none", set())]
)
def test_modes_find_what_they_look_for(folder, mode, unreadable):
    checker = ImageChecker(folder, folder / "record.jsonl", mode)
    checker.check(ALL)
    assert {image for image in ALL if not checker.is_usable(image)} == unreadable | {"absent.png"}
    assert checker.counts() == {Defect.MISSING_IMAGE: 1} | (
        {Defect.UNREADABLE_IMAGE: len(unreadable)} if unreadable else {}
    )
    with pytest.raises(RowError, match="missing image: absent.png"):
        checker.require_usable("absent.png")
    checker.require_usable("never looked at.png")
    assert (checker.content("0.png") == checker.content("same.png")) == (mode == "full")
    assert checker.content("0.png") != checker.content("1.png")


def test_processes_find_the_same(folder, monkeypatch):
    monkeypatch.setattr(images, "_CHUNK", 1)
    for workers in (1, 2):
        checker = ImageChecker(folder, folder / f"{workers}.jsonl", workers=workers)
        checker.check(ALL)
    assert (folder / "1.jsonl").read_bytes() == (folder / "2.jsonl").read_bytes()
    assert len((folder / "1.jsonl").read_text().splitlines()) == 9


@pytest.mark.parametrize(
    ("first", "second", "again"), [("full", "fast", 0), ("full", "full", 0), ("fast", "full", 9), ("fast", "none", 0)]
)
def test_outcomes_of_a_stricter_mode_are_taken_over(folder, monkeypatch, first, second, again):
    checker = ImageChecker(folder, folder / "record.jsonl", first)
    checker.check(ALL)
    looked = []
    look = images._check_image
    monkeypatch.setattr(images, "_check_image", lambda rows, path, mode: looked.append(path) or look(rows, path, mode))
    checker = ImageChecker(folder, folder / "record.jsonl", second)
    checker.check(ALL)
    checker.check(ALL)
    assert len(looked) == again


def test_record_of_another_form_is_passed_over(folder):
    record = folder / "record.jsonl"
    lines = [b"\xff\n", b"null\n", b'{"image": "0.png"}\n', b'["0.png", 1, 2, "odd", null, null]\n', b'["0.p']
    record.write_bytes(b"".join(lines))
    checker = ImageChecker(folder, record)
    checker.check(["0.png"])
    assert checker.is_usable("0.png")
    assert json.loads(record.read_bytes().splitlines()[-1])[0] == "0.png"
