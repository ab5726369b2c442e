"""Rows for tests of whole runs."""

import json

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """`rows.json` with eight rows, the id of each its place and its answer a word longer than the last, and images."""
    (tmp_path / "images").mkdir()
    rows = []
    for index in range(8):
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "word " * (index + 1)}]
        rows.append({"id": index, "image": f"{index}.png", "conversations": turns})
        Image.new("RGB", (48, 48), (20 * index, 90, 90)).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path
