"""Opening a picture that a person names: a file, or something on the web."""

import io
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cobra.util.errors import UserError
from cobra.util.shown import shown

if TYPE_CHECKING:
    import requests
    from PIL import Image

MAX_BYTES = 64 * 2**20
"""Of a picture's file; larger ones are refused."""

# To connect, and between two pieces of the answer; and for all of it.
_SILENCE_SECONDS = 10.0
_TOTAL_SECONDS = 60.0
_MAX_REDIRECTS = 5
_BLOCK = 1 << 16
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
            f"{_name(where)} is an address of the kind {kind}: give the path of a file, or an address that begins with "
            "http:// or https://"
        )
    return decode_image(fetch_bytes(where), where)


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
                f"{_name(name)} is a picture of {header.width:,} x {header.height:,} pixels, and {max_pixels:,} are "
                "taken in all: make it smaller"
            )
        return read_upright(io.BytesIO(data))[0]
    except BadImageError as error:
        raise UserError(
            f"{_name(name)} cannot be opened as a picture ({error}): give a whole file in one of the formats "
            f"{', '.join(FORMATS)}"
        ) from error


def _read_file(where: str) -> bytes:
    try:
        path = Path(where).expanduser()
        # Anything else may never end, or wait for somebody to write.
        if path.exists() and not path.is_file():
            raise UserError(f"{_name(where)} is not a file: give the path of a picture")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{_name(where)} has {size:,} bytes; pictures may have {MAX_BYTES:,}")
        return path.read_bytes()
    except UserError:
        raise
    # Of names with a NUL or a half of a surrogate pair a ValueError, of a home that nobody has a RuntimeError.
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{_name(where)} cannot be opened as a picture ({error}): give the path of an image file"
        ) from error


def fetch_bytes(url: str) -> bytes:
    """Fetch a file of at most :data:`MAX_BYTES` into memory.

    Args:
        url: http or https; up to five redirects to others of these are followed.

    Raises:
        UserError: Nobody answers, the answer is an error, or it is too large or too slow.
    """
    import requests
    from urllib3.exceptions import HTTPError

    session = requests.Session()
    session.max_redirects = _MAX_REDIRECTS
    # Compressed in transport a small answer could become a large one.
    headers = {"Accept-Encoding": "identity", "User-Agent": "cobra-vlm"}
    try:
        with session, session.get(url, stream=True, timeout=_SILENCE_SECONDS, headers=headers) as response:
            if not response.ok:
                raise UserError(
                    f"{_name(url)} cannot be fetched: the server answers {response.status_code} "
                    f"{shown(response.reason or '', 80)}; see whether the address opens in a browser"
                )
            return _receive(response, url)
    except UserError:
        raise
    # Of odd addresses requests passes on UnicodeErrors and other ValueErrors.
    except (requests.RequestException, HTTPError, OSError, ValueError) as error:
        # What lies under requests' account of its attempts.
        reason = str(getattr(error.args[0], "reason", error) if error.args else error)
        raise UserError(
            f"{_name(url)} cannot be fetched ({shown(' '.join(reason.split()), 300)}): see whether the address opens "
            "in a browser, or give the path of a file"
        ) from error


def _receive(response: "requests.Response", url: str) -> bytes:
    too_large = UserError(f"{_name(url)} is larger than the {MAX_BYTES:,} bytes that pictures may have")
    told = response.headers.get("Content-Length", "")
    if told.isdecimal() and int(told) > MAX_BYTES:
        raise too_large
    end = time.monotonic() + _TOTAL_SECONDS
    data = bytearray()
    # read1 returns what there is: a server that sends a byte now and then cannot hold it up.
    while block := response.raw.read1(_BLOCK):
        data += block
        if len(data) > MAX_BYTES:
            raise too_large
        if time.monotonic() > end:
            raise UserError(f"{_name(url)} did not come whole within {_TOTAL_SECONDS:.0f} seconds: try again")
    if told.isdecimal() and len(data) < int(told):
        raise UserError(f"{_name(url)} broke off after {len(data):,} of {int(told):,} bytes: try again")
    return bytes(data)


def _name(where: str) -> str:
    return repr(shown(where, 200))
