"""Images decoded ahead: in order, a few at a time, and never a reason to stop."""

import hashlib
import io
import threading
import warnings

import pytest
import torch
from fake_vlm import FakeVLM
from PIL import Image

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_sources import PictureFolder, Pictures
from cobra.evaluation.responses.prefetch import hash_image, prefetch_images
from cobra.util.errors import UserError

COUNT = 40


@pytest.fixture
def folder(tmp_path):
    for number in range(COUNT):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def images():
    return [CaptionedImage(number, f"{number}.png", ("a",)) for number in range(COUNT)]


def transform(image):
    return FakeVLM("x").vision_backbone.image_transform(image)


def test_images_come_in_order_with_their_hashes(folder, images):
    found = list(prefetch_images(images, PictureFolder(folder), transform, 8))
    assert [one.image for one in found] == images
    assert [one.pixels[0].item() for one in found] == list(range(COUNT))
    assert found[3].sha256 == hashlib.sha256((folder / "3.png").read_bytes()).hexdigest()
    assert {one.problem for one in found} == {None}


def test_only_a_few_are_taken_before_they_are_wanted(folder, images):
    taken = []

    def watched():
        for image in images:
            taken.append(image)
            yield image

    ahead = prefetch_images(watched(), PictureFolder(folder), transform, 5)
    assert taken == []
    for wanted in range(1, 20):
        next(ahead)
        assert len(taken) == wanted + 5
    ahead.close()
    assert len(taken) == 24


def test_bad_images_say_why_in_their_place(folder, images):
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:40])
    (folder / "5.png").unlink()

    def picky(image):
        if image.getpixel((0, 0))[0] == 7:
            raise UserError("a picture too thin")
        return transform(image)

    found = list(prefetch_images(images, PictureFolder(folder), picky, 8))
    problems = {place: one.problem for place, one in enumerate(found) if one.problem is not None}
    assert list(problems) == [2, 5, 7]
    assert "2.png is not a readable image" in problems[2] and "5.png" in problems[5]
    assert problems[7] == "a picture too thin"
    assert [one.pixels is None for one in found] == [place in problems for place in range(COUNT)]
    # A file that is there has a hash, so that a better one is told from it.
    assert [bool(found[place].sha256) for place in (2, 5, 7)] == [True, False, True]


def test_a_programmers_error_is_raised(folder, images):
    def broken(image):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(prefetch_images(images, PictureFolder(folder), broken, 8))


def test_threads_and_warnings_are_as_before(folder, images):
    before, filters = threading.active_count(), list(warnings.filters)
    ahead = prefetch_images(images, PictureFolder(folder), transform, 8)
    for _ in range(10):
        next(ahead)
    assert threading.active_count() > before
    ahead.close()
    assert threading.active_count() == before and warnings.filters == filters


class Rows(Pictures):
    """Pictures that are bytes in memory."""

    name = "the rows"

    def file(self, image):
        if image.image_id == 9:
            return None
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), (image.image_id, 0, 0)).save(stream, "PNG")
        stream.seek(0)
        return stream

    def others(self):
        return []


def test_images_that_are_no_files(folder, images):
    found = list(prefetch_images(images[:10], Rows(), transform, 2))
    assert torch.equal(found[4].pixels, torch.tensor([4.0, 0.0, 0.0]))
    assert found[9].pixels is None and "does not exist" in found[9].problem
    assert hash_image(images[4], Rows()) == found[4].sha256 == hash_image(images[4], PictureFolder(folder))
    assert hash_image(images[9], Rows()) == "" == hash_image(CaptionedImage(1, "none.png", ()), PictureFolder(folder))
