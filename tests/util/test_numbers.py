"""Numbers as people read them."""

import pytest

from cobra.util.numbers import part_of, percent


@pytest.mark.fault("E11")
@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [(13464 / 13470, 1, "99.9"), (1, 1, "100.0"), (1e-6, 1, "0.1"), (0, 0, "0"), (0.999, 0, "99"), (0.25, 0, "25")],
)
def test_only_all_is_100_and_only_none_is_0(share, digits, text):
    assert percent(share, digits) == text


def test_all_is_said_in_a_word():
    assert (part_of(8, 60), part_of(60, 60)) == ("8 of 60", "all 60")
