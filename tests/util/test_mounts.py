"""File systems that lack what a disk has, as object stores and CIFS do: the work is done, or the reason is told."""

import errno
import fcntl
import mmap
import os
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cobra.models.tensors import read_tensors
from cobra.training.checkpointing import _point
from cobra.util.files import atomic_path, write_text
from cobra.util.mounts import can_flush, flush_folder, lock_file

pytestmark = pytest.mark.fault("F7")


def refuse(number: int, when=lambda *arguments: True, instead_of=None):
    """Return a call of the system that fails with an error, or does its work where `when` says no."""

    def call(*arguments, **options):
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return instead_of(*arguments, **options)

    return call


LACKING = [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM]


@pytest.mark.parametrize("number", [*LACKING, errno.EACCES])
def test_a_mount_that_refuses_permissions_takes_files(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "chmod", refuse(number))
    write_text(tmp_path / "file.txt", "text")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.txt", "text")]


@pytest.mark.parametrize("number", LACKING)
def test_a_mount_that_cannot_flush_takes_files(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refuse(number))
    write_text(tmp_path / "file.txt", "text")
    flush_folder(tmp_path)
    assert not can_flush(tmp_path)
    assert (tmp_path / "file.txt").read_text() == "text"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_flush_that_fails_is_a_failure(tmp_path, monkeypatch, number):
    """A network's disk tells only then that it is full."""
    (tmp_path / "file.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", refuse(number))
    with pytest.raises(OSError) as failed:
        write_text(tmp_path / "file.txt", "text")
    assert (failed.value.errno, failed.value.filename) == (number, str(tmp_path / "file.txt"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.txt", "old")]


def test_a_folder_that_cannot_be_opened_is_not_flushed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", refuse(errno.EACCES))
    flush_folder(tmp_path)


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EACCES, errno.EBUSY, errno.ETXTBSY])
def test_a_mount_that_does_not_replace_open_files(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "replace", refuse(number))
    (tmp_path / "file.txt").write_text("old")
    write_text(tmp_path / "file.txt", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.txt", "new")]


def test_a_mount_without_hidden_files(tmp_path, monkeypatch):
    hidden = refuse(errno.EACCES, lambda path, *rest: Path(path).name.startswith("."), os.open)
    monkeypatch.setattr(tempfile._os, "open", hidden)
    write_text(tmp_path / "file.txt", "text")
    assert (tmp_path / "file.txt").read_text() == "text"


@pytest.mark.parametrize("name", ["n" * 255, "\u00e9" * 127])
def test_the_longest_names_are_written_too(tmp_path, name):
    write_text(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.fault("A10")
def test_an_error_of_a_write_names_the_file(tmp_path):
    """What `write` raises names none."""
    with pytest.raises(OSError) as failed, atomic_path(tmp_path / "file.bin"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert failed.value.filename == str(tmp_path / "file.bin")
    with pytest.raises(ConnectionError) as lost, atomic_path(tmp_path / "file.bin"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert lost.value.filename is None


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_mount_that_maps_nothing_has_its_checkpoints_read(tmp_path, monkeypatch, suffix):
    tensors, path = {"weight": torch.arange(6.0).reshape(2, 3)}, tmp_path / f"file{suffix}"
    torch.save(tensors, path) if suffix == ".pt" else save_file(tensors, path)
    monkeypatch.setattr(mmap, "mmap", refuse(errno.ENODEV))
    monkeypatch.setattr("cobra.models.tensors.load_file", pytest.fail)
    monkeypatch.setattr(torch.UntypedStorage, "from_file", pytest.fail)
    assert torch.equal(read_tensors(path)["weight"], tensors["weight"])


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_mount_without_locks_is_unpacked_to(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    with (tmp_path / "lock").open("w") as file:
        lock_file(file, fcntl.LOCK_EX)
        monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            lock_file(file, fcntl.LOCK_EX)


def test_a_mount_without_hard_links_has_a_latest_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    for content in ("first", "second"):
        (tmp_path / "step.pt").write_text(content)
        _point(tmp_path / "latest.pt", tmp_path / "step.pt")
        assert (tmp_path / "latest.pt").read_text() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.pt", "step.pt"]
