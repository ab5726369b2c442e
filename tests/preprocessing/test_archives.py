"""Unpacking archives that are hostile or damaged."""

import os
import tarfile

import pytest
from archive_files import make_tar, make_zip, tar_member, tree

from cobra.preprocessing import archives
from cobra.preprocessing.archives import extract_archive
from cobra.util.errors import UserError

UNSAFE_NAMES = [
    "../evil",
    "a/../../evil",
    "/etc/evil",
    "C:/evil",
    "a\\..\\evil",
    "a/nul",
    "COM1.txt",
    "a\nb",
    "a" * 256,
]


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
