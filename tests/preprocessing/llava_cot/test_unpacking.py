"""Images out of the parts of an archive: whole or not at all, again without reading, and parts deleted on the way."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
import zipfile
from pathlib import Path

import pytest
from parted_archive import PREFIX, cut, make_images, part_name, unpacked, zip_of

from cobra.preprocessing import archives
from cobra.preprocessing.llava_cot import extracting
from cobra.preprocessing.llava_cot.unpacking import check_archive, consumed_parts, unpack_images
from cobra.util.errors import UserError

IMAGES = make_images(60)


@pytest.fixture
def folder(tmp_path) -> Path:
    cut(tmp_path / "data", zip_of(IMAGES), 5)
    return tmp_path / "data"


def unpack(folder: Path, **options):
    return unpack_images(folder, folder, list(IMAGES), **options)


def parts_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("image.zip*"))


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
    check_archive(folder)
    check_archive(tmp_path)


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


def refused_members(folder: Path, members: dict[str, bytes], change=None):
    """Unpack the images and one archive's more members; return the refusals by name."""
    content = zip_of(IMAGES)
    (folder.parent / "all.zip").write_bytes(content)
    with zipfile.ZipFile(folder.parent / "all.zip", "a") as file:
        for name, body in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change:
                change(info)
            file.writestr(info, body)
    cut(folder, (folder.parent / "all.zip").read_bytes(), 5)
    result = unpack(folder)
    assert result.images == 60 + len(members) - len(result.refused) - len(result.damaged)
    return {refusal.member: refusal.reason for refusal in result.refused + result.damaged}


def set_mode(mode: int):
    def change(info: zipfile.ZipInfo) -> None:
        info.external_attr = mode << 16

    return change


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (f"{PREFIX}../../evil.png", None, "leads out"),
        ("/tmp/evil.png", None, "absolute path"),
        (f"{PREFIX}a/../../../../evil.png", None, "leads out"),
        (f"{PREFIX}evil.png", set_mode(0o120777), "is a link"),
        (f"{PREFIX}evil.png", set_mode(0o020644), "is a device"),
        (f"{PREFIX}evil.png", set_mode(0o010644), "is a device or another special file"),
        (f"{PREFIX}sqa/con.png", None, "device"),
        (f"{PREFIX}C:evil.png", set_mode(0o140644), "special file"),
    ],
)
def test_hostile_members_are_named_and_the_others_unpacked(folder, tmp_path, name, change, reason):
    refused = refused_members(folder, {name: b"evil"}, change)
    assert list(refused) == [name] and reason in refused[name]
    assert unpacked(folder) == IMAGES
    assert {path.name for path in tmp_path.iterdir()} == {"data", "all.zip"}


def test_a_bomb_is_named(folder, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_FLOOR_BYTES", 100_000)
    refused = refused_members(folder, {f"{PREFIX}bomb.png": bytes(1_000_000)})
    assert "unfolds from" in refused[f"{PREFIX}bomb.png"] and unpacked(folder) == IMAGES


def test_names_that_collide_where_case_or_form_is_ignored_are_named(folder):
    first = next(iter(IMAGES))
    accented = f"{PREFIX}chartqa/caf\u00e9.png"
    twins = {PREFIX + first.upper(): b"x", accented: b"y", unicodedata.normalize("NFD", accented): b"z"}
    twins[f"{PREFIX}SQA/other.png"] = b"folders that differ in case lose no file"
    refused = refused_members(folder, twins)
    assert set(refused) == {PREFIX + first.upper(), unicodedata.normalize("NFD", accented)}
    assert all("collides with" in reason for reason in refused.values())
    assert PREFIX + first in refused[PREFIX + first.upper()]
    assert (folder / "chartqa" / "caf\u00e9.png").read_bytes() == b"y"


def test_a_user_may_link_the_top_folder_and_no_link_deeper_leads_out(folder, tmp_path):
    (tmp_path / "disk").mkdir()
    (folder / "coco").symlink_to(tmp_path / "disk")
    (folder / "sqa" / "train").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "sqa" / "train" / "3").symlink_to(tmp_path / "elsewhere")
    result = unpack(folder)
    assert (tmp_path / "disk" / "train2017" / "50.jpg").read_bytes() == IMAGES["coco/train2017/50.jpg"]
    assert not list((tmp_path / "elsewhere").iterdir())
    assert [refusal.member for refusal in result.refused] == [f"{PREFIX}sqa/train/3/image.png"]
    assert "leads out of" in result.refused[0].reason and result.images == 59


def test_a_link_in_place_of_an_image_is_replaced_not_followed(folder, tmp_path):
    (tmp_path / "precious").write_bytes(b"mine")
    path = next(iter(IMAGES))
    (folder / path).parent.mkdir(parents=True)
    (folder / path).symlink_to(tmp_path / "precious")
    unpack(folder)
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert (folder / path).read_bytes() == IMAGES[path] and not (folder / path).is_symlink()


@pytest.mark.parametrize("keep_parts", [True, False])
@pytest.mark.parametrize("stop", [0, 13, 59])
def test_an_interrupt_loses_nothing(folder, monkeypatch, stop, keep_parts):
    monkeypatch.setattr(extracting, "_CHUNK_MEMBERS", 4)
    write, written = extracting.write_member, []

    def interrupted(source, target, size, advance):
        if len(written) == stop:
            written.append(None)
            raise KeyboardInterrupt
        write(source, target, size, advance)
        written.append(target)

    monkeypatch.setattr(extracting, "write_member", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(folder, keep_parts=keep_parts)
    assert len(unpacked(folder)) == stop
    assert unpack(folder, keep_parts=keep_parts).images == 60
    assert len(written) == 61, "an image was written twice"
    assert unpacked(folder) == IMAGES


def test_a_full_disk_is_a_user_error_and_nothing_is_left_half(folder, monkeypatch):
    real, written = archives._create, []

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def write(self, block):
            self.file.write(block[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    def create(path):
        written.append(path)
        return Full(real(path)) if len(written) == 30 else real(path)

    monkeypatch.setattr(archives, "_create", create)
    with pytest.raises(UserError, match="No space left on device.*run the same command again"):
        unpack(folder)
    found = unpacked(folder)
    assert len(found) == 29 and found.items() <= IMAGES.items()
    monkeypatch.setattr(archives, "_create", real)
    assert unpack(folder).new == 31 and unpacked(folder) == IMAGES


def test_what_a_dead_process_left_is_removed_and_the_users_files_stay(folder):
    path = next(iter(IMAGES))
    (folder / path).parent.mkdir(parents=True)
    stale = (folder / path).with_name(".0123456789abcdef.4242.part")
    stale.write_bytes(b"half")
    mine = (folder / path).with_name(".mine.part")
    mine.write_bytes(b"mine")
    unpack(folder)
    assert not stale.exists() and mine.read_bytes() == b"mine"


def mount(target: Path, *options: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", *options, str(target)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not possible here: {done.stderr.strip()}")


def test_a_small_disk_fills_up_and_the_rerun_goes_on_when_there_is_space(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    try:
        images = make_images(150, 2500, 3500)
        cut(disk, zip_of(images), 4)
        with pytest.raises(UserError, match="GB more"):
            unpack_images(disk, disk, list(images))
        assert unpacked(disk) == {}
        # Another program takes the space after it was checked.
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**40}))
        with pytest.raises(UserError, match="No space left on device"):
            unpack_images(disk, disk, list(images))
        found = unpacked(disk)
        assert 0 < len(found) < 150 and found.items() <= images.items()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert unpack_images(disk, disk, list(images), workers=2).new == 150 - len(found)
        assert unpacked(disk) == images
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_folder_is_named_before_work_begins(folder):
    mount(folder, "--bind", str(folder))
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        with pytest.raises(UserError, match=r"data cannot be written to .*nothing was unpacked"):
            unpack(folder)
        assert unpacked(folder) == {}
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_disk_of_images_is_named_before_work_begins(folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, "-t", "tmpfs", "-o", "ro", "tmpfs")
    try:
        with pytest.raises(UserError, match=r"disk cannot be written to .*nothing was unpacked"):
            unpack_images(folder, disk, list(IMAGES))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


KILLED = """
import json, sys
from pathlib import Path
from cobra.preprocessing.llava_cot import extracting
from cobra.preprocessing.llava_cot.unpacking import unpack_images
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    extracting._CHUNK_MEMBERS = 8
    unpack_images(folder, folder, json.loads(sys.argv[2]), keep_parts=False, workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize(("after", "workers"), [(30, 2), (500, 2), (900, 1)])
def test_sigkill_loses_nothing_that_is_done(tmp_path, after, workers):
    images = make_images(1500, 2000, 9000)
    folder = tmp_path / "data"
    cut(folder, zip_of(images), 12)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(folder), json.dumps(list(images)[::50]), str(workers)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while process.poll() is None and len(unpacked(folder)) < after and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = {path: content for path, content in unpacked(folder).items() if path in images}
    assert len(left) >= after and left.items() <= images.items()
    result = unpack_images(folder, folder, list(images)[::50], keep_parts=False)
    assert result.images == 1500 and result.new <= 1500 - len(left)
    assert unpacked(folder) == images and parts_in(folder) == []
