"""Numbers as answers write them: `1,000`, `1e3`, `45 %`, `2 1/2 cm`, `$3.5 million`, `twelve dogs`."""

import re
from dataclasses import dataclass
from fractions import Fraction

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Upper case counts here: m is a metre.
_SUFFIXES = {"k": 10**3, "K": 10**3, "M": 10**6, "mn": 10**6, "B": 10**9, "bn": 10**9}
_CURRENCIES = {"$": "dollar", "\u20ac": "euro", "\u00a3": "pound", "\u00a5": "yen"}
# The first form of each is its name.
_UNITS = {
    form: forms.split()[0]
    for forms in (
        "mm millimeter millimetre, cm centimeter centimetre, m meter metre, km kilometer kilometre, "
        "in inch inches, ft foot feet, yd yard, mi mile, mg milligram, g gram, kg kilogram, lb lbs pound, "
        "oz ounce, ml milliliter millilitre, l liter litre, s sec second, min minute, h hr hrs hour, yr yrs year, "
        "mph, km/h kph, degree deg \u00b0, c celsius, f fahrenheit, rad radian, dollar usd, euro eur"
    ).split(", ")
    for form in forms.split()
}
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
# Words that make another thing of the number before them.
_NO_UNITS = {"and", "or", "to", "but", "not", "plus", "minus", "times", "by", "over", "more", "less", "fewer", "other"}
_MAX_UNIT_WORDS = 3
# Beyond these a number is text: it would take seconds to compute.
_MAX_DIGITS = 60
_MAX_EXPONENT = 60

_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s?(?P<currency>[$\u20ac\u00a3\u00a5]?)\s?"
    r"(?:(?:(?P<whole>[0-9]+)\s+)?(?P<numerator>[0-9]+)\s?/\s?(?P<denominator>[0-9]+)"
    r"|(?P<decimal>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:[eE](?P<exponent>[-+]?[0-9]+)|\s?[xX*\u00d7]\s?10\^\{?(?P<power>[-+]?[0-9]+)\}?)?)"
    r"(?![0-9])(?P<rest>.*)"
)
_WORD = re.compile(rf"({'|'.join(_WORDS)})\b(?!-)", re.IGNORECASE)
_UNIT_WORD = re.compile(r"[^\W\d_][^\W\d_'-]*(?:/[^\W\d_]+)?(?:\^[23])?")
_PERCENT = re.compile(r"(?:%|per\s?cent\b)\s*")


@dataclass(frozen=True)
class Quantity:
    """A number with what it counts or is measured in."""

    value: Fraction
    """Number before a percent sign is taken into account."""
    is_percent: bool
    unit: str
    """Unit's words in one form, singular (`cm`, `degree c`, `dog`); empty where there is none."""


def parse_quantity(text: str) -> Quantity | None:
    """Read a text that is a number and nothing else but a unit of up to three words; None for any other text.

    The text is without white space around it, in normal form KC, with `-` for minus.
    """
    if word := _WORD.match(text):
        text = f"{_WORDS.index(word[1].lower())}{text[word.end() :]}"
    number = _NUMBER.fullmatch(text)
    value = None if number is None else _value(number)
    if number is None or value is None:
        return None
    scale, rest = _scale(number["rest"])
    attached = rest[:1] not in ("", " ")
    if percent := _PERCENT.match(rest.lstrip()):
        rest, attached = rest.lstrip()[percent.end() :], False
    unit = _unit(rest, attached)
    if unit is None:
        return None
    return Quantity(value * scale, bool(percent), f"{_CURRENCIES.get(number['currency'], '')} {unit}".strip())


def same_quantity(first: Quantity, second: Quantity) -> bool:
    """Return True if two quantities are the same; units that both have must agree, and numbers are equal or not.

    A unit may be left out: `5 cm` is `5`. So may a percent sign, and a share may be written either way: `45 %` is `45`
    and is `0.45`. `45 %` is not `45 cm`.
    """
    if first.unit and second.unit and first.unit != second.unit:
        return False
    if first.is_percent == second.is_percent:
        return first.value == second.value
    share, plain = (first, second) if first.is_percent else (second, first)
    return plain.unit in ("", share.unit) and plain.value in (share.value, share.value / 100)


def _value(number: re.Match[str]) -> Fraction | None:
    """Return the value of a match of `_NUMBER`; None where it is too long, or a division by zero."""
    if len(number[0]) - len(number["rest"]) > _MAX_DIGITS:
        return None
    if number["decimal"]:
        exponent = int(number["exponent"] or number["power"] or 0)
        if abs(exponent) > _MAX_EXPONENT:
            return None
        value = Fraction(number["decimal"].replace(",", "").rstrip(".")) * Fraction(10) ** exponent
    elif int(number["denominator"]) == 0:
        return None
    else:
        value = int(number["whole"] or 0) + Fraction(int(number["numerator"]), int(number["denominator"]))
    return -value if number["sign"] == "-" else value


def _scale(rest: str) -> tuple[int, str]:
    """Return the factor that the first word behind a number stands for, and the text behind that word."""
    word = rest.split(maxsplit=1)[0] if rest.strip() else ""
    scale = _SUFFIXES.get(word) or _SCALES.get(word.lower())
    return (1, rest) if scale is None else (scale, rest[rest.index(word) + len(word) :])


def _unit(rest: str, attached: bool) -> str | None:
    """Return the unit in one form, or None; attached to the number only known ones may be: `5cm`, but not `1990s`."""
    words = rest.lower().replace("\u00b0", " \u00b0 ").split()
    if len(words) > _MAX_UNIT_WORDS:
        return None
    units = []
    for index, word in enumerate(words):
        word = word.rstrip(".")
        if not (word == "\u00b0" or _UNIT_WORD.fullmatch(word)) or word in _NO_UNITS:
            return None
        name = _unit_name(word)
        if attached and index == 0 and (name not in _UNITS.values() or name == "s"):
            return None
        units.append(name)
    if len(units) > 1 and units[0] in _POWERS:
        units = [units[1] + _POWERS[units[0]], *units[2:]]
    return " ".join(units)


def _unit_name(word: str) -> str:
    base, caret, power = word.partition("^")
    if base not in _UNITS and base not in _POWERS and base.endswith("s") and len(base) > 3:
        base = base[:-1]
    return _UNITS.get(base, base) + caret + power
