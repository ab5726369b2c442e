"""The whole publication from a stand-in for the hub on loopback: resumed, checked once, never mixed."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from archive_files import tree
from hub_server import Fault, HubServer

from cobra.preprocessing import archives, transfer
from cobra.preprocessing import fetch as fetching
from cobra.preprocessing.llava_cot.archive import hub_files as publication
from cobra.preprocessing.llava_cot.archive.hub_files import bytes_to_come, download_publication
from cobra.util.errors import UserError

FILES = {"train.jsonl": 10_000} | {f"image.zip.part-a{letter}": 200_000 for letter in "abcdef"}
TOTAL = sum(FILES.values())


def write_files(folder, seed=0, sizes=FILES):
    folder.mkdir()
    for name, size in sizes.items():
        (folder / name).write_bytes(random.Random(f"{seed} {name}").randbytes(size))
    (folder / "README.md").write_text("not wanted")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    with HubServer(write_files(tmp_path / "source"), plain=("README.md",)) as hub:
        hub.take_over(monkeypatch)
        yield hub


@pytest.fixture
def expected(tmp_path):
    return lambda folder="source": {
        name: content for name, content in tree(tmp_path / folder).items() if name != "README.md"
    }


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "download" / "llava-cot-100k"


def fetched(folder):
    """The files, without the record."""
    return {name: content for name, content in tree(folder).items() if name != ".prepare/fetched.json"}


def test_everything_comes_once_and_is_checked_once(hub, expected, folder, monkeypatch):
    assert bytes_to_come(folder) == TOTAL
    download_publication(folder)
    assert fetched(folder) == expected()
    assert hub.bytes_sent() == TOTAL and bytes_to_come(folder) == 0
    hub.forget()
    monkeypatch.setattr(publication, "hash_file", lambda *arguments: pytest.fail("hashed again"))
    download_publication(folder)
    assert [request.at for request in hub.requests] == ["api"]


def test_faults_of_every_kind_are_mended(hub, expected, folder):
    hub.faults = [
        Fault("status", status=403),
        Fault("status", status=503),
        Fault("status", "hub", status=500),
        Fault("wrong", name="image.zip.part-aa", after=1),
        *(Fault(kind, after=after) for kind in ("drop", "truncate") for after in (0, 100_000)),
    ]
    download_publication(folder)
    assert hub.faults == [] and fetched(folder) == expected()


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.slow if seed else ()) for seed in range(20)])
def test_chaos(tmp_path, monkeypatch, expected, folder, seed):
    monkeypatch.setattr(transfer, "RETRY_DELAYS", (0.0,) * 20)
    with HubServer(write_files(tmp_path / "source"), chaos=0.5, seed=seed) as hub:
        hub.take_over(monkeypatch)
        download_publication(folder)
        assert fetched(folder) == expected()
        # A drop loses what lies in buffers, no more.
        assert hub.bytes_sent() < 2 * TOTAL


def test_files_put_there_by_hand_are_hashed_once_and_wrong_ones_named(hub, tmp_path, expected, folder, capsys):
    shutil.copytree(tmp_path / "source", folder)
    (folder / "README.md").unlink()
    with (folder / "image.zip.part-ab").open("r+b") as file:
        file.write(b"wrong")
    os.truncate(folder / "image.zip.part-ac", 1000)
    assert bytes_to_come(folder) == FILES["image.zip.part-ac"]
    download_publication(folder)
    assert fetched(folder) == expected()
    assert hub.bytes_sent() == 400_000
    said = capsys.readouterr().err
    assert "image.zip.part-ab has another content than the hub's" in said
    assert "image.zip.part-ac has 1000 bytes instead of 200000" in said
    hub.forget()
    # Changed since it was checked: the same size and other bytes.
    (folder / "train.jsonl").write_bytes(bytes(FILES["train.jsonl"]))
    download_publication(folder)
    assert fetched(folder) == expected() and hub.bytes_sent() == FILES["train.jsonl"]


def test_parts_that_were_unpacked_and_a_joined_archive_are_not_fetched(hub, folder):
    skip = {"image.zip.part-aa", "image.zip.part-ab"}
    download_publication(folder, skip=skip)
    assert fetched(folder).keys() == FILES.keys() - skip
    shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "image.zip").write_bytes(bytes(TOTAL - FILES["train.jsonl"]))
    assert bytes_to_come(folder) == FILES["train.jsonl"]
    # One that an interrupted `cat` left short is no replacement.
    os.truncate(folder / "image.zip", 1000)
    assert bytes_to_come(folder) == TOTAL


def test_branch_that_moves_on_while_files_come_gives_one_commit(hub, tmp_path, expected, folder):
    before = expected()
    new = write_files(tmp_path / "new", seed=1)
    real = hub.answer
    lock = threading.Lock()

    def answer(handler):
        with lock:
            if sum(request.at == "cdn" for request in hub.requests) == 3 and len(hub.branches) == 1:
                hub.publish(new)
                hub.branches["moved"] = "yes"
        real(handler)

    hub.answer = answer
    download_publication(folder)
    assert "moved" in hub.branches and fetched(folder) == before


def test_branch_that_has_moved_on_since_is_told_and_followed(hub, tmp_path, expected, folder, capsys):
    download_publication(folder)
    old = hub.branches["main"]
    shutil.copytree(tmp_path / "source", tmp_path / "new")
    (tmp_path / "new" / "train.jsonl").write_bytes(b"{}\n")
    new = hub.publish(tmp_path / "new")
    hub.forget()
    download_publication(folder)
    said = capsys.readouterr().err
    assert f"from commit {old} to {new}" in said and "train.jsonl changed and will be fetched again" in said
    assert fetched(folder) == expected("new") and hub.bytes_sent() == 3
    download_publication(folder, revision=old)
    assert fetched(folder) == expected()


def test_parts_deleted_after_unpacking_that_have_changed_are_an_error(hub, tmp_path, folder):
    download_publication(folder)
    old = hub.branches["main"]
    (folder / "image.zip.part-ab").unlink()
    hub.publish(write_files(tmp_path / "new", seed=1))
    with pytest.raises(UserError, match=f"image.zip.part-ab, unpacked and deleted here.*--revision {old}"):
        download_publication(folder, skip={"image.zip.part-ab"})
    download_publication(folder, revision=old, skip={"image.zip.part-ab"})
    assert "image.zip.part-ab" not in fetched(folder)


def test_interrupted_part_goes_on_where_its_content_is_that_of_the_new_commit(hub, tmp_path, expected, folder):
    hub.faults = [Fault("drop", name="image.zip.part-aa", after=150_000)]
    hub.faults += [Fault("status", name="image.zip.part-aa", status=500)] * 4
    with pytest.raises(UserError, match="bytes are kept"):
        download_publication(folder)
    shutil.copytree(tmp_path / "source", tmp_path / "new")
    hub.publish(tmp_path / "new")
    left = bytes_to_come(folder)
    hub.forget()
    download_publication(folder)
    assert fetched(folder) == expected()
    assert hub.bytes_sent() == left < TOTAL - 100_000


def test_revision_without_the_files_and_parts_of_another_are_named(hub, tmp_path, folder):
    with pytest.raises(UserError, match="no revision 'v2'"):
        download_publication(folder, revision="v2")
    hub.publish(write_files(tmp_path / "rows", sizes={"train.jsonl": 10}), "rows")
    with pytest.raises(UserError, match="revision rows of .* holds train.jsonl of"):
        download_publication(folder, revision="rows")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "image.zip.part-ag").write_bytes(b"from elsewhere")
    with pytest.raises(UserError, match="image.zip.part-ag.*move it away"):
        download_publication(folder)


def test_without_the_hub_the_missing_files_are_named_or_those_there_taken(hub, folder, monkeypatch, capsys):
    monkeypatch.setattr(fetching, "_REACH_SECONDS", 0.0)
    url = hub.url
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="reached.*lacks train.jsonl, image.zip.part-aa.*-ap.*--download false"):
        download_publication(folder)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    download_publication(folder)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    download_publication(folder)
    assert "are taken as they are" in capsys.readouterr().err
    (folder / "image.zip.part-ad").unlink()
    with pytest.raises(UserError, match=r"lacks image.zip.part-ad\. Run"):
        bytes_to_come(folder)
    assert bytes_to_come(folder, skip={"image.zip.part-ad"}) == 0


def test_free_space_is_checked_before_and_while_files_come(hub, expected, folder, monkeypatch):
    free = TOTAL - 1
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    with pytest.raises(UserError, match="GB more"):
        download_publication(folder)
    assert hub.bytes_sent() == 0
    # Enough at first; then something else fills the disk.
    looks = iter([TOTAL] + [TOTAL] * 4)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: type("Usage", (), {"free": next(looks, 200_000)}))
    monkeypatch.setattr(publication, "_SPACE_BYTES", 100_000)
    with pytest.raises(UserError, match="GB more"):
        download_publication(folder)
    monkeypatch.undo()
    hub.take_over(monkeypatch)
    left = bytes_to_come(folder)
    assert 0 < left < TOTAL
    hub.forget()
    download_publication(folder)
    assert fetched(folder) == expected() and hub.bytes_sent() == left


def test_full_disk_is_a_user_error_and_what_has_come_is_kept(hub, expected, folder, monkeypatch):
    real, left = transfer.os.fsync, [3]

    def fsync(number):
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(transfer.os, "fsync", fsync)
    with pytest.raises(UserError, match="No space left.*what is whole is kept"):
        download_publication(folder)
    download_publication(folder)
    assert fetched(folder) == expected()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_small_disk(hub, expected, folder):
    """A real one: not even begun where it cannot end; what does not fit any more is an error, the rest is kept."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1400k", "none", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not possible here: {mounted.stderr.strip()}")
    try:
        (folder / "filler").write_bytes(bytes(300_000))
        with pytest.raises(UserError, match="GB more"):
            download_publication(folder)
        assert hub.bytes_sent() == 0
        (folder / "filler").unlink()
        download_publication(folder)
        assert fetched(folder) == expected()
    finally:
        subprocess.run(["umount", folder], check=True)


SCRIPT = """if True:
    import sys
    from pathlib import Path
    from cobra.preprocessing.llava_cot.archive.hub_files import download_publication
    download_publication(Path(sys.argv[1]))
"""


def start(hub, folder) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], env={**os.environ, **hub.environment})


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_killed_download_requests_only_the_rest(hub, expected, folder, number):
    hub.bytes_per_second = 200_000
    process = start(hub, folder)
    while hub.bytes_sent(settled=False) < TOTAL / 2:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(10) != 0
    hub.bytes_per_second = float("inf")
    left = bytes_to_come(folder)
    assert left < TOTAL * 0.75
    hub.forget()
    assert start(hub, folder).wait(60) == 0
    assert fetched(folder) == expected()
    asked = sum(FILES[request.name] - request.start for request in hub.requests if request.at == "cdn")
    assert asked == left, "more than the rest was asked for"


@pytest.mark.slow
def test_killed_at_many_moments(tmp_path, expected, folder):
    with HubServer(write_files(tmp_path / "source"), bytes_per_second=200_000) as hub:
        moments = random.Random(0)
        for _ in range(25):
            process = start(hub, folder)
            try:
                assert process.wait(moments.uniform(0.2, 0.8)) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        hub.bytes_per_second = float("inf")
        assert start(hub, folder).wait(60) == 0
        assert fetched(folder) == expected()
        record = json.loads((folder / ".prepare/fetched.json").read_text())
        assert record["files"].keys() == FILES.keys()
