"""The page's server as a process: what it takes and keeps in memory, and that nothing it is sent disturbs it."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

ROOT = Path(__file__).parents[2]


class Process:
    """`scripts/serve.py` with the packaged model."""

    def __init__(self, folder):
        self.errors = folder / "stderr"
        command = [
            sys.executable,
            "scripts/serve.py",
            "--model_path",
            "cobra-tiny",
            "--port",
            "0",
            "--max_new_tokens",
            "4",
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self.process.stdout.readline() == "loading cobra-tiny\n"
        self.url = re.search(r"http://\S+", self.process.stdout.readline())[0]
        self.port = int(self.url.rpartition(":")[2])

    def upload(self, data):
        return requests.post(f"{self.url}/image", data=data, timeout=200)

    def ask(self, key):
        body = {"question": "What?", "conversation": key, "search": "none", "beams": 4}
        return requests.post(f"{self.url}/ask", json=body, timeout=200)

    def resident_megabytes(self):
        [kilobytes] = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(kilobytes) / 1000

    def send(self, data, then_leave=False):
        """Send bytes; return the status of the answer, or None where there is none."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            try:
                connection.sendall(data)
                if then_leave:
                    return None
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(1 << 16)
            # The server may have hung up.
            except OSError:
                return None
        return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else None

    def check_undisturbed(self):
        assert self.ask(None).status_code == 200
        # On a slow machine there are lines about what is waited for.
        assert [line for line in self.errors.read_text().splitlines() if not line.endswith(" ...")] == []


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Process(tmp_path_factory.mktemp("server"))
    yield started
    started.process.terminate()
    started.process.wait()


def photo(width, height, kind="JPEG", **options):
    data = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(data, kind, **options)
    return data.getvalue()


def png_of_one_colour(width, height):
    """As a palette of 1 bit, 21 kB for 177 million pixels."""

    def chunk(kind, content):
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux' /proc")
@pytest.mark.fault("B2")
def test_a_conversation_takes_less_than_20_megabytes_whatever_its_picture(server):
    turned = Image.Exif()
    turned[0x0112] = 6
    large, phone = photo(4000, 3000), photo(4000, 3000, exif=turned)
    assert server.ask(server.upload(large).json()["conversation"]).status_code == 200
    before = server.resident_megabytes()
    for _ in range(2):
        for data in (large, phone):
            assert server.upload(data).status_code == 200
    assert server.ask(server.upload(large).json()["conversation"]).status_code == 200
    refused = server.upload(png_of_one_colour(13_300, 13_300))
    assert refused.status_code == 400 and "pixels, and 64,000,000 are taken in all" in refused.json()["error"]
    assert server.resident_megabytes() - before < 5 * 20
    server.check_undisturbed()


HOST = b"Host: localhost\r\n"
PIECES = st.sampled_from(
    [
        *(
            b"GET ",
            b"POST ",
            b"HEAD ",
            b"DELETE ",
            b"\x00",
            b"/",
            b"/ask",
            b"/image",
            b"/talk",
            b"/../../etc/passwd",
            b"//talk.css",
        ),
        *(b"/%2e%2e/", b"/%00", b"/%ff", b"/ask/", b"http://a:b@[/", b"?token=%ff", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"),
        *(
            b" HTTP/9\r\n",
            HOST,
            b"Host: [\r\n",
            b"Origin: http://[\r\n",
            b"Origin: http://a:b\r\n",
            b"Origin: \xff\r\n",
        ),
        *(b"Cookie: =;;\xff\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Expect: 100-continue\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Content-Type: multipart/form-data; boundary=\r\n", b"5\r\nabcde\r\n"),
        *(
            b"Connection: upgrade\r\nUpgrade: websocket\r\n",
            b"A: " + b"a" * 70_000,
            b"\r\n",
            b"\r\n\r\n",
            b"{}",
            b"\xff\xfe",
        ),
    ]
)


@pytest.mark.fault("B7")
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(pieces=st.lists(PIECES, max_size=12), leave=st.booleans())
def test_whatever_is_sent_nothing_breaks(server, pieces, leave):
    status = server.send(b"".join(pieces), leave)
    assert status is None or status < 500


@pytest.mark.fault("B7")
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    body=st.dictionaries(
        st.sampled_from(["question", "conversation", "search", "beams", "\ud800"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.just("\ud800")
        | st.just([{}]),
    )
)
def test_whatever_is_asked_nothing_breaks(server, body):
    whole = {"question": "What?", "conversation": None, "search": "none", "beams": 1} | body
    assert requests.post(f"{server.url}/ask", data=json.dumps(whole), timeout=100).status_code in (200, 400)


@pytest.mark.fault("B7")
def test_the_terminal_stays_quiet(server):
    """Also of uploads and questions that break off; the tests before have sent much."""
    for path in (b"/image", b"/ask"):
        request = b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n" + b"\x89PNG"
        assert server.send(request, then_leave=True) is None
        assert server.send(request) is None
    for origin in ("http://[", "http://localhost:x", "null", "\xff"):
        answer = requests.post(f"{server.url}/ask", headers={"Origin": origin}, data=b"", timeout=100)
        assert answer.status_code in (400, 403) and answer.json()["error"]
    server.check_undisturbed()
