"""Numbers as people read them."""


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
