"""Images out of the parts of an archive, again without reading, and parts deleted on the way."""

import json
import os
from pathlib import Path

import pytest
from parted_archive import PREFIX, cut, make_images, part_name, parts_in, unpacked, zip_of

from cobra.preprocessing.llava_cot.archive import extract_worker as extracting
from cobra.preprocessing.llava_cot.archive.integrity import inspect_archive
from cobra.preprocessing.llava_cot.archive.joined_parts import consumed_parts
from cobra.preprocessing.llava_cot.archive.unpack import unpack_images
from cobra.util.errors import UserError

IMAGES = make_images(60)


@pytest.fixture
def folder(tmp_path) -> Path:
    cut(tmp_path / "data", zip_of(IMAGES), 5)
    return tmp_path / "data"


def unpack(folder: Path, **options):
    return unpack_images(folder, folder, list(IMAGES), **options)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 255
    path.write_bytes(content)


def part_of(folder: Path, needle: bytes) -> Path:
    return next(path for path in sorted(folder.glob("image.zip*")) if needle in path.read_bytes())


@pytest.mark.parametrize("keep_parts", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_all_images_are_unpacked_and_nothing_else(folder, monkeypatch, workers, keep_parts):
    monkeypatch.setattr(extracting, "_CHUNK_MEMBERS", 7)
    before = parts_in(folder)
    result = unpack(folder, workers=workers, keep_parts=keep_parts)
    assert unpacked(folder) == IMAGES
    assert (result.prefix, result.images, result.new, result.other_files) == (PREFIX, 60, 60, 2)
    assert result.refused == result.damaged == []
    assert parts_in(folder) == (before if keep_parts else [])
    assert consumed_parts(folder) == (set() if keep_parts else set(before))
    again = unpack(folder, workers=workers, keep_parts=keep_parts)
    assert again.new == 0 and again.images == 60 and again.prefix == PREFIX and again.other_files == 2


def test_one_whole_zip_can_be_consumed_too(tmp_path):
    (tmp_path / "image.zip").write_bytes(zip_of(IMAGES, ""))
    assert unpack(tmp_path, keep_parts=False).new == 60
    assert parts_in(tmp_path) == [] and consumed_parts(tmp_path) == {"image.zip"}
    assert unpack(tmp_path).images == 60 and unpacked(tmp_path) == IMAGES


def test_without_an_archive_or_with_another_there_is_nothing_to_unpack(tmp_path, folder):
    assert unpack(tmp_path / "data" / "..") is None
    assert unpack_images(folder, folder, ["no/such.png"]) is None
    assert unpacked(folder) == {}
    inspect_archive(folder)
    inspect_archive(tmp_path)


def test_rerun_reads_neither_images_nor_archive(folder, monkeypatch):
    unpack(folder)
    monkeypatch.setattr(extracting, "begin", lambda *args: pytest.fail("workers were started"))
    manifest = folder / ".prepare" / "unpacked.jsonl"
    before = manifest.read_bytes()
    assert unpack(folder).images == 60
    assert manifest.read_bytes() == before


def test_files_that_are_whole_are_taken_and_others_written_anew(folder):
    unpack(folder)
    flipped, touched, short, lost = list(IMAGES)[:4]
    flip(folder / flipped, 100)
    (folder / touched).touch()
    (folder / short).write_bytes(IMAGES[short][:-1])
    (folder / lost).unlink()
    assert unpack(folder).new == 3
    assert unpacked(folder) == IMAGES
    assert unpack(folder).new == 0


def test_images_that_something_else_unpacked_are_checked_not_written(folder):
    for path, content in IMAGES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    assert unpack(folder, keep_parts=False).new == 0
    assert unpacked(folder) == IMAGES and parts_in(folder) == []


@pytest.mark.parametrize("tear", [b"", b'{"path": "sqa', b"\xff\n", b"[1]\n", b'{"size": 3}\n'])
def test_torn_manifest_costs_a_look_and_no_more(folder, tear):
    unpack(folder)
    manifest = folder / ".prepare" / "unpacked.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:-2]) + tear)
    assert unpack(folder).new == 0
    entries = [line for line in manifest.read_bytes().splitlines() if line.startswith(b"{") and line.endswith(b"}")]
    assert {json.loads(line)["path"] for line in entries if b"path" in line} == set(IMAGES)


def test_another_revision_of_an_image_replaces_the_old_one(folder):
    unpack(folder)
    path = next(iter(IMAGES))
    renewed = {**IMAGES, path: IMAGES[path][::-1]}
    cut(folder, zip_of(renewed), 5)
    assert unpack(folder).new == 1
    assert unpacked(folder) == renewed


def test_a_damaged_member_is_named_holds_its_part_back_and_is_mended_by_a_new_part(folder):
    victim = list(IMAGES)[20]
    part = part_of(folder, IMAGES[victim][:50])
    good = part.read_bytes()
    flip(part, good.index(IMAGES[victim][:50]) + 20)
    result = unpack(folder, keep_parts=False)
    assert [refusal.member for refusal in result.damaged] == [PREFIX + victim]
    assert part.name in result.damaged[0].reason and "Bad CRC" in result.damaged[0].reason
    assert result.images == 59 and unpacked(folder).keys() == IMAGES.keys() - {victim}
    # The end of the archive stays as long as any part does.
    assert part.name in parts_in(folder) and part_name(4) in parts_in(folder) and part_name(0) not in parts_in(folder)
    part.write_bytes(good)
    assert unpack(folder, keep_parts=False).new == 1
    assert unpacked(folder) == IMAGES and parts_in(folder) == []


def test_an_image_lost_after_its_part_is_named_and_its_part_wanted_again(folder, tmp_path):
    for part in folder.glob("image.zip*"):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    unpack(folder, keep_parts=False)
    lost, altered = list(IMAGES)[15], list(IMAGES)[40]
    (folder / lost).unlink()
    flip(folder / altered, 7)
    result = unpack(folder, keep_parts=False)
    assert result.images == 58 and {refusal.member for refusal in result.damaged} == {PREFIX + lost, PREFIX + altered}
    assert all("--download true" in refusal.reason for refusal in result.damaged)
    wanted = {part_name(number) for number in range(5)} - consumed_parts(folder)
    assert wanted and all(any(name in refusal.reason for name in wanted) for refusal in result.damaged)
    # The same answer while the part has not come.
    assert len(unpack(folder).damaged) == 2
    for name in wanted:
        (folder / name).write_bytes((tmp_path / name).read_bytes())
    assert unpack(folder, keep_parts=False).new == 2
    assert unpacked(folder) == IMAGES and parts_in(folder) == []
    assert consumed_parts(folder) == {part_name(number) for number in range(5)}


def test_a_part_of_another_size_than_before_is_refused(folder):
    unpack(folder, keep_parts=False)
    (folder / part_name(2)).write_bytes(b"x")
    with pytest.raises(UserError, match="part-ac has 1 bytes instead of"):
        unpack(folder)
    (folder / part_name(2)).unlink()
    (folder / part_name(7)).write_bytes(b"x")
    with pytest.raises(UserError, match="part-ah, which is no part"):
        unpack(folder)
    (folder / part_name(7)).unlink()
    (folder / ".prepare" / "directory.bin").unlink()
    with pytest.raises(UserError, match=r"directory\.bin is missing.*Delete the folder \.prepare"):
        unpack(folder)


def test_parts_with_other_sources_stay(folder):
    result = unpack(folder, keep_parts=False, sources=("sqa",))
    assert unpacked(folder) == {path: content for path, content in IMAGES.items() if path.startswith("sqa/")}
    assert (result.images, result.other_files) == (20, 42)
    left = parts_in(folder)
    assert part_name(0) not in left and left[-2:] == [part_name(3), part_name(4)]
    assert unpack(folder, keep_parts=False).new == 40
    assert unpacked(folder) == IMAGES and parts_in(folder) == []


def test_peak_of_the_disk_stays_near_the_parts(tmp_path, monkeypatch):
    images = make_images(200, 8192, 8192)
    cut(tmp_path, zip_of(images), 20)
    monkeypatch.setattr(extracting, "_CHUNK_MEMBERS", 5)
    sizes = []
    write = extracting.write_member

    def measured(source, target, size, advance):
        write(source, target, size, advance)
        sizes.append(sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))

    monkeypatch.setattr(extracting, "write_member", measured)
    published = sum(path.stat().st_size for path in tmp_path.glob("image.zip*"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": published // 10}))
    assert unpack_images(tmp_path, tmp_path, list(images), keep_parts=False).new == 200
    assert max(sizes) < published * 1.15 and parts_in(tmp_path) == []
    with pytest.raises(UserError, match="GB more"):
        cut(tmp_path / "other", zip_of(images), 20)
        unpack_images(tmp_path / "other", tmp_path / "other", list(images))


def test_images_are_on_the_disk_before_their_part_goes(folder, monkeypatch):
    events = []
    unlink = Path.unlink
    monkeypatch.setattr(os, "sync", lambda: events.append("sync"))
    monkeypatch.setattr(Path, "unlink", lambda self, **how: (events.append(self.name), unlink(self, **how)))
    unpack(folder, keep_parts=False)
    deleted = [event for event in events if event.startswith("image.zip")]
    assert deleted == [part_name(number) for number in range(5)]
    first = events.index(part_name(0))
    assert "sync" in events[:first] and events.count("sync") >= 1
