"""Fetching, resuming, unpacking and converting, against a server on loopback that misbehaves on demand."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from cobra.preprocessing import archives, download, fetching
from cobra.preprocessing.archives import extract_archive, unsafe_name
from cobra.preprocessing.download import DATASET_REGISTRY, convert_to_jpg, download_extract
from cobra.preprocessing.fetching import fetch, fetch_over_http
from cobra.util.errors import UserError


class Server:
    """Serves `files` by path with ETag and ranges; `faults` holds what to do wrong, a request each."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.faults: list[tuple[str, int]] = []
        self.requests: list[dict[str, str]] = []
        self.version = "1"
        self.ranges = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                server.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler):
        self.requests.append({key.lower(): value for key, value in handler.headers.items()})
        fault, number = self.faults.pop(0) if self.faults else ("", 0)
        body = self.files.get(handler.path)
        if fault == "status" or body is None:
            handler.send_response(number or 404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        etag = f'"{self.version}"'
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if asked and self.ranges and handler.headers.get("If-Range", etag) == etag:
            start = int(asked[1])
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        if fault != "no length":
            handler.send_header("Content-Length", str(len(body) - start))
        handler.send_header("ETag", etag)
        handler.send_header("X-Repo-Commit", "0" * 40)
        handler.send_header("Connection", "close")
        handler.end_headers()
        if handler.command == "GET":
            end = start + number if fault == "drop" else len(body)
            handler.wfile.write(body[start:end])
        handler.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetching, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def make_zip(entries: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change:
                change(info)
            file.writestr(info, content)
    return buffer.getvalue()


def make_tar(path, members: list[tarfile.TarInfo], mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for member in members:
            file.addfile(member, io.BytesIO(b"x" * member.size))


def tree(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


BODY = os.urandom(1_000_000)


def test_fetch_gives_the_whole_file_and_leaves_nothing_else(server, tmp_path):
    server.files["/a/x.bin"] = BODY
    assert fetch(f"{server.url}/a/x.bin", tmp_path / "to") == tmp_path / "to" / "x.bin"
    assert tree(tmp_path) == {"to/x.bin": BODY}
    assert fetch(f"{server.url}/a/x.bin", tmp_path / "to").is_file()
    assert len(server.requests) == 1, "a whole file was fetched again"


def test_dropped_connections_are_resumed_where_they_stopped(server, tmp_path):
    server.files["/x"] = BODY
    server.faults = [("drop", 300_000), ("drop", 100_000), ("status", 503), ("drop", 0), ("drop", 200_000)]
    fetch_over_http(f"{server.url}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY
    ranges = [int(request["range"][6:-1]) for request in server.requests if "range" in request]
    assert ranges == sorted(ranges) and len(ranges) == 5 and ranges[0] > 250_000 and ranges[-1] > 500_000
    assert server.requests[-1]["if-range"] == '"1"'


def test_next_call_goes_on_where_the_last_one_gave_up(server, tmp_path):
    server.files["/x"] = BODY
    server.faults = [("drop", 400_000)] + [("status", 500)] * 4
    with pytest.raises(UserError, match="500.* bytes are kept"):
        fetch_over_http(f"{server.url}/x", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    kept = (tmp_path / "x.part").stat().st_size
    assert 350_000 < kept <= 400_000
    server.requests.clear()
    fetch_over_http(f"{server.url}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY
    assert [request["range"] for request in server.requests] == [f"bytes={kept}-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_part_of_another_version_is_not_continued(server, tmp_path, ranges):
    server.files["/x"] = os.urandom(len(BODY))
    server.faults = [("drop", 400_000)] + [("status", 500)] * 4
    with pytest.raises(UserError):
        fetch_over_http(f"{server.url}/x", tmp_path / "x")
    server.files["/x"], server.version, server.ranges = BODY, "2", ranges
    fetch_over_http(f"{server.url}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


def test_truncated_body_never_gets_the_final_name(server, tmp_path):
    server.files["/x"] = BODY
    server.faults = [("drop", 500_000)] + [("drop", 0)] * 10
    with pytest.raises(UserError, match="could not be fetched"):
        fetch_over_http(f"{server.url}/x", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_body_of_unknown_length(server, tmp_path):
    server.files["/x"] = BODY
    server.faults = [("no length", 0)]
    fetch_over_http(f"{server.url}/x", tmp_path / "x")
    assert tree(tmp_path) == {"x": BODY}


def test_part_without_its_state_is_begun_anew(server, tmp_path):
    server.files["/x"] = BODY
    (tmp_path / "x.part").write_bytes(b"something else")
    (tmp_path / "x.part.json").write_text("{torn")
    fetch_over_http(f"{server.url}/x", tmp_path / "x")
    assert tree(tmp_path) == {"x": BODY}


def test_refusal_of_the_server_is_told_at_once(server, tmp_path):
    with pytest.raises(UserError, match="404"):
        fetch_over_http(f"{server.url}/absent", tmp_path / "x")
    assert len(server.requests) == 1


def test_unreachable_server_and_full_disk(server, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="connection failed"):
        fetch_over_http("http://127.0.0.1:9/x", tmp_path / "x")
    server.files["/x"] = BODY
    usage = type("Usage", (), {"free": 999_999})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="GB more"):
        fetch_over_http(f"{server.url}/x", tmp_path / "x")


def run_hub_fetch(endpoint: str, folder) -> subprocess.CompletedProcess:
    """Fetch in a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported."""
    url = "https://huggingface.co/datasets/owner/name/resolve/main/train.jsonl"
    code = f"""if True:
        import sys
        from pathlib import Path
        from cobra.preprocessing.fetching import fetch
        from cobra.util.errors import UserError
        try:
            print(fetch({url!r}, Path(sys.argv[1])))
        except UserError as error:
            sys.exit("UserError " + str(error))
    """
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=env, capture_output=True, text=True, timeout=100
    )


def test_hub_files_come_from_the_endpoint_through_huggingface_hub(server, tmp_path):
    server.files["/datasets/owner/name/resolve/main/train.jsonl"] = BODY
    server.files["/datasets/owner/name/resolve/" + "0" * 40 + "/train.jsonl"] = BODY
    done = run_hub_fetch(server.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "train.jsonl").read_bytes() == BODY
    assert any("huggingface" in json.dumps(request) or "hf_hub" in json.dumps(request) for request in server.requests)
    server.files.clear()
    absent = run_hub_fetch(server.url, tmp_path / "other")
    assert "UserError train.jsonl of the dataset owner/name" in absent.stderr


REGISTRY_KEYS = {"name", "extract", "extract_type", "url", "do_rename"}


def test_registry_has_every_dataset_in_the_agreed_form():
    assert {
        "llava-laion-cc-sbu-558k",
        "llava-v1.5-instruct",
        "llava-cot-100k",
        "coco-captions",
    } <= DATASET_REGISTRY.keys()
    for components in DATASET_REGISTRY.values():
        assert len({component["name"] for component in components}) == len(components)
        for component in components:
            assert component.keys() == REGISTRY_KEYS
            assert unsafe_name(component["name"]) is None
    parts = [c["name"] for c in DATASET_REGISTRY["llava-cot-100k"]]
    assert parts[0] == "train.jsonl" and parts[1].endswith("-aa") and parts[-1].endswith("-ap") and len(parts) == 17


@pytest.fixture
def dataset(server, monkeypatch):
    """Register a dataset `made` whose components lie on the server."""

    def register(*components):
        made = [{**component, "url": server.url + component["url"]} for component in components]
        monkeypatch.setitem(DATASET_REGISTRY, "made", made)

    return register


def part(name, url, extract=True, extract_type="directory", do_rename=True):
    return {"name": name, "extract": extract, "extract_type": extract_type, "url": url, "do_rename": do_rename}


def test_components_land_under_their_names(server, dataset, tmp_path):
    # Two archives of the same file name, as gqa and vg have.
    server.files = {
        "/rows_v7.json": b"[]",
        "/gqa/images.zip": make_zip({"images/1.jpg": b"one", "__MACOSX/images/._1.jpg": b"litter"}),
        "/vg/images.zip": make_zip({"deep/VG/2.jpg": b"two", "deep/VG/3.jpg": b"three"}),
        "/flat.zip": make_zip({"00001/4.jpg": b"four", "00002/5.jpg": b"five"}),
        "/one.zip": make_zip({"folder/6.json": b"{}"}),
    }
    dataset(
        part("rows.json", "/rows_v7.json", extract=False),
        part("gqa/images", "/gqa/images.zip"),
        part("vg/VG", "/vg/images.zip"),
        part("images", "/flat.zip", do_rename=False),
        part("single.json", "/one.zip", extract_type="file"),
    )
    download_extract("made", tmp_path)
    expected = {
        "rows.json": b"[]",
        "gqa/images/1.jpg": b"one",
        "vg/VG/2.jpg": b"two",
        "vg/VG/3.jpg": b"three",
        "00001/4.jpg": b"four",
        "00002/5.jpg": b"five",
        "single.json": b"{}",
        ".images.unpacked": b"",
    }
    assert tree(tmp_path / "download" / "made") == expected
    before = len(server.requests)
    download_extract("made", tmp_path)
    assert len(server.requests) == before, "what was there was fetched again"


def test_interrupted_unpacking_goes_on_without_fetching_again(server, dataset, tmp_path, monkeypatch):
    server.files["/x.zip"] = make_zip({f"x/{number}": bytes([number]) * 1000 for number in range(5)})
    dataset(part("x", "/x.zip"))
    real, written = archives.write_member, []

    def interrupted(source, target, size, advance):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(target.name)
        real(source, target, size, advance)

    monkeypatch.setattr(archives, "write_member", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download_extract("made", tmp_path)
    assert not (tmp_path / "download/made/x").exists()
    monkeypatch.setattr(archives, "write_member", lambda *args: (written.append(args[1].name), real(*args)))
    download_extract("made", tmp_path)
    assert sorted(written) == ["0", "1", "2", "3", "4"], "a member was unpacked twice"
    assert len(server.requests) == 1
    assert len(tree(tmp_path)) == 5


def test_unknown_dataset_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="'llava'.*llava-v1.5-instruct.*llava-cot-100k"):
        download_extract("llava", tmp_path)
    assert tree(tmp_path) == {}


def test_folder_that_cannot_be_written_is_a_user_error(server, dataset, tmp_path):
    server.files["/x"] = BODY
    dataset(part("x", "/x", extract=False))
    (tmp_path / "download").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="x of made could not be written"):
        download_extract("made", tmp_path)


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


def tar_member(name, kind=tarfile.REGTYPE, size=0, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


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


def test_images_are_converted_to_jpg(tmp_path):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("P", (8, 8)).save(tmp_path / "paletted.png")
    frames = [Image.new("L", (8, 8), shade) for shade in (10, 250)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "photo.jpeg")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "there.jpg")
    Image.new("RGB", (8, 8), "green").save(tmp_path / "there.png")
    (tmp_path / "notes.txt").write_text("not an image")
    before = tree(tmp_path)
    convert_to_jpg(tmp_path)
    after = tree(tmp_path)
    new = {"clear.jpg", "paletted.jpg", "moving.jpg", "photo.jpg"}
    assert after.keys() - before.keys() == new
    assert {name: after[name] for name in before} == before
    for name in new:
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (8, 8))
    with Image.open(tmp_path / "clear.jpg") as image:
        assert min(image.getpixel((4, 4))) > 250, "transparent pixels are not white"
    with Image.open(tmp_path / "moving.jpg") as image:
        assert max(image.getpixel((4, 4))) < 20, "not the first frame"
    assert after["photo.jpg"] == before["photo.jpeg"]


def test_converting_skips_what_is_done_and_names_what_is_unreadable(tmp_path, monkeypatch):
    for name in ("a.png", "c.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "b.gif").write_bytes(b"GIF89a broken")
    with pytest.raises(UserError, match=r"1 of 3 images .* unreadable: b\.gif"):
        convert_to_jpg(tmp_path)
    assert (tmp_path / "a.jpg").is_file() and (tmp_path / "c.jpg").is_file() and not (tmp_path / "b.jpg").exists()
    (tmp_path / "b.gif").unlink()
    monkeypatch.setattr(download, "_as_jpeg", lambda path: pytest.fail("converted again"))
    convert_to_jpg(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        convert_to_jpg(tmp_path / "absent")


def test_preprocess_script_tells_of_an_unknown_dataset(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "preprocess.py"
    command = [sys.executable, str(script), "--dataset_id", "nothing", "--root_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "'nothing' is not a known dataset" in done.stderr and "Traceback" not in done.stderr
