"""The registry of datasets: fetched, unpacked, put where they belong, converted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from archive_files import make_tar, make_zip, tar_member, tree
from file_server import FileServer
from hub_server import Fault, HubServer
from PIL import Image

from cobra.evaluation.data import coco
from cobra.preprocessing import archives, download, transfer
from cobra.preprocessing.archives import unsafe_name
from cobra.preprocessing.download import DATASET_REGISTRY, convert_to_jpg, download_extract
from cobra.util.errors import UserError

BODY = os.urandom(1000)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(transfer, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    with FileServer() as server:
        yield server


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


def test_components_of_the_hub_and_tar_archives_are_resumed_and_checked(monkeypatch, tmp_path):
    monkeypatch.setattr(transfer, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    source = tmp_path / "source"
    source.mkdir()
    make_tar(source / "images.tar.gz", [tar_member("images/1.jpg", size=3)])
    (source / "rows.json").write_bytes(BODY * 300)
    prefix = "https://huggingface.co/datasets/owner/name/resolve/main"
    made = [part("rows.json", f"{prefix}/rows.json", extract=False), part("images", f"{prefix}/images.tar.gz")]
    monkeypatch.setitem(DATASET_REGISTRY, "made", made)
    with HubServer(source, "owner/name") as hub:
        hub.take_over(monkeypatch)
        hub.faults = [Fault("drop", after=200_000)] + [Fault("status", status=403)] * 4
        with pytest.raises(UserError, match="403"):
            download_extract("made", tmp_path)
        hub.forget()
        download_extract("made", tmp_path)
        assert hub.requests[2].start > 100_000
    assert tree(tmp_path / "download" / "made") == {"rows.json": BODY * 300, "images/1.jpg": b"xxx"}


def test_component_is_named_where_the_hub_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="chat.json of llava-laion-cc-sbu-558k cannot be fetched: HF_HUB_OFFLINE"):
        download_extract("llava-laion-cc-sbu-558k", tmp_path)


def test_coco_captions_land_where_the_benchmark_looks(server, tmp_path, monkeypatch):
    server.files = {
        "/annotations/annotations_trainval2017.zip": make_zip(
            {f"annotations/{kind}_val2017.json": b"{}" for kind in ("captions", "instances")}
        ),
        "/zips/val2017.zip": make_zip({"val2017/000000000139.jpg": b"an image"}),
    }
    published = "http://images.cocodataset.org"
    local = [{**c, "url": c["url"].replace(published, server.url)} for c in DATASET_REGISTRY["coco-captions"]]
    monkeypatch.setitem(DATASET_REGISTRY, "coco-captions", local)
    download_extract("coco-captions", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert coco.DEFAULT_ANNOTATIONS.read_bytes() == b"{}"
    assert (coco.DEFAULT_IMAGE_DIR / "000000000139.jpg").read_bytes() == b"an image"


def test_llava_cot_comes_at_a_revision_without_the_parts_that_are_unpacked(monkeypatch, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("train.jsonl", "image.zip.part-aa", "image.zip.part-ab"):
        (source / name).write_bytes(BODY)
    monkeypatch.setattr(download, "consumed_parts", lambda folder: {"image.zip.part-aa"})
    with HubServer(source) as hub:
        hub.take_over(monkeypatch)
        hub.branches = {"v1": hub.branches["main"]}
        with pytest.raises(UserError, match="no revision 'main'"):
            download_extract("llava-cot-100k", tmp_path)
        download_extract("llava-cot-100k", tmp_path, "v1")
    names = {path.name for path in (tmp_path / "download" / "llava-cot-100k").iterdir()}
    assert names == {"train.jsonl", "image.zip.part-ab", ".prepare"}


def test_revision_of_a_dataset_that_has_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="--revision v1 is of no use with coco-captions"):
        download_extract("coco-captions", tmp_path, "v1")


def test_unknown_dataset_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="'llava'.*llava-v1.5-instruct.*llava-cot-100k"):
        download_extract("llava", tmp_path)
    assert tree(tmp_path) == {}


def test_folder_that_cannot_be_written_is_a_user_error(server, dataset, tmp_path):
    server.files["/x"] = BODY
    dataset(part("x", "/x", extract=False))
    (tmp_path / "download").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="download/made/.prepare cannot be used .Not a directory"):
        download_extract("made", tmp_path)


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
    assert "the dataset 'nothing' is unknown" in done.stderr and "Traceback" not in done.stderr


def test_preprocess_script_fetches_llava_cot_with_a_token_at_a_revision(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("train.jsonl", "image.zip.part-aa"):
        (source / name).write_bytes(BODY)
    script = Path(__file__).parents[2] / "scripts" / "preprocess.py"
    with HubServer(source, token="hf_secret") as hub:
        command = [sys.executable, str(script), "--dataset_id", "llava-cot-100k", "--root_dir", str(tmp_path)]
        command += ["--revision", hub.branches["main"], "--hf_token", "MY_TOKEN"]
        environment = {**os.environ, **hub.environment, "MY_TOKEN": "hf_secret"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "download" / "llava-cot-100k" / "image.zip.part-aa").read_bytes() == BODY
    assert "fine_tune/prepare_llava_cot.py" in done.stdout
