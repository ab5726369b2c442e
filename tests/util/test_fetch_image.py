"""Pictures by path and by address: what is not a picture, or does not come, is told in words."""

import gzip
import io
import os
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from file_server import FileServer
from PIL import Image
from scratch import picture

from cobra.util import fetch_image
from cobra.util.errors import UserError
from cobra.util.fetch_image import open_image


def png():
    data = io.BytesIO()
    picture(0).save(data, "png")
    return data.getvalue()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch_image, "_SILENCE_SECONDS", 0.2)
    with FileServer() as started:
        started.files["/a.png"] = png()
        yield started


def raw_server(*pieces, hang=False):
    # One iterable of pieces is taken as it comes.
    pieces = pieces[0] if len(pieces) == 1 and not isinstance(pieces[0], bytes) else pieces
    return _raw_server(pieces, hang)


@contextmanager
def _raw_server(pieces, hang):
    """A server that answers every request with some bytes, and with silence after them if it is to hang."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()
    open_connections = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_connections.append(connection)
            connection.recv(1 << 16)
            for piece in pieces:
                try:
                    connection.sendall(piece)
                except OSError:
                    break
            if not hang:
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    ended.set()
    listener.close()
    for connection in open_connections:
        connection.close()


def redirect(to):
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def test_files_and_addresses_give_the_same_picture(server, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(png())
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = picture(0).tobytes()
    for where in (str(tmp_path / "a.txt"), "~/a.txt", f" {server.url}/a.png ", f"{server.url.upper()}/a.png"):
        opened = open_image(where)
        assert (opened.mode, opened.tobytes()) == ("RGB", expected)


def test_redirects_are_followed_to_the_web_only_and_not_for_ever(server):
    with raw_server(redirect(f"{server.url}/a.png")) as url:
        assert open_image(url).size == (48, 48)
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/a.png", "/again"):
        with raw_server(redirect(target)) as url, pytest.raises(UserError, match="cannot be fetched"):
            open_image(url)


@pytest.mark.parametrize("where", ["file:///etc/passwd", "FILE:/etc/passwd", "ftp://h/a.png", "data:image/png;base64,"])
def test_other_addresses_are_refused(where):
    with pytest.raises(UserError, match="an address of the kind (file|ftp|data): give the path"):
        open_image(where)


def test_what_is_no_picture_is_refused_whatever_it_is_called(server, tmp_path):
    server.files |= {"/page.png": b"<html>not found</html>", "/cut.png": png()[:200], "/empty.png": b""}
    for name in ("page.png", "cut.png", "empty.png"):
        (tmp_path / name).write_bytes(server.files[f"/{name}"])
        for where in (f"{server.url}/{name}", str(tmp_path / name)):
            with pytest.raises(UserError, match=f"{name}' cannot be opened as a picture .*: give a whole file"):
                open_image(where)


def test_bad_paths_are_told(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for where in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(UserError, match="is not a file"):
            open_image(str(where))
    for where in ("nowhere.png", "", "a\0b", "~nobody-of-that-name/a.png", "x" * 5000, "\ud800.png", "a\x1b[2Jb"):
        with pytest.raises(UserError) as caught:
            open_image(where)
        assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 6000


@pytest.mark.parametrize("length", [True, False])
def test_large_files_are_not_read(server, tmp_path, monkeypatch, length):
    monkeypatch.setattr(fetch_image, "MAX_BYTES", 1000)
    server.files["/large.png"] = bytes(100_000)
    if not length:
        server.faults = [("no length", 0)]
    (tmp_path / "large.png").write_bytes(bytes(1001))
    with pytest.raises(UserError, match="larger than the 1,000 bytes"):
        open_image(f"{server.url}/large.png")
    with pytest.raises(UserError, match="has 1,001 bytes; pictures may have 1,000"):
        open_image(str(tmp_path / "large.png"))


def test_errors_of_the_server_are_told(server):
    with pytest.raises(UserError, match="the server answers 404"):
        open_image(f"{server.url}/b.png")
    server.faults = [("drop", 30)]
    with pytest.raises(UserError, match="cannot be fetched|broke off"):
        open_image(f"{server.url}/a.png")


def test_nobody_answers(server):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for where in (f"http://127.0.0.1:{port}/a.png", "http://", "http://[", "http://\x00/", "https://127.0.0.1:99999/"):
        with pytest.raises(UserError, match="cannot be fetched"):
            open_image(where)
    for sent in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc"):
        with raw_server(sent, hang=True) as url, pytest.raises(UserError, match="cannot be fetched"):
            open_image(url)
    with raw_server(b"what?\r\n\r\n") as url, pytest.raises(UserError, match="cannot be fetched"):
        open_image(url)


def test_a_trickle_ends(monkeypatch):
    """Never silent for long, and never done."""
    monkeypatch.setattr(fetch_image, "_TOTAL_SECONDS", 0.3)
    with (
        raw_server(b"HTTP/1.1 200 OK\r\n\r\nabc", hang=True) as url,
        pytest.raises(UserError, match="did not come whole within"),
    ):
        open_image(url)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(UserError, match="decompression bomb"):
        open_image(str(tmp_path / "a.png"))


def dripping(begin, pause=0.02):
    """Bytes for :func:`raw_server`, one at a time and without end."""
    yield begin
    while True:
        time.sleep(pause)
        yield b"a"


@pytest.mark.fault("B3")
@pytest.mark.parametrize(
    "begin",
    [b"", b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 302 Found\r\nLocation: /"],
    ids=["status", "header", "body", "redirect"],
)
def test_the_time_is_that_of_everything_and_the_line_is_hung_up(monkeypatch, begin):
    """Never silent for long, and never done."""
    monkeypatch.setattr(fetch_image, "_TOTAL_SECONDS", 0.5)
    sent = []
    with raw_server(sent.append(1) or piece for piece in dripping(begin)) as url:
        began = time.monotonic()
        with pytest.raises(UserError, match="did not come whole within"):
            open_image(url)
        assert time.monotonic() - began < 20
        # Who is hung up on cannot send: the server's thread comes to its end.
        before = -1
        while len(sent) > before:
            before = len(sent)
            time.sleep(0.3)


@pytest.mark.fault("B3")
def test_redirects_of_redirects_have_the_time_of_one(monkeypatch):
    monkeypatch.setattr(fetch_image, "_TOTAL_SECONDS", 0.5)
    with raw_server(hang=True) as silent, raw_server(redirect(silent)) as url:
        with pytest.raises(UserError, match="did not come whole within"):
            open_image(url)


@pytest.mark.fault("B3")
def test_nothing_is_read_of_a_redirect_but_its_headers(server):
    sent = []

    def pieces():
        yield f"HTTP/1.1 302 Found\r\nLocation: {server.url}/a.png\r\n\r\n".encode()
        for _ in range(2000):
            sent.append(1)
            yield bytes(1 << 16)

    with raw_server(pieces()) as url:
        assert open_image(url).size == (48, 48)
    # What fits into the buffers of both sockets.
    assert len(sent) < 1000


@pytest.mark.fault("B3")
def test_headers_and_chunks_without_end_are_not_kept(server):
    for begin in (b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a="):
        with raw_server(begin, *[b"a" * (1 << 16)] * 4) as url, pytest.raises(UserError, match="cannot be fetched"):
            open_image(url)
    with raw_server(b"HTTP/1.1 200 OK\r\n", *[b"A: b\r\n"] * 500) as url, pytest.raises(UserError, match="cannot be"):
        open_image(url)


@pytest.mark.fault("B3")
def test_compressed_answers_are_not_unpacked():
    body = gzip.compress(bytes(1 << 20))
    begin = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n"
    with raw_server(begin + body) as url, pytest.raises(UserError, match=r"sends it compressed \(gzip\)"):
        open_image(url)


NOT_FOUND = b"HTTP/1.1 404 No\r\n\r\n"


@pytest.mark.fault("B3")
@pytest.mark.parametrize("where", ["http://u:S3CRET@127.0.0.1:{port}/a?k=S3CRET#S3CRET", "http://u:S3CRET@[/S?S3CRET"])
@pytest.mark.parametrize(
    "answer", [b"", b"what?", redirect("http://u:S3CRET@["), redirect("ftp://S3CRET/"), b"HTTP/1.1 404 No\r\n\r\n"]
)
def test_secrets_of_an_address_are_not_told(where, answer):
    with raw_server(answer) as url, pytest.raises(UserError) as caught:
        open_image(where.format(port=url.rpartition(":")[2]))
    assert "S3CRET" not in str(caught.value)
