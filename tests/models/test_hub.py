"""Files of the hub where it does not answer: the cache alone is asked, at once, and one line says so."""

import time

import pytest
from file_server import FileServer
from huggingface_hub import constants

from cobra.evaluation.data.hub_dataset import read_hub_captions
from cobra.models.hub import check_hub, fetch
from cobra.models.prefetch import prefetch_model
from cobra.util.errors import UserError


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A hub's address where nothing listens, and an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.fault("E3")
def test_a_file_that_is_not_cached_is_refused_at_once(unreachable, capfd):
    start = time.monotonic()
    with pytest.raises(UserError, match="config.json of a/b is not in the cache and the hub cannot be reached"):
        fetch("a/b", "config.json")
    assert time.monotonic() - start < 5
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and "http://127.0.0.1:9 does not answer" in told and "the cache alone" in told
    with pytest.raises(UserError):
        fetch("a/b", "config.json")
    assert capfd.readouterr().err == ""


@pytest.mark.fault("E3")
def test_a_cached_file_is_used(unreachable):
    folder = unreachable / "models--a--b"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1" * 40)
    (folder / "snapshots" / ("1" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("1" * 40) / "config.json").write_text("{}")
    assert fetch("a/b", "config.json", cache_dir=unreachable).read_text() == "{}"


def test_a_models_files_are_all_asked_for(monkeypatch, tmp_path):
    asked = []
    (tmp_path / "config.json").write_text(
        '{"model": {"model_id": "m", "vision_backbone_id": "dinosiglip-vit-tiny-48px", "image_resize_strategy": '
        '"resize-naive", "llm_backbone_id": "mamba-2.8b-zephyr", "llm_max_length": 8, "arch_specifier": "linear"}}'
    )

    def found(repo, name, token=None, cache_dir=None):
        asked.append((repo, name, token))
        return tmp_path / "config.json"

    monkeypatch.setattr("cobra.models.run_folder.fetch", found)
    monkeypatch.setattr("cobra.models.backbones.llm.backbone.fetch", found)
    monkeypatch.setattr(
        "cobra.models.backbones.llm.backbone.load_tokenizer", lambda source, _, token: asked.append((source, token))
    )
    prefetch_model("cobra+3b", "secret")
    llm = "xiuyul/mamba-2.8b-zephyr"
    checkpoint = [(f"cobra+3b/{name}", "secret") for name in ("config.json", "checkpoints/latest-checkpoint.pt")]
    expected = [*(("han1997/cobra", *pair) for pair in checkpoint), (llm, "config.json", "secret"), (llm, "secret")]
    assert asked == expected
    asked.clear()
    prefetch_model("cobra+3b", "secret", with_bare_llm=True)
    assert asked == [*expected, (llm, "model.safetensors", "secret")]


@pytest.mark.fault("E3")
def test_huggingface_hubs_retries_are_one_line_each(monkeypatch, tmp_path, capfd):
    from huggingface_hub.utils import http_backoff

    with FileServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        check_hub()
        server.files["/x"] = b"content"
        server.faults = [("status", 503)]
        assert http_backoff("GET", f"{server.url}/x", base_wait_time=0.01).status_code == 200
        host = server.url.removeprefix("http://")
        assert capfd.readouterr().err == f"{host} fails (HTTP Error 503); next attempt in 0.01 s\n"
        with pytest.raises(Exception, match="refused"):
            http_backoff("GET", "http://127.0.0.1:9/x", base_wait_time=0.01, max_retries=1)
    told = capfd.readouterr().err
    assert told == "127.0.0.1:9 fails ([Errno 111] Connection refused); next attempt in 0.01 s\n"


@pytest.mark.fault("E3")
def test_a_data_set_of_the_hub_is_given_up_at_once(unreachable, capfd):
    start = time.monotonic()
    with pytest.raises(UserError, match="a/b is neither a file.*hf download a/b --repo-type dataset.*--coco_ann"):
        read_hub_captions("a/b", None)
    assert time.monotonic() - start < 10
    assert capfd.readouterr().err.count("\n") == 1
