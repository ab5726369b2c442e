"""Whether the published files are there: nothing is fetched that is not missing, and no network is needed then."""

import io
import shutil
from types import SimpleNamespace

import pytest
from hub_server import HubServer
from PIL import Image
from small_publication import Publication, annotation, write_parts

from cobra.preprocessing import transfer
from cobra.preprocessing.llava_cot import PrepareConfig, prepare
from cobra.preprocessing.llava_cot.archive import source_files as providing
from cobra.util.errors import UserError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "RETRY_DELAYS", (0.0, 0.0))
    folder = Publication().write(tmp_path / "published")
    with HubServer(folder) as server:
        server.take_over(monkeypatch)
        yield server


def names(folder):
    return sorted(path.name for path in folder.glob("image.zip.part-*"))


def test_everything_is_fetched_once(hub, tmp_path):
    report = prepare(PrepareConfig(tmp_path / "data", num_workers=1))
    assert report.rows_written == 12
    sent = hub.bytes_sent()
    assert prepare(PrepareConfig(tmp_path / "data", num_workers=1)).rows_written == 12
    assert hub.bytes_sent() == sent


@pytest.mark.parametrize("what", ["train.jsonl", "image.zip.part-ab", "image.zip.part-ae"])
def test_only_what_is_missing_or_cut_short_is_fetched(hub, tmp_path, what, capsys):
    folder = Publication().write(tmp_path / "data")
    size = (folder / what).stat().st_size
    (folder / what).unlink()
    assert prepare(PrepareConfig(tmp_path / "data", num_workers=1)).rows_written == 12
    assert hub.bytes_sent() == size
    assert what in capsys.readouterr().err
    with (folder / what).open("r+b") as file:
        file.truncate(size // 2)
    if what != "train.jsonl":
        prepare(PrepareConfig(tmp_path / "data", num_workers=1))
        assert hub.bytes_sent() == 2 * size


def test_download_false_names_what_is_missing_and_asks_nobody(hub, tmp_path):
    folder = Publication().write(tmp_path / "data")
    (folder / "image.zip.part-ac").unlink()
    with pytest.raises(UserError, match=r"image.zip.part-ac is missing.*To fetch what is missing: python fine_tune"):
        prepare(PrepareConfig(tmp_path / "data", download=False))
    assert not hub.bytes_sent()
    with pytest.raises(UserError, match=r"--dataset_root .*nowhere does not exist"):
        prepare(PrepareConfig(tmp_path / "nowhere", download=False))
    assert not (tmp_path / "nowhere").exists()


def test_parts_can_go_and_are_not_fetched_again(hub, tmp_path):
    config = PrepareConfig(tmp_path / "data", keep_parts=False, num_workers=1)
    folder = tmp_path / "data" / "download" / "llava-cot-100k"
    prepare(config)
    assert not names(folder)
    first, sent = annotation(folder), hub.bytes_sent()
    assert prepare(config).archive.images == 12
    assert annotation(folder) == first and hub.bytes_sent() == sent


def test_unpacked_images_need_no_archive(hub, tmp_path):
    Publication().write_unpacked(tmp_path / "data", "images")
    assert prepare(PrepareConfig(tmp_path / "data", num_workers=1)).rows_written == 12
    assert not hub.bytes_sent()


def test_other_revision_is_looked_up(hub, tmp_path):
    other = Publication(8)
    hub.publish(other.write(tmp_path / "other"), branch="small")
    config = PrepareConfig(tmp_path / "data", num_workers=1)
    assert prepare(config).rows_written == 12
    config.revision = "small"
    assert prepare(config).rows_written == 8


def test_room_for_parts_and_images_is_looked_for_first(hub, tmp_path, monkeypatch):
    made = Publication()
    for path in made.images:
        # Files take whole blocks of the disk, so small ones would say little.
        buffer = io.BytesIO()
        Image.effect_noise((256, 256), 90).save(buffer, format="PNG")
        made.images[path] = buffer.getvalue()
    published = made.write(tmp_path / "large")
    hub.publish(published)
    total = sum(path.stat().st_size for path in published.iterdir())
    usage = SimpleNamespace(free=total * 3 // 2)
    monkeypatch.setattr(providing.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="to fetch and .* to unpack.*--keep_parts false"):
        prepare(PrepareConfig(tmp_path / "data", num_workers=1))
    assert not hub.bytes_sent()
    assert prepare(PrepareConfig(tmp_path / "data", keep_parts=False, num_workers=1)).rows_written == 12


def test_archive_of_other_rows_on_the_hub_is_told(hub, tmp_path, monkeypatch):
    other = Publication(4)
    broken = tmp_path / "broken"
    broken.mkdir()
    write_parts(broken, other.zip_bytes()[:-30], 5)
    shutil.copy(Publication(4).write_rows(tmp_path / "rows") / "train.jsonl", broken)
    hub.publish(broken)
    with pytest.raises(UserError, match="what was fetched cannot be used: .*cannot be read as a zip archive"):
        prepare(PrepareConfig(tmp_path / "data", num_workers=1))
