"""Hostile members, full and read-only disks, interrupts and kills while images are unpacked: nothing whole is lost."""

import errno
import json
import os
import signal
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import pytest
from parted_archive import PREFIX, cut, make_images, parts_in, unpacked, zip_of

from cobra.preprocessing import archives
from cobra.preprocessing.llava_cot.archive import extract_worker as extracting
from cobra.preprocessing.llava_cot.archive.unpack import unpack_images
from cobra.util.errors import UserError

IMAGES = make_images(60)


@pytest.fixture
def folder(tmp_path) -> Path:
    cut(tmp_path / "data", zip_of(IMAGES), 5)
    return tmp_path / "data"


def unpack(folder: Path, **options):
    return unpack_images(folder, folder, list(IMAGES), **options)


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
    result = unpack(folder, keep_parts=False)
    assert parts_in(folder)[0] == "image.zip.part-aa", "the part with an image that was kept out is gone"
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
    stale = (folder / path).with_name(".unpacking.4242.part")
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
import json, os, signal, sys
from pathlib import Path
from cobra.preprocessing import archives
from cobra.preprocessing.llava_cot.archive import extract_worker, unpack
from cobra.preprocessing.llava_cot.archive.joined_parts import PartsRecord

def die_after(owner, name, calls):
    function = getattr(owner, name)
    made = []
    def counted(*args):
        result = function(*args)
        made.append(name)
        if len(made) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, counted)

if __name__ == "__main__":
    folder, moment, calls, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    moments = {
        "a file is begun": (archives, "_create"),
        "a chunk is noted": (unpack._Unpacking, "_record_outcomes"),
        "a part is to be deleted": (PartsRecord, "save"),
    }
    die_after(*moments[moment], calls)
    extract_worker._CHUNK_MEMBERS = 8
    images = json.loads(sys.argv[5])
    unpack.unpack_images(folder, folder, images, keep_parts=False, workers=workers)
"""


@pytest.mark.parametrize(
    ("moment", "calls", "workers", "least"),
    [("a file is begun", 300, 1, 299), ("a chunk is noted", 20, 2, 160), ("a part is to be deleted", 4, 2, 50)],
)
def test_sigkill_loses_nothing_that_is_done(tmp_path, moment, calls, workers, least):
    images = make_images(500, 2000, 9000)
    folder = tmp_path / "data"
    cut(folder, zip_of(images), 12)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(folder), moment, str(calls), str(workers), json.dumps(list(images))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, stderr=subprocess.DEVNULL, env=environment, timeout=100)
    assert killed.returncode == -signal.SIGKILL
    left = {path: content for path, content in unpacked(folder).items() if path in images}
    assert len(left) >= least and left.items() <= images.items()
    # At once, while the killed one's workers may still be at work.
    result = unpack_images(folder, folder, list(images), keep_parts=False)
    assert result.images == 500 and result.new <= 500 - len(left)
    assert unpacked(folder) == images and parts_in(folder) == []
