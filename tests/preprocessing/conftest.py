"""A folder of pictures for rows that a test writes."""

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `images/a.png`, a picture of one colour."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (4, 4), (10, 20, 30)).save(images / "a.png")
    return tmp_path
