"""`cobra-vlm fetch`: what a run needs is fetched, and the line to go on with is printed."""

import pytest

from cobra.commands import fetch
from cobra.util.cli import parse
from cobra.util.errors import UserError


@pytest.fixture
def fetched(monkeypatch):
    calls = []
    monkeypatch.setattr("cobra.models.prefetch.prefetch_model", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(fetch, "download_extract", lambda name, root, token: calls.append((name, root, token)))
    return calls


def run(*arguments):
    fetch.main(parse(fetch.FetchConfig, arguments, fetch.COMMAND.usage.positional))


def test_models_and_data_sets_are_fetched(fetched, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TOKEN", "hf_secret_token_of_the_hub")
    run("cobra+3b", "--datasets", "llava-cot-100k", "coco-captions", "--root_dir", str(tmp_path), "--hf_token", "TOKEN")
    token = "hf_secret_token_of_the_hub"
    assert fetched == [
        ("cobra+3b", token, False),
        ("llava-cot-100k", tmp_path, token),
        ("coco-captions", tmp_path, token),
    ]
    told = capsys.readouterr().out
    assert "export HF_HUB_OFFLINE=1 HF_HUB_CACHE=/" in told
    assert f"prepare_llava_cot.py --dataset_root {tmp_path} --download false" in told and token not in told


def test_nothing_is_fetched_where_a_name_is_wrong(fetched):
    with pytest.raises(UserError, match="coco-captions"):
        run("cobra+3b", "--datasets", "coco-caption")
    assert fetched == []


def test_data_alone(fetched, tmp_path):
    run("none", "--datasets", "coco-captions", "--root_dir", str(tmp_path))
    assert [call[0] for call in fetched] == ["coco-captions"]


def test_a_data_set_in_the_place_of_the_model_names_its_flag(fetched):
    with pytest.raises(UserError, match="fetch.* none --datasets coco-captions"):
        run("coco-captions")
    assert fetched == []
