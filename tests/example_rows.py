"""Rows of a question and an answer, and the smallest thing to read of their picture."""

import json
from pathlib import Path

import torch
from PIL import Image

PAIR = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]

TEXT_PAIR = [{"from": "human", "value": "What?"}, PAIR[1]]


def write_rows(folder: Path, rows: list | str) -> Path:
    """Write `rows.json` into a folder, of rows or of whatever text it shall hold."""
    path = folder / "rows.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path


def first_pixel(image: Image.Image) -> torch.Tensor:
    """In place of a tower's transform."""
    return torch.tensor(image.getpixel((0, 0)), dtype=torch.float)
