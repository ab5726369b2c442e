"""JPEG files that lack their end: those without the end marker alone are completed, those without pixels are not.

Pillow refuses both. Its switch to take files that break off would take both, and show what is missing as grey.
"""

import io
import re
from collections.abc import Iterator

from PIL import Image

_BEGIN, _END = b"\xff\xd8", b"\xff\xd9"
_SCAN = 0xDA
# Markers without a length: fill bytes' own, TEM, RST0 to RST7 and SOI.
_BARE = {0x01, *range(0xD0, 0xD9)}
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
# The next marker that ends a scan's data: in these a byte of 255 is followed by 0, or is a restart marker.
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

# Data that go on behind the file: each differs from another in every bit; no byte is 255.
_TAIL = bytes(1 + 97 * index % 253 for index in range(64))
_TAILS = (_TAIL, bytes(255 - byte for byte in _TAIL), b"\xaa" * 64, b"\x55" * 64)


def is_cut_jpeg(data: bytes) -> bool:
    """Return True if a file is JPEG and has no end marker."""
    return data.startswith(_BEGIN) and _END not in data[-(2**16) :]


def complete_jpeg(data: bytes) -> Image.Image | None:
    """Decode a JPEG file that lacks its end marker; None where it lacks pixels too.

    Nothing that follows the last pixel's data changes a pixel. So the file is decoded with several endings: where all
    give the same picture, every pixel was there.

    Raises:
        Exception: Any that Pillow raises on damaged files.
    """
    if not _has_all_scans(data):
        return None
    kept = data.rstrip(b"\xff")
    # A scan that breaks off between two restart markers goes on behind the next of them.
    last = _RESTART.findall(kept)[-1:]
    restart = bytes([0xFF, 0xD0 + (last[0][0] - 0xCF) % 8 if last else 0xD0])
    first, *rest = (_decoded(kept + tail + restart + tail + _END) for tail in _TAILS)
    return first if all(picture.tobytes() == first.tobytes() for picture in rest) else None


def _decoded(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.load()
        return image


def _has_all_scans(data: bytes) -> bool:
    """Return True if the headers of the scans send every coefficient of every component to its last bit.

    A file of several scans may break off between two of them.
    """
    components = 0
    sent: dict[int, set[int]] = {}
    for marker, header in _segments(data):
        # Start of frame, but for DHT, JPG and DAC, whose numbers lie between.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            components = header[5] if len(header) > 5 else 0
        if marker == _SCAN and len(header) >= 4 and len(header) >= 4 + 2 * header[0]:
            first, last, approximation = header[1 + 2 * header[0] :][:3]
            # The low half is how many bits are still to come.
            if approximation & 15 == 0:
                for index in range(header[0]):
                    sent.setdefault(header[1 + 2 * index], set()).update(range(first, last + 1))
    return components > 0 and sum(len(coefficients) == 64 for coefficients in sent.values()) == components


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, header without its length) of every segment; the data of scans are passed over."""
    position = len(_BEGIN)
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker in _BARE:
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4])
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + length
        if marker == _SCAN:
            match = _NEXT_MARKER.search(data, position)
            if match is None:
                return
            position = match.start()
