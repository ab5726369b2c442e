"""Reader of images that a user names: by a path, or by an address on the web."""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cobra.talk.web import fetch_bytes
from cobra.util.errors import UserError
from cobra.util.printable import printable
from cobra.util.redaction import redacted_address

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 64 * 2**20
"""Size of an image file at most; larger ones are refused."""

# Two letters at least: `C:` is a drive. `data:` and `file:` need no slashes.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?=//)|(data|file):", re.IGNORECASE)


def open_image(where: str) -> "Image.Image":
    """Open a picture as RGB, turned upright as its EXIF orientation says.

    Args:
        where: A path, or an address that begins with http:// or https://.

    Raises:
        UserError: There is no such file, nobody answers, it is too large or not a picture, or the address is of
            another kind.
    """
    where = where.strip()
    scheme = _SCHEME.match(where)
    if scheme is None:
        return decode_image(_read_file(where), where)
    kind = (scheme[1] or scheme[2]).lower()
    if kind not in ("http", "https"):
        raise UserError(
            f"{_quote(where)} is an address of the kind {kind}: give the path of a file, or an address that begins "
            "with http:// or https://"
        )
    return decode_image(fetch_bytes(where, MAX_BYTES), where)


def decode_image(data: bytes, name: str, max_pixels: int | None = None) -> "Image.Image":
    """Decode a picture's file as RGB, upright; its content alone tells what it is.

    Args:
        data: The file.
        name: Where it is from, for the error.
        max_pixels: Pictures of more, by their header, are not decoded; None leaves it to Pillow.

    Raises:
        UserError: It is not a picture, or too large.
    """
    from cobra.util.images import FORMATS, BadImageError, read_header, read_upright

    try:
        header = read_header(io.BytesIO(data))
        if max_pixels is not None and header.width * header.height > max_pixels:
            raise UserError(
                f"{_quote(name)} is a picture of {header.width:,} x {header.height:,} pixels, and {max_pixels:,} are "
                "taken in all: make it smaller"
            )
        return read_upright(io.BytesIO(data))[0]
    except BadImageError as error:
        raise UserError(
            f"{_quote(name)} cannot be opened as a picture ({error}): give a whole file in one of the formats "
            f"{', '.join(FORMATS)}"
        ) from error


def _read_file(where: str) -> bytes:
    try:
        path = Path(where).expanduser()
        # Anything else may never end, or wait for somebody to write.
        if path.exists() and not path.is_file():
            raise UserError(f"{_quote(where)} is not a file: give the path of a picture")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{_quote(where)} has {size:,} bytes; pictures may have {MAX_BYTES:,}")
        return path.read_bytes()
    except UserError:
        raise
    # Of names with a NUL or a half of a surrogate pair a ValueError, of a home that nobody has a RuntimeError.
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{_quote(where)} cannot be opened as a picture ({error}): give the path of an image file"
        ) from error


def _quote(where: str) -> str:
    return repr(printable(redacted_address(where), 200))
