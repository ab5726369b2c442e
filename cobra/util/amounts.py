"""Amounts in words: `1 row`, `1,234 rows`, and shares that say 100% of a whole only."""


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
    """Return a share in per cent: 100% is all and 0% is nothing; 13,464 of 13,470 are 99.9%, 1 of 13,470 is <0.1%."""
    if whole <= 0 or part <= 0 or part >= whole:
        return f"{float(0 < whole <= part):.{digits}%}"
    unit = 10.0 ** -(digits + 2)
    exact = part / whole
    return f"<{unit:.{digits}%}" if exact < unit / 2 else f"{min(exact, 1 - unit):.{digits}%}"
