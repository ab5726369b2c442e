"""Text from data made safe to display: nothing in it hides or moves what stands around it."""

import re
from collections.abc import Sequence

# Control characters except tab and line end, characters that turn the direction of writing, the line ends of Unicode,
# halves of surrogate pairs, and code points that are no characters and that HTML forbids.
_UNSHOWN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
    + "".join(rf"\U{plane:04x}fffe\U{plane:04x}ffff" for plane in range(1, 17))
    + "]"
)


def printable(text: str, limit: int | None = None) -> str:
    r"""Return a text with such characters written out, as `\u202e`, and `...` in place of what exceeds the limit."""
    if limit is not None and len(text) > limit:
        text = text[:limit] + "..."
    return _UNSHOWN.sub(_written_out, text.replace("\r\n", "\n"))


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return names as a message lists them: the first few, each cut at 120 characters, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(printable(name, 120) for name in names[:most]) + more


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
