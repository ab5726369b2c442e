"""Picture decoding: the one place where files become pixels.

Pillow does it, because nothing at hand is faster with the same pixels. On 120 photos of COCO, decoded and resized to
384 pixels on one core (166 a second), its draft mode took 1.00 of its time, torchvision 1.03 and simplejpeg 1.01, with
the same pixels: all are libjpeg-turbo, and 60 % of the time is the resize. Draft mode changes pictures of 768 pixels
and more; simplejpeg differs in CMYK and reads JPEG alone; torchvision reads 16-bit PNG to 16 bits.
`benchmarks/dataset.py` measures it again.
"""

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

from cobra.util.files import kind_of_content
from cobra.util.jpeg import complete_jpeg, is_cut_jpeg
from cobra.util.redaction import reason
from cobra.util.rgb import to_rgb

# Named one by one, so that a new release of Pillow opens nothing that has not been looked at. Left out on purpose: EPS
# (starts Ghostscript), WMF (Windows' own code), BUFR, FITS, GRIB, HDF5 and MPEG (no decoder in Pillow), PSD and others
# that no data set of photos has.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO", "TGA")

# Bytes of a file at most: the largest pictures that Pillow opens, 179 million pixels, take 0.5 GB uncompressed.
_MAX_BYTES = 2**30
# Bytes of a file that may lack only its end: it is read into memory.
_MAX_MENDED_BYTES = 2**26

_DAMAGED = "it is damaged, or breaks off: fetch it again"
# First bytes of files that are no whole pictures, in lower case, with the explanation.
_STRANGERS = (
    ((b"<svg", b"<?xml"), "it is XML or SVG text, which has no pixels: convert it to PNG"),
    ((b"{", b"["), "it is JSON text: its download has failed"),
    ((b"%pdf", b"%!ps", b"8bps"), "it is a PDF, PostScript or Photoshop file: convert it to PNG"),
    # Pictures of which too little is there to be told apart.
    ((b"\xff\xd8", b"\x89png", b"gif8", b"riff", b"ii*\x00", b"mm\x00*", b"\x00\x00\x00\x0cjp"), _DAMAGED),
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")

# Turn that makes a picture upright, by the number that its EXIF data state (EXIF 3.0, 4.6.5.1); 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImageError(OSError):
    """A file is no picture, or none that can be read whole; the text says why, and leaves naming it to the caller."""


class Header(NamedTuple):
    """Facts that a file states of its first picture."""

    format: str
    """Pillow's name."""
    width: int
    height: int
    mode: str
    """Pillow's name: `RGB`, or `L` for greys, say."""
    turned: bool
    """True where EXIF turns the picture for viewers."""


def read_rgb(file: Path | str | IO[bytes]) -> Image.Image:
    """Decode the first picture of a file to RGB, (height, width, 3) of 8 bits, as it is stored: EXIF does not turn it.

    That is how Cobra reads the pictures of training and benchmark. (TIFF is turned by Pillow itself.)

    Args:
        file: A file in one of :data:`FORMATS`, told by its content, or its bytes. A JPEG file may lack its end marker
            if every pixel is there.

    Raises:
        FileNotFoundError: There is no such file.
        BadImageError: It cannot be opened, is no picture, or breaks off, has more than twice
            `PIL.Image.MAX_IMAGE_PIXELS`, or is not a regular file (a pipe would be waited for).
    """
    return _decode(file, quick=False)[0]


def read_upright(file: Path | str | IO[bytes]) -> tuple[Image.Image, bool]:
    """Decode a picture as :func:`read_rgb` does, turned as EXIF says and viewers show it; True if it is stored turned.

    Raises:
        OSError: See :func:`read_rgb`.
    """
    picture, turn = _decode(file, quick=False)
    return (picture, False) if turn is None else (picture.transpose(turn), True)


def check_decodes(file: Path | str | IO[bytes]) -> None:
    """Decode the first picture of a file as :func:`read_rgb` would, and keep nothing of it.

    JPEG is decoded to an eighth of its size: all its data are read and checked as ever, in half the time or less.

    Raises:
        OSError: See :func:`read_rgb`.
    """
    _decode(file, quick=True)


def read_header(file: Path | str | IO[bytes]) -> Header:
    """Return what the header of a file's first picture states; no pixel is read.

    Raises:
        OSError: See :func:`read_rgb`, so far as the header tells.
    """
    with _picture_errors(file), Image.open(file, formats=FORMATS) as image:
        return Header(str(image.format), *image.size, image.mode, _upright_turn(image) is not None)


def file_status(path: Path | str) -> os.stat_result:
    """Return the status of a file that may be opened.

    Raises:
        FileNotFoundError: There is no such file.
        BadImageError: It cannot be reached, is too large, or no regular file: a pipe would be waited for.
    """
    try:
        status = os.stat(path)
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from error
    except FileNotFoundError:
        raise
    # A name with a NUL or half a surrogate pair raises a ValueError.
    except (OSError, ValueError) as error:
        raise BadImageError(getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise BadImageError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
    if status.st_size > _MAX_BYTES:
        raise BadImageError(f"it has {status.st_size:,} bytes, and pictures may have {_MAX_BYTES:,}")
    return status


def _decode(file: Path | str | IO[bytes], quick: bool) -> tuple[Image.Image, Image.Transpose | None]:
    """Return a picture as it is stored, and what turns it upright."""
    with _picture_errors(file):
        with Image.open(file, formats=FORMATS) as image:
            if quick:
                image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
            try:
                image.load()
            except OSError:
                data = _read_bytes(file)
                if data is None or not is_cut_jpeg(data) or (whole := complete_jpeg(data)) is None:
                    raise
                return to_rgb(whole), _upright_turn(whole)
            return to_rgb(image), _upright_turn(image)


def _upright_turn(image: Image.Image) -> Image.Transpose | None:
    """Return what the EXIF data of a decoded picture ask for, where Pillow has not done it already."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    # Damaged EXIF data raise errors of almost any kind; the picture itself is good.
    except Exception:  # noqa: BLE001
        return None


@contextmanager
def _picture_errors(file: Path | str | IO[bytes]) -> Iterator[None]:
    """Look at a file before it is opened, and put in words what its decoder raises."""
    if isinstance(file, Path | str):
        file_status(file)
    try:
        with warnings.catch_warnings():
            # Warnings are of odd palettes, damaged EXIF and large pictures, which all decode.
            warnings.simplefilter("ignore")
            yield
    # It may have vanished meanwhile.
    except FileNotFoundError:
        raise
    # Decoders answer damaged files with errors of almost any kind.
    except Exception as error:
        raise BadImageError(_explain(file, error)) from error


def _explain(file: Path | str | IO[bytes], error: Exception) -> str:
    """Return why a file cannot be read, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    problem = reason(error)
    if not isinstance(error, UnidentifiedImageError):
        data = _read_bytes(file) if isinstance(error, OSError) else None
        if "truncated" in problem.lower() or (data is not None and is_cut_jpeg(data)):
            return f"it breaks off before its end: fetch it again ({problem})"
        return f"{_DAMAGED} ({problem})" if isinstance(error, OSError | SyntaxError) else problem
    begin = (_read_bytes(file, 512) or b"").lower()
    if not begin:
        return "it is empty"
    if begin[4:8] == b"ftyp" and begin[8:12] in _HEIF_BRANDS:
        return "it is HEIC, which is not read: convert it to JPEG"
    if begin[4:12] == b"ftypavif":
        return _DAMAGED
    if kind := kind_of_content(begin):
        return f"it is {kind}"
    texts = (text for beginnings, text in _STRANGERS if begin.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(beginnings))
    return next(texts, f"it is in none of the formats {', '.join(FORMATS)}")


def _read_bytes(file: Path | str | IO[bytes], size: int | None = None) -> bytes | None:
    """Return the bytes of a file, or its first ones; None where it is too large to be read whole."""
    if isinstance(file, Path | str):
        with open(file, "rb") as opened:
            return _read_bytes(opened, size)
    if size is None and file.seek(0, os.SEEK_END) > _MAX_MENDED_BYTES:
        return None
    file.seek(0)
    return file.read(-1 if size is None else size)
