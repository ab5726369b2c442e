"""Text from data made safe to display, and lists of names cut short."""

from hypothesis import given
from hypothesis import strategies as st

from cobra.util.printable import listed, printable


@given(st.text(st.characters()), st.integers(0, 50))
def test_shown_text_is_short_and_can_be_written(text, limit):
    cut = printable(text, limit)
    cut.encode("utf-8")
    assert printable(cut) == cut and len(cut) <= 10 * limit + 3
    if text.isascii() and text.isprintable():
        assert printable(text) == text


def test_many_names_are_counted_and_long_ones_cut():
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["x" * 200, "b", "c"], 1) == "x" * 120 + "... and 2 more"
