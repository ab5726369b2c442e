"""Numbers as people read them: amounts with their noun, and shares that are 100 % of a whole only."""


def percent(share: float, digits: int = 1) -> str:
    """Return a share of 1 in percent, without the sign; only none is 0, and only all is 100.

    >>> percent(0.25), percent(13464 / 13470), percent(1, digits=0)
    ('25.0', '99.9', '100')
    """
    least = 10.0**-digits
    number = 100 * share
    if 0 < share < 1:
        number = min(max(number, least), 100 - least)
    return f"{number:.{digits}f}"


def part_of(number: int, whole: int) -> str:
    """Return `8 of 60`, or `all 60`."""
    return f"all {whole:,}" if number == whole else f"{number:,} of {whole:,}"


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
