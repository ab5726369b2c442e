"""Amounts in words."""

import pytest

from cobra.util.amounts import counted, share

pytestmark = pytest.mark.fault("E11")


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
