"""Tokens of the rows in the report, and what stands there where no tokenizer can be had."""

import io
import json
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from small_publication import ANSWER, turns

import cobra.models.tiny
from cobra.models.backbones.llm import LLM_BACKBONES, LLMSpec
from cobra.preprocessing.datasets.token_lengths import TokenLengths
from cobra.preprocessing.llava_cot.report import token_counter
from cobra.preprocessing.llava_cot.report.counts import Report
from cobra.preprocessing.llava_cot.report.token_counter import count_tokens
from cobra.preprocessing.llava_cot.report.token_counts import BIN_EDGES
from cobra.preprocessing.llava_cot.rows.raw_row import Row

TINY = Path(cobra.models.tiny.__file__).parent
REPOSITORY = "nobody/has-this"


def written(folder, *reasonings, held_out=()):
    """Count rows with such texts in their REASONING, and write their files."""
    report = Report()
    for place, (name, texts) in enumerate((("train.json", reasonings), ("holdout.json", held_out))):
        rows = []
        for number, text in enumerate(texts):
            source = ("coco", "sqa")[number % 2]
            row = Row(number, f"{source}/1.png", turns("Which?", ANSWER.format("red", text, "A")), False)
            report.count_row(row, source, held_out=bool(place))
            rows.append({"id": row.id, "image": row.image, "conversations": row.turns})
        if rows:
            (folder / name).write_text(json.dumps(rows))
    return report, folder / "train.json", folder / "holdout.json"


def test_rows_whose_conclusion_is_cut_are_counted_with_the_real_tokenizer(tmp_path):
    report, *files = written(tmp_path, "short", "long " * 500, "short", held_out=["long " * 600])
    report.tokens, report.tokens_missing = count_tokens(*files, report.sources, "mamba-0.5m-zephyr", 400)
    found = report.tokens
    assert (found.rows, found.longer, found.conclusion_cut) == (4, 2, 2)
    assert found.conclusion_cut_by_source == found.longer_by_source == {"coco": 1, "sqa": 1}
    assert found.tokenizer == "tiny" and found.llm_backbone_id == "mamba-0.5m-zephyr" and found.llm_max_length == 400
    assert sum(found.bin_rows) == 4 and found.max > 600 and report.tokens_missing is None
    assert found.total == pytest.approx(found.mean * 4, abs=0.3)
    saved = report.to_json()["tokens"]
    assert saved["conclusion_cut"] == 2 and json.loads(json.dumps(saved))["bin_edges"] == list(BIN_EDGES)
    again, *_ = written(tmp_path, "short", "long " * 500, "short", held_out=["long " * 600])
    again.tokens, again.tokens_missing = count_tokens(*files, again.sources, "mamba-0.5m-zephyr", 400)
    assert again.to_json() == report.to_json()


def test_numbers_of_known_lengths(tmp_path, monkeypatch):
    report, *files = written(tmp_path, *"abcdef")
    tokens = np.array([1, 127, 128, 2048, 2049, 5000], np.int32)
    ends = np.array([1, 120, 128, 2048, 2048, 4000], np.int32)
    monkeypatch.setattr(token_counter, "token_lengths", lambda *_: TokenLengths(tokens, ends))
    report.tokens, report.tokens_missing = count_tokens(*files, report.sources, "mamba-0.5m-zephyr", 2048)
    found = report.tokens
    assert (found.total, found.mean, found.median, found.p95, found.max) == (9353, 1558.8, 128, 5000, 5000)
    assert (found.longer, found.conclusion_cut) == (2, 1)
    assert found.longer_by_source == {"coco": 1, "sqa": 1} and found.conclusion_cut_by_source == {"sqa": 1}
    bins = dict(zip(found.bin_edges, found.bin_rows, strict=True))
    assert {edge: rows for edge, rows in bins.items() if rows} == {0: 2, 128: 1, 2048: 2, 4096: 1}


def test_without_rows_or_with_an_unknown_model_the_reason_stands_there(tmp_path):
    report, *files = written(tmp_path)
    # A file of an earlier run, which this one has left as it was.
    files[0].write_text("stale")
    report.tokens, report.tokens_missing = count_tokens(*files, report.sources, "mamba-0.5m-zephyr", 2048)
    assert report.tokens is None and report.tokens_missing == "there are no rows"
    report, *files = written(tmp_path, "a")
    report.tokens, report.tokens_missing = count_tokens(*files, report.sources, "no-such-model", 2048)
    assert report.tokens is None and "'no-such-model' is unknown" in report.tokens_missing


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A registered model of the hub, an empty cache, and a function that says where the hub is."""
    monkeypatch.setitem(LLM_BACKBONES, "mamba-of-the-hub-zephyr", LLMSpec(REPOSITORY))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(token_counter, "_REACH_SECONDS", 0.5)

    def place(port):
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)

    return place


@pytest.fixture
def closed_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        yield found.getsockname()[1]


@pytest.fixture
def silent_port():
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("port", ["closed_port", "silent_port"])
def test_hub_that_cannot_be_reached_costs_little_time(tmp_path, hub, request, port):
    hub(request.getfixturevalue(port))
    report, *files = written(tmp_path, "a")
    started = time.monotonic()
    report.tokens, report.tokens_missing = count_tokens(*files, report.sources, "mamba-of-the-hub-zephyr", 2048)
    assert time.monotonic() - started < 5
    assert report.tokens is None
    assert report.tokens_missing == f"the tokenizer {REPOSITORY} is not in the cache and the hub cannot be reached"
    assert report.to_json()["tokens"] is None
    stream = io.StringIO()
    report.show(Console(file=stream, width=100))
    assert report.tokens_missing in stream.getvalue() and "prepare_llava_cot.py" in stream.getvalue()


def test_offline_the_cached_tokenizer_is_used(tmp_path, hub, closed_port):
    hub(closed_port)
    folder = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / "snapshots" / "abc" / name)
    report, *files = written(tmp_path, "a")
    report.tokens, report.tokens_missing = count_tokens(*files, report.sources, "mamba-of-the-hub-zephyr", 2048)
    assert report.tokens is not None and report.tokens.tokenizer == REPOSITORY and report.tokens.rows == 1


def test_damaged_tokenizer_is_a_reason_too(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    monkeypatch.setitem(LLM_BACKBONES, "mamba-damaged-zephyr", LLMSpec(tmp_path / "model"))
    report, *files = written(tmp_path, "a")
    report.tokens, report.tokens_missing = count_tokens(*files, report.sources, "mamba-damaged-zephyr", 2048)
    assert report.tokens is None and "cannot be loaded" in report.tokens_missing
