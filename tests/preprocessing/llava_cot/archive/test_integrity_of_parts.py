"""Parts that are missing, cut short, exchanged, too many or of another archive are named without reading them all."""

import os
import random
import shutil
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parted_archive import cut, make_images, part_name, unpacked, zip_of

from cobra.preprocessing.llava_cot.archive.integrity import inspect_archive
from cobra.preprocessing.llava_cot.archive.unpack import unpack_images
from cobra.util.errors import UserError

IMAGES = make_images(60)
CONTENT = zip_of(IMAGES)
PARTS = 6


@pytest.fixture
def parts(tmp_path):
    return cut(tmp_path, CONTENT, PARTS)


def exchange(first, second):
    third = first.with_name("third")
    first.rename(third)
    second.rename(first)
    third.rename(second)


def assert_refused(folder, *patterns):
    with pytest.raises(UserError) as error:
        inspect_archive(folder)
    assert all(pattern in str(error.value) for pattern in patterns), str(error.value)
    with pytest.raises(UserError):
        unpack_images(folder, folder, list(IMAGES))
    assert unpacked(folder) == {}, "something was unpacked"


def test_a_good_archive_passes(parts, tmp_path):
    inspect_archive(tmp_path)
    archive = inspect_archive(tmp_path)
    assert len(archive.members) == 62 and archive.starts[-1] == len(CONTENT)


@pytest.mark.parametrize("place", range(1, PARTS - 1))
def test_a_missing_letter_is_named(parts, tmp_path, place):
    parts[place].unlink()
    assert_refused(tmp_path, f"{part_name(place)} is missing", "python fine_tune/prepare_llava_cot.py")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_missing_last_parts_are_named(parts, tmp_path, count):
    for path in parts[-count:]:
        path.unlink()
    assert_refused(tmp_path, "parts after" if count < 4 else "parts after it are missing", part_name(PARTS - count - 1))


@pytest.mark.parametrize("lost", [1, 100, 2000])
@pytest.mark.parametrize("place", range(PARTS - 1))
def test_a_part_that_is_cut_short_is_named(parts, tmp_path, place, lost):
    os.truncate(parts[place], parts[place].stat().st_size - lost)
    assert_refused(
        tmp_path, f"{lost} bytes are missing", f"not {part_name(place)} (", f"out of place from {part_name(place)} on"
    )


def test_without_equal_sizes_the_part_is_found_by_its_members(tmp_path):
    draw = random.Random(5)
    bounds = [0, *sorted(draw.sample(range(3000, len(CONTENT) - 3000, 3000), 5)), len(CONTENT)]
    for place in range(6):
        for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            (tmp_path / part_name(number)).write_bytes(CONTENT[start:end])
        if place == 5:
            break
        os.truncate(tmp_path / part_name(place), bounds[place + 1] - bounds[place] - 9)
        assert_refused(tmp_path, f"9 bytes are missing from {tmp_path}", f"out of place from {part_name(place)} on")
    inspect_archive(tmp_path)


def test_bytes_too_many_and_a_short_end_are_named(parts, tmp_path):
    with parts[2].open("ab") as file:
        file.write(b"x" * 7)
    assert_refused(tmp_path, "7 bytes are too many", f"not {part_name(2)}")
    os.truncate(parts[2], parts[2].stat().st_size - 7)
    os.truncate(parts[-1], parts[-1].stat().st_size - 1)
    assert_refused(tmp_path, "the last part is cut short", part_name(PARTS - 1))


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 3), (0, 4), (2, 3)])
def test_exchanged_parts_are_named(parts, tmp_path, first, second):
    exchange(parts[first], parts[second])
    assert_refused(
        tmp_path,
        f"{part_name(first)} holds what belongs to {part_name(second)}",
        f"{part_name(second)} holds what belongs to {part_name(first)}",
    )


def test_an_exchanged_last_part_is_named(parts, tmp_path):
    exchange(parts[1], parts[-1])
    assert_refused(tmp_path, f"{part_name(1)} holds what belongs to {part_name(PARTS - 1)}, the end of the archive")


def test_extra_parts_are_named(parts, tmp_path):
    shutil.copy(parts[0], tmp_path / part_name(PARTS))
    shutil.copy(parts[1], tmp_path / part_name(PARTS + 1))
    assert_refused(
        tmp_path, f"ends with {part_name(PARTS - 1)}, but {part_name(PARTS)}, {part_name(PARTS + 1)} follows"
    )


def test_a_part_that_is_there_twice_is_named(parts, tmp_path):
    for place in range(PARTS - 1, 2, -1):
        parts[place].rename(tmp_path / part_name(place + 1))
    shutil.copy(parts[2], parts[3])
    assert_refused(tmp_path, f"{part_name(3)} does not belong to the archive, or is there twice")


def test_a_part_of_zeros_or_of_another_archive_is_named(parts, tmp_path):
    size = parts[2].stat().st_size
    parts[2].write_bytes(bytes(size))
    assert_refused(tmp_path, f"{part_name(2)} does not hold the members")


def test_a_flipped_byte_condemns_a_member_and_not_the_part(parts, tmp_path):
    content = bytearray(parts[2].read_bytes())
    content[content.index(b"PK\x03\x04")] ^= 255
    parts[2].write_bytes(content)
    inspect_archive(tmp_path)
    result = unpack_images(tmp_path, tmp_path, list(IMAGES))
    assert result.images == 59 and len(result.damaged) == 1
    assert part_name(2) in result.damaged[0].reason and "no member begins" in result.damaged[0].reason


def test_a_directory_that_claims_an_absurd_size_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "image.zip"
    with path.open("wb") as file:
        file.seek(2**33)
        end = bytearray(zip_of({}, ""))[-22:]
        end[12:16] = (2**32 - 2).to_bytes(4, "little")
        end[16:20] = bytes(4)
        file.write(end)
    assert_refused(tmp_path, "claims to have 4294967294 bytes")


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_cuts_are_unpacked_with_parts_kept_or_not(tmp_path_factory, data):
    images = make_images(12)
    content = zip_of(images)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), min_size=1, max_size=10)))
    folder = tmp_path_factory.mktemp("parts")
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(content)], strict=True)):
        (folder / part_name(number)).write_bytes(content[start:end])
    inspect_archive(folder)
    keep_parts = data.draw(st.booleans())
    sources = data.draw(st.sampled_from([(), ("sqa",), ("coco", "chartqa")]))
    unpack_images(folder, folder, list(images), keep_parts=keep_parts, sources=sources)
    expected = {path: content for path, content in images.items() if not sources or path.split("/")[0] in sources}
    assert unpacked(folder) == expected
    assert unpack_images(folder, folder, list(images), keep_parts=False).images == 12
    assert unpacked(folder) == images and not list(folder.glob("image.zip*"))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_damage_is_an_error_or_named_and_what_is_unpacked_is_right(tmp_path_factory, data):
    images = make_images(9)
    content = bytearray(zip_of(images))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("parts")
    cut(folder, bytes(content), 3)
    try:
        result = unpack_images(folder, folder, list(images), keep_parts=False)
    except UserError:
        return
    if result is not None:
        found = unpacked(folder)
        # A flipped bit in a name of the directory and of the header alike gives another name, with the same content.
        assert all(found[path] == images[path] for path in found.keys() & images.keys())
        assert len(found) == result.images


@pytest.mark.slow
def test_a_hundred_thousand_members_are_inspected_in_seconds(tmp_path):
    import time

    with zipfile.ZipFile(tmp_path / "image.zip", "w") as file:
        for number in range(100_000):
            file.writestr(f"images/sqa/{number}.png", b"x")
    start = time.process_time()
    inspect_archive(tmp_path)
    assert time.process_time() - start < 10
    assert len(inspect_archive(tmp_path).members) == 100_000
