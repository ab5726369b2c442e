"""JPEG files that break off: taken where the end marker alone is missing, whatever the kind of JPEG."""

import io

import numpy as np
import pytest
from PIL import Image

from cobra.util.jpeg import complete_jpeg, is_cut_jpeg

pytestmark = pytest.mark.fault("F17")

KINDS = {
    "baseline": ("RGB", {}),
    "full colour": ("RGB", {"quality": 95, "subsampling": 0}),
    "progressive": ("RGB", {"progressive": True}),
    "progressive gray": ("L", {"progressive": True}),
    "own tables": ("L", {"optimize": True}),
    "restart markers": ("RGB", {"restart_marker_blocks": 3}),
    "cmyk": ("CMYK", {}),
}


def encoded(kind):
    mode, options = KINDS[kind]
    noise = np.random.default_rng(1).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((65, 43)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_marker_alone_may_be_missing(kind):
    whole = encoded(kind)
    assert not is_cut_jpeg(whole)
    with Image.open(io.BytesIO(whole)) as image:
        expected = image.tobytes()
    for cut in (1, 2):
        data = whole[:-cut]
        assert is_cut_jpeg(data)
        picture = complete_jpeg(data)
        assert picture is not None and picture.tobytes() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_lacks_pixels_is_never_taken(kind):
    whole = encoded(kind)
    with Image.open(io.BytesIO(whole)) as image:
        expected = image.tobytes()
    begin = whole.index(b"\xff\xda") + 16
    for end in [*range(begin, len(whole) - 40, 61), *range(len(whole) - 40, len(whole) - 2)]:
        try:
            picture = complete_jpeg(whole[:end])
        except OSError:
            continue
        # The last bits may pad the last byte and be no pixel's.
        assert picture is None or picture.tobytes() == expected


def test_a_file_that_breaks_off_between_two_scans_is_not_taken():
    whole = encoded("progressive")
    scans = [place for place in range(len(whole)) if whole.startswith(b"\xff\xda", place)]
    assert len(scans) > 2
    for place in scans[1:]:
        # Before the header of a scan, and before the tables that belong to it.
        assert complete_jpeg(whole[:place]) is None
        assert complete_jpeg(whole[: whole.rindex(b"\xff\xc4", 0, place)]) is None


def test_headers_that_break_off_or_lie_are_no_picture():
    whole = encoded("baseline")
    for end in range(2, whole.index(b"\xff\xda") + 14):
        try:
            assert complete_jpeg(whole[:end]) is None
        except OSError:
            continue
    assert complete_jpeg(b"\xff\xd8" + b"\xff" * 100) is None
    assert complete_jpeg(b"\xff\xd8\xff\xda\x00\x00" * 100) is None
