"""Unpacking archives that are hostile or damaged."""

import contextlib
import errno
import io
import os
import re
import tarfile
import zipfile

import pytest
from archive_files import make_tar, make_zip, tar_member, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from cobra.preprocessing import archives
from cobra.preprocessing.archives import NameClaims, extract_archive
from cobra.util.errors import UserError

UNSAFE_NAMES = [
    "",
    "../evil",
    "a/../../evil",
    "/etc/evil",
    "C:/evil",
    "a\\..\\evil",
    "a/nul",
    "COM1.txt",
    "a\nb",
    "a" * 256,
    "\u00e9" * 128,
    "/".join(["a" * 200] * 4),
]


@pytest.mark.fault("C1")
@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_zip_with_an_unsafe_name_is_refused_whole(tmp_path, name):
    archive = tmp_path / "in" / "x.zip"
    archive.parent.mkdir()
    archive.write_bytes(make_zip({"good": b"x", name: b"evil"}))
    with pytest.raises(UserError, match="was not unpacked: its member"):
        extract_archive(archive, tmp_path / "in" / "out")
    assert list(tree(tmp_path)) == ["in/x.zip"]


def set_link(info):
    info.external_attr = 0o120777 << 16


def set_device(info):
    info.external_attr = 0o020644 << 16


@pytest.mark.parametrize(("change", "reason"), [(set_link, "is a link"), (set_device, "is a device")])
def test_zip_with_a_link_or_device_is_refused(tmp_path, change, reason):
    (tmp_path / "x.zip").write_bytes(make_zip({"a": b"/etc/passwd"}, change))
    with pytest.raises(UserError, match=reason):
        extract_archive(tmp_path / "x.zip", tmp_path / "out")
    assert tree(tmp_path / "out") == {}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [["a", "./a"], ["a", "a/b"], ["a/b", "a"]])
def test_zip_whose_members_collide_is_refused(tmp_path, names):
    (tmp_path / "x.zip").write_bytes(make_zip({name: b"x" for name in names}))
    with pytest.raises(UserError, match="there twice"):
        extract_archive(tmp_path / "x.zip", tmp_path / "out")


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_FLOOR_BYTES", 100_000)
    (tmp_path / "x.zip").write_bytes(make_zip({"bomb": bytes(1_000_000)}))
    with pytest.raises(UserError, match="unfolds from .* to 1000000 bytes"):
        extract_archive(tmp_path / "x.zip", tmp_path / "out")
    make_tar(tmp_path / "x.tgz", [tar_member("bomb", size=1_000_000)])
    with pytest.raises(UserError, match="damaged or hostile"):
        extract_archive(tmp_path / "x.tgz", tmp_path / "out2")


def test_zip_that_lies_about_a_size_is_damaged(tmp_path):
    content = bytearray(make_zip({"a": b"x" * 1000, "b": b"y"}))
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        extract_archive(tmp_path / "x.zip", tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_flipped_bytes_and_other_files_are_named(tmp_path):
    content = bytearray(make_zip({"a": os.urandom(1000)}))
    content[200] ^= 255
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        extract_archive(tmp_path / "x.zip", tmp_path / "out")
    (tmp_path / "y.zip").write_bytes(b"<html>expired</html>")
    with pytest.raises(UserError, match="neither a zip nor a tar"):
        extract_archive(tmp_path / "y.zip", tmp_path / "out")
    assert tree(tmp_path / "out") == {}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_is_unpacked(tmp_path, mode):
    make_tar(tmp_path / "x.tar", [tar_member(".", tarfile.DIRTYPE), tar_member("./a/b", size=3)], mode)
    extract_archive(tmp_path / "x.tar", tmp_path / "out")
    assert tree(tmp_path / "out") == {"a/b": b"xxx"}


@pytest.mark.parametrize(
    "member",
    [
        tar_member("../evil", size=1),
        tar_member("/evil", size=1),
        tar_member("link", tarfile.SYMTYPE, link="/etc"),
        tar_member("hard", tarfile.LNKTYPE, link="../evil"),
        tar_member("device", tarfile.CHRTYPE),
        tar_member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda member: member.name,
)
def test_hostile_tar_is_refused(tmp_path, member):
    make_tar(tmp_path / "x.tgz", [member, tar_member("later", size=1)])
    with pytest.raises(UserError, match="was not unpacked: its member"):
        extract_archive(tmp_path / "x.tgz", tmp_path / "in" / "out")
    assert list(tree(tmp_path)) == ["x.tgz"]


def test_truncated_tar_is_damaged(tmp_path):
    make_tar(tmp_path / "x.tgz", [tar_member("a", size=100_000)])
    content = (tmp_path / "x.tgz").read_bytes()
    (tmp_path / "x.tgz").write_bytes(content[: len(content) - 60])
    with pytest.raises(UserError, match="damaged|neither"):
        extract_archive(tmp_path / "x.tgz", tmp_path / "out")


def test_names_that_collide_where_case_is_ignored_are_refused_and_both_named(tmp_path):
    (tmp_path / "x.zip").write_bytes(make_zip({"A/x.png": b"1", "a/y.png": b"2"}))
    extract_archive(tmp_path / "x.zip", tmp_path / "folders")
    assert set(tree(tmp_path / "folders")) == {"A/x.png", "a/y.png"}
    (tmp_path / "y.zip").write_bytes(make_zip({"A/x.png": b"1", "a/X.png": b"2"}))
    with pytest.raises(UserError, match="'a/X.png' collides with 'A/x.png'"):
        extract_archive(tmp_path / "y.zip", tmp_path / "out")
    make_tar(tmp_path / "x.tar", [tar_member("A/x.png", size=1), tar_member("a/X.png", size=1)])
    with pytest.raises(UserError, match="'a/X.png' collides with 'A/x.png'"):
        extract_archive(tmp_path / "x.tar", tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {"A/x.png"}, "the zip, which has a directory, should leave nothing"


@pytest.mark.parametrize(
    ("earlier", "name", "reason"),
    [
        ("a.png", "A.PNG", "collides with 'a.png'"),
        ("caf\u00e9.png", "cafe\u0301.png", "collides with 'caf\u00e9.png'"),
        ("STRASSE", "stra\u00dfe", "collides"),
        ("a", "a", "is there twice"),
        ("a", "A/b", "file and a folder at once .beside 'a'"),
        ("A/b/c", "a/B", "file and a folder at once .beside 'A/b/c'"),
        ("a/b", "A/c", None),
        ("a/b", "a.b", None),
    ],
)
def test_names_are_claimed_as_lenient_file_systems_compare_them(earlier, name, reason):
    names = NameClaims()
    assert names.claim(earlier) is None
    found = names.claim(name)
    assert found is None if reason is None else re.search(reason, found)


def overlapping(second_offset: int) -> bytes:
    """Return a zip of three stored members whose second one's entry in the directory begins elsewhere."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in ("one", "two", "three"):
            file.writestr(name, name.encode() * 10)
    content = bytearray(buffer.getvalue())
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
    content[entry + 42 : entry + 46] = second_offset.to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize(
    ("offset", "reason"),
    [
        (0, "'two' claims bytes of the archive that belong to 'one'"),
        (10, "'one' claims bytes of the archive that belong to 'two'"),
        (2**31, "'two' claims bytes of the archive that belong to the directory"),
    ],
)
def test_members_that_overlap_are_refused(tmp_path, offset, reason):
    (tmp_path / "x.zip").write_bytes(overlapping(offset))
    with pytest.raises(UserError, match=reason):
        extract_archive(tmp_path / "x.zip", tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_an_encrypted_member_is_refused(tmp_path):
    content = bytearray(make_zip({"a": b"x"}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match="is encrypted"):
        extract_archive(tmp_path / "x.zip", tmp_path / "out")


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (0, "no member begins"),
        (6, "another packing"),
        (8, "another packing"),
        (22, "header states"),
        (30, "header names"),
    ],
)
def test_a_header_that_differs_from_the_directory_is_damage(tmp_path, at, reason):
    content = bytearray(make_zip({"a": b"x" * 100}))
    content[at] ^= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match=f"damaged.*{reason}"):
        extract_archive(tmp_path / "x.zip", tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_the_sizes_of_a_zip64_header_are_compared_too(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file, file.open("a", "w", force_zip64=True) as member:
        member.write(b"x" * 100)
    content = bytearray(buffer.getvalue())
    # The sizes in 32 bits, which Python before 3.11.4 writes beside those in 64 bits, and later ones as all ones.
    content[18:26] = b"\xff" * 8
    (tmp_path / "x.zip").write_bytes(content)
    extract_archive(tmp_path / "x.zip", tmp_path / "good")
    assert tree(tmp_path / "good") == {"a": b"x" * 100}
    field = content.index(b"\x01\x00\x10\x00")
    content[field + 4] ^= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match="its header states a CRC of .* 101 bytes and 100 packed"):
        extract_archive(tmp_path / "x.zip", tmp_path / "out")


def test_a_zip_written_to_a_pipe_is_read(tmp_path):
    class Pipe(io.RawIOBase):
        def __init__(self):
            self.content = b""

        def writable(self):
            return True

        def write(self, data):
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", b"x" * 1000)
    (tmp_path / "x.zip").write_bytes(pipe.content)
    extract_archive(tmp_path / "x.zip", tmp_path / "out")
    assert tree(tmp_path / "out") == {"a": b"x" * 1000}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_packing_that_python_knows_is_read(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as file:
        file.writestr("a/b", b"text " * 1000)
    extract_archive(tmp_path / "x.zip", tmp_path / "out")
    assert tree(tmp_path / "out") == {"a/b": b"text " * 1000}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_below_the_destination_are_not_followed_out_of_it(tmp_path, kind):
    archive = tmp_path / f"x.{kind}"
    if kind == "zip":
        archive.write_bytes(make_zip({"top/deep/file": b"x"}))
    else:
        make_tar(archive, [tar_member("top/deep/file", size=1)])
    for name in ("disk", "outside", "out", "own/top"):
        (tmp_path / name).mkdir(parents=True)
    # What the user links directly below the destination is the user's own.
    (tmp_path / "out" / "top").symlink_to(tmp_path / "disk")
    extract_archive(archive, tmp_path / "out")
    assert tree(tmp_path / "disk") == {"deep/file": b"x"}
    (tmp_path / "own" / "top" / "deep").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="'top/deep/file' lies below a link that leads out of"):
        extract_archive(archive, tmp_path / "own")
    assert tree(tmp_path / "outside") == {}
    # A link that stays inside leads to a file that is inside.
    (tmp_path / "own" / "top" / "deep").unlink()
    (tmp_path / "own" / "inside").mkdir()
    (tmp_path / "own" / "top" / "deep").symlink_to(tmp_path / "own" / "inside")
    extract_archive(archive, tmp_path / "own")
    assert (tmp_path / "own" / "inside" / "file").read_bytes() == b"x"


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "x.zip").write_bytes(make_zip({"a/b": b"x"}))
    make_tar(tmp_path / "x.tar", [tar_member("a/c", size=1), tar_member("a/d", size=1)])
    stale = tmp_path / "out" / "a" / ".unpacking.77.part"
    for archive in ("x.zip", "x.tar"):
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_bytes(b"half")
        extract_archive(tmp_path / archive, tmp_path / "out")
        assert not stale.exists()
    assert set(tree(tmp_path / "out")) == {"a/b", "a/c", "a/d"}


def test_a_disk_that_fills_up_is_a_user_error_and_leaves_nothing_half(tmp_path, monkeypatch):
    (tmp_path / "x.zip").write_bytes(make_zip({"a": b"x", "b": b"y"}))

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    create = archives._create
    monkeypatch.setattr(archives, "_create", lambda path: create(path) if not tree(tmp_path / "out") else full(path))
    with pytest.raises(UserError, match="No space left on device.*run the same command again"):
        extract_archive(tmp_path / "x.zip", tmp_path / "out")
    assert tree(tmp_path / "out") == {"a": b"x"}


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_damage_is_a_user_error_and_nothing_leaves_the_folder(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("wild")
    content = bytearray(make_zip({"a/b": b"x" * 50, "c": bytes(range(100))}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "x.zip").write_bytes(content)
    with contextlib.suppress(UserError):
        extract_archive(folder / "x.zip", folder / "in" / "out")
    outside = [path for path in folder.rglob("*") if path.is_file() and folder / "in" / "out" not in path.parents]
    assert outside == [folder / "x.zip"]
    assert not list(folder.rglob("*.part"))
