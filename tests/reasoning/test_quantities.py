"""Numbers as answers have them."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobra.reasoning.quantities import Quantity, parse_quantity, same_quantity

READ = {
    "1000": (1000, False, ""),
    "1,000": (1000, False, ""),
    "12,345,678.50": (Fraction("12345678.5"), False, ""),
    "1e3": (1000, False, ""),
    "2.5E-2": (Fraction(1, 40), False, ""),
    "3 x 10^2": (300, False, ""),
    "-.5": (Fraction(-1, 2), False, ""),
    "+7.": (7, False, ""),
    "3/4": (Fraction(3, 4), False, ""),
    "2 1/2 cups": (Fraction(5, 2), False, "cup"),
    "45%": (45, True, ""),
    "45 per cent of voters": (45, True, "of voter"),
    "12.5 percent": (Fraction(25, 2), True, ""),
    "$3.5 million": (3_500_000, False, "dollar"),
    "10M": (10_000_000, False, ""),
    "10 m": (10, False, "m"),
    "5k": (5000, False, ""),
    "two hundred dogs": (200, False, "dog"),
    "Twelve": (12, False, ""),
    "5cm": (5, False, "cm"),
    "5 Centimetres": (5, False, "cm"),
    "50\u00b0": (50, False, "degree"),
    "50\u00b0C": (50, False, "degree c"),
    "50 degrees Celsius": (50, False, "degree c"),
    "9 sq. ft": (9, False, "ft^2"),
    "9 ft^2": (9, False, "ft^2"),
    "60 km/h": (60, False, "km/h"),
}
UNREAD = (
    "dog, 5-6, 5 - 6, 1/2/3, 1/0, 3:30, 1990s, 1st, 3D, 1,00, 1,0000, 3.1.4, 5 and 6, 5 or six, 5 more, twenty-one, "
    "2 dogs and 3 cats, 5 of the many dogs here, 1e999999999, 5^2, 4x4, x5, %, -, $, e5, 5 %%, \u0665, cannot 5"
).split(", ")


@pytest.mark.parametrize(("text", "expected"), READ.items(), ids=READ)
def test_numbers_with_their_units(text, expected):
    assert parse_quantity(text) == Quantity(Fraction(expected[0]), *expected[1:])


@pytest.mark.parametrize("text", [*UNREAD, "", "1,00", "9" * 100])
def test_other_texts_are_no_numbers(text):
    assert parse_quantity(text) is None


def same(one, other):
    first, second = parse_quantity(one), parse_quantity(other)
    assert first is not None and second is not None
    assert same_quantity(first, second) == same_quantity(second, first)
    return same_quantity(first, second)


SAME = ["5 cm|5", "5 cm|5 centimeters", "45%|45", "45%|0.45", "45%|45 percent", "$5|5 dollars", "$5|5", "1/2|0.50"]
DIFFERENT = ["5 cm|5 m", "5 dogs|5 cats", "45%|0.45%", "45%|45 cm", "10 million|10", "1/3|0.33", "5|-5", "$5|\u20ac5"]


@pytest.mark.parametrize("pair", SAME)
def test_the_same_quantities(pair):
    assert same(*pair.split("|"))


@pytest.mark.parametrize("pair", DIFFERENT)
def test_different_quantities(pair):
    assert not same(*pair.split("|"))


DECIMALS = st.decimals(-(10**9), 10**9, places=3).map(lambda value: value + 0)


@given(DECIMALS, DECIMALS)
def test_the_forms_of_a_number_are_the_same_and_no_two_numbers_are(value, other):
    forms = [f"{value}", f"{value:,}", f"{value:e}", f"{value}0", f"{value:+}", f"{value * 1000}e-3", f"{value} dogs"]
    whole = f"{Fraction(value)}"
    for form in [*forms, whole]:
        assert parse_quantity(form).value == Fraction(value)
    assert same(forms[0], f"{other:,}") == (value == other)
    assert same(f"{value}%", f"{other}%") == (value == other)
    assert same(f"{value}%", f"{other}") == (other in (value, value / 100))


@given(st.integers(0, 10**6), st.integers(0, 99), st.integers(1, 99))
def test_mixed_numbers(whole, numerator, denominator):
    value = Fraction(numerator, denominator) + whole
    assert parse_quantity(f"{whole} {numerator}/{denominator}").value == value
    assert parse_quantity(f"-{whole} {numerator} / {denominator} cm") == Quantity(-value, False, "cm")


@given(st.text("0123456789.,-+/eE%$ xkMdogs^\u00b0", max_size=20) | st.text(max_size=10))
def test_any_text_is_a_number_or_none(text):
    found = parse_quantity(text)
    assert found is None or same_quantity(found, found)
