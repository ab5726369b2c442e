"""Small pictures in pages: upright, and it is said where a model reads them otherwise."""

from pathlib import Path

import pytest

from cobra.util.html_pages import page_templates, thumbnail

IMAGES = Path(__file__).parents[1] / "faults" / "exif" / "images"


@pytest.mark.fault("F6")
@pytest.mark.parametrize("kind", ["phone", "upright"])
def test_a_picture_that_is_stored_turned_is_shown_upright_and_it_is_said(kind):
    found = thumbnail(IMAGES / f"000000000001-{kind}.jpg")
    parts = page_templates("cobra.talk").get_template("parts.html.j2").module
    assert found.turned == (kind == "phone")
    assert ("the model reads it as it is stored" in parts.picture(found)) == (kind == "phone")
    assert "no-picture" in parts.picture(thumbnail(IMAGES / "nowhere.jpg"))
