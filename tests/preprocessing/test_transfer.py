"""One file over HTTP, from a server that misbehaves on demand."""

import hashlib
import os
from pathlib import Path

import pytest
from archive_files import tree
from file_server import FileServer

from cobra.preprocessing import archives, transfer
from cobra.preprocessing.fetch import fetch
from cobra.preprocessing.progress import ByteBars
from cobra.preprocessing.transfer import Remote, Unreachable, fetch_file
from cobra.util import waiting
from cobra.util.errors import UserError

BODY = os.urandom(1_000_000)


def fetch_to(url: str, target: Path, **known) -> None:
    with ByteBars() as bars:
        fetch_file(Remote(url, **known), target, target.parent, bars)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(transfer, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    with FileServer() as server:
        yield server


def test_fetch_gives_the_whole_file_and_leaves_nothing_else(server, tmp_path):
    server.files["/a/x.bin"] = BODY
    assert fetch(f"{server.url}/a/x.bin", tmp_path / "to") == tmp_path / "to" / "x.bin"
    assert tree(tmp_path) == {"to/x.bin": BODY}
    assert fetch(f"{server.url}/a/x.bin", tmp_path / "to").is_file()
    assert len(server.requests) == 1, "a whole file was fetched again"


def test_dropped_connections_are_resumed_where_they_stopped(server, tmp_path):
    server.files["/x"] = BODY
    server.faults = [("drop", 300_000), ("drop", 100_000), ("status", 503), ("drop", 0), ("drop", 200_000)]
    fetch_to(f"{server.url}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY
    ranges = [int(request["range"][6:-1]) for request in server.requests if "range" in request]
    assert ranges == sorted(ranges) and len(ranges) == 5 and ranges[0] > 250_000 and ranges[-1] > 500_000
    assert server.requests[-1]["if-range"] == '"1"'


def test_next_call_goes_on_where_the_last_one_gave_up(server, tmp_path):
    server.files["/x"] = BODY
    server.faults = [("drop", 400_000)] + [("status", 500)] * 4
    with pytest.raises(UserError, match="500.* bytes are kept"):
        fetch_to(f"{server.url}/x", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    kept = (tmp_path / "x.part").stat().st_size
    assert 350_000 < kept <= 400_000
    server.requests.clear()
    fetch_to(f"{server.url}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY
    assert [request["range"] for request in server.requests] == [f"bytes={kept}-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_part_of_another_version_is_not_continued(server, tmp_path, ranges):
    server.files["/x"] = os.urandom(len(BODY))
    server.faults = [("drop", 400_000)] + [("status", 500)] * 4
    with pytest.raises(UserError):
        fetch_to(f"{server.url}/x", tmp_path / "x")
    server.files["/x"], server.version, server.ranges = BODY, "2", ranges
    fetch_to(f"{server.url}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


def test_truncated_body_never_gets_the_final_name(server, tmp_path):
    server.files["/x"] = BODY
    server.faults = [("drop", 500_000)] + [("drop", 0)] * 10
    with pytest.raises(UserError, match="could not be fetched"):
        fetch_to(f"{server.url}/x", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_body_of_unknown_length(server, tmp_path):
    server.files["/x"] = BODY
    server.faults = [("no length", 0)]
    fetch_to(f"{server.url}/x", tmp_path / "x")
    assert tree(tmp_path) == {"x": BODY}


def test_part_without_its_state_is_begun_anew(server, tmp_path):
    server.files["/x"] = BODY
    (tmp_path / "x.part").write_bytes(b"something else")
    (tmp_path / "x.part.json").write_text("{torn")
    fetch_to(f"{server.url}/x", tmp_path / "x")
    assert tree(tmp_path) == {"x": BODY}


def test_refusal_of_the_server_is_told_at_once(server, tmp_path):
    with pytest.raises(UserError, match="404"):
        fetch_to(f"{server.url}/absent", tmp_path / "x")
    assert len(server.requests) == 1


def test_unreachable_server_and_full_disk(server, tmp_path, monkeypatch):
    with pytest.raises(Unreachable, match=r"http://127.0.0.1:9 does not answer \(\[Errno 111\] Connection refused\)"):
        fetch_to("http://127.0.0.1:9/x", tmp_path / "x")
    server.files["/x"] = BODY
    usage = type("Usage", (), {"free": 999_999})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="GB more"):
        fetch_to(f"{server.url}/x", tmp_path / "x")


def test_content_is_checked_against_the_digest_of_resumed_files_too(server, tmp_path):
    server.files["/x"] = BODY
    sha256 = hashlib.sha256(BODY).hexdigest()
    server.faults = [("drop", 400_000)] + [("status", 500)] * 4
    with pytest.raises(UserError):
        fetch_to(f"{server.url}/x", tmp_path / "x", size=len(BODY), digest=sha256)
    # An ETag is not asked for: the CDN's servers may differ in it.
    server.version = "2"
    server.requests.clear()
    fetch_to(f"{server.url}/x", tmp_path / "x", size=len(BODY), digest=sha256)
    assert tree(tmp_path) == {"x": BODY}
    assert len(server.requests) == 1 and "if-range" not in server.requests[0]
    git = hashlib.sha1(b"blob 1000000\0" + BODY).hexdigest()
    fetch_to(f"{server.url}/x", tmp_path / "y", size=len(BODY), digest=git)
    assert (tmp_path / "y").read_bytes() == BODY


def test_flipped_bytes_in_what_has_come_are_fetched_again(server, tmp_path):
    server.files["/x"] = BODY
    known = {"size": len(BODY), "digest": hashlib.sha256(BODY).hexdigest()}
    server.faults = [("drop", 400_000)] + [("status", 500)] * 4
    with pytest.raises(UserError):
        fetch_to(f"{server.url}/x", tmp_path / "x", **known)
    with (tmp_path / "x.part").open("r+b") as file:
        file.write(bytes([BODY[0] ^ 255]))
    fetch_to(f"{server.url}/x", tmp_path / "x", **known)
    assert tree(tmp_path) == {"x": BODY}


def test_server_that_always_sends_another_content_is_named(server, tmp_path):
    server.files["/x"] = BODY
    with pytest.raises(UserError, match="twice with another content.*hash 00"):
        fetch_to(f"{server.url}/x", tmp_path / "x", size=len(BODY), digest="0" * 64)
    assert len(server.requests) == 2 and tree(tmp_path) == {}


def test_endless_body_is_cut_off_at_the_size_that_is_known(server, tmp_path):
    server.files["/x"] = BODY
    with pytest.raises(UserError, match="more bytes have come"):
        fetch_to(f"{server.url}/x", tmp_path / "x", size=1000, digest="0" * 64)
    assert sum(len(content) for content in tree(tmp_path).values()) < 100_000


@pytest.mark.fault("E3")
def test_attempts_are_told_each_in_a_line_with_the_seconds(server, tmp_path, capsys):
    server.files["/x"] = BODY
    server.faults = [("status", 503), ("drop", 300_000)]
    fetch_to(f"{server.url}/x", tmp_path / "x")
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "fetching x: the server answers 503 Service Unavailable; next attempt in 0 s"
    assert second.startswith("fetching x: ") and second.endswith("; next attempt in 0 s")
    assert last.startswith("fetching x: 1.0 MB of 1.0 MB")


@pytest.mark.fault("E3")
def test_a_server_that_does_not_answer_is_given_up_soon(tmp_path, monkeypatch, capsys):
    slept = []
    monkeypatch.setattr(transfer.time, "sleep", slept.append)
    monkeypatch.setattr(transfer.time, "monotonic", lambda: sum(slept))
    with pytest.raises(Unreachable):
        fetch_to("http://127.0.0.1:9/x", tmp_path / "x")
    assert slept == [1, 4]
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition("; ")[2] for line in lines] == ["next attempt in 1 s", "next attempt in 4 s"]


@pytest.mark.fault("E3")
def test_a_server_that_has_answered_before_is_waited_for(server, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(transfer, "RETRY_DELAYS", (100.0, 200.0))
    monkeypatch.setattr(transfer.time, "sleep", slept.append)
    server.files["/x"] = BODY
    fetch_to(f"{server.url}/x", tmp_path / "x")
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UserError, match="could not be fetched: the connection failed.*in 3 attempts"):
        fetch_to(f"{server.url}/y", tmp_path / "y")
    assert slept == [100, 200]
    server.http.shutdown = lambda: None


@pytest.mark.fault("E3")
def test_a_server_that_is_silent_for_seconds_is_named(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.0)
    server.files["/x"] = BODY
    server.faults = [("slow", 300)]
    fetch_to(f"{server.url}/x", tmp_path / "x")
    assert f"waiting for {server.url} ...\n" in capsys.readouterr().err
