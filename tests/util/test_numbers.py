"""Numbers as people read them."""

import pytest

from cobra.util.numbers import counted, part_of, percent, share


@pytest.mark.fault("E11")
@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [(13464 / 13470, 1, "99.9"), (1, 1, "100.0"), (1e-6, 1, "0.1"), (0, 0, "0"), (0.999, 0, "99"), (0.25, 0, "25")],
)
def test_only_all_is_100_and_only_none_is_0(share, digits, text):
    assert percent(share, digits) == text


def test_all_is_said_in_a_word():
    assert (part_of(8, 60), part_of(60, 60)) == ("8 of 60", "all 60")


@pytest.mark.fault("E11")
@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (counted(1, "row"), "1 row"),
        (counted(0, "row"), "0 rows"),
        (counted(1234, "process"), "1,234 processes"),
        (counted(2, "entry", "entries"), "2 entries"),
        (share(13_464, 13_470), "99.9%"),
        (share(13_470, 13_470), "100.0%"),
        (share(1, 100_000), "0.1%"),
        (share(0, 5), "0.0%"),
        (share(0, 0), "0.0%"),
        (share(1, 3, digits=0), "33%"),
        (share(399, 400, digits=0), "99%"),
    ],
)
def test_amounts_are_worded_as_people_would(amount, text):
    assert amount == text
