"""Amounts in words: `1 row`, `1,234 rows`, and shares that say 100% of a whole only."""

from cobra.util.numbers import percent


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 row`, `0 rows`, `1,234 boxes`.

    Args:
        number: The number, not negative.
        noun: The noun for one.
        plural: The noun for several, where its last letters do not tell it.
    """
    ending = "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{number:,} {noun if number == 1 else plural or noun + ending}"


def share(part: float, whole: float, digits: int = 1) -> str:
    """Return `part` in per cent of `whole`, with the sign, as :func:`percent` rounds it; of nothing it is 0."""
    return f"{percent(part / whole if whole else 0.0, digits)}%"
