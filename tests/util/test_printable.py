"""Texts from the data, as a person may be shown them."""

from hypothesis import given
from hypothesis import strategies as st

from cobra.util.printable import printable


@given(st.text(st.characters()), st.integers(0, 50))
def test_shown_text_is_short_and_can_be_written(text, limit):
    cut = printable(text, limit)
    cut.encode("utf-8")
    assert printable(cut) == cut and len(cut) <= 10 * limit + 3
    if text.isascii() and text.isprintable():
        assert printable(text) == text
