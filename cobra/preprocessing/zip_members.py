"""Open single members of a zip archive from any stream without a ZipFile, their headers compared with the directory.

Names of fields are those of PKWARE's APPNOTE.TXT, sections 4.3.7 and 4.5.3.
"""

import io
import struct
import zipfile
from typing import IO

# The directory of 500,000 members has some 60 MB; zipfile reads whatever size the archive states into memory.
_MAX_DIRECTORY_BYTES = 2**28

# A member's own header (APPNOTE 4.3.7): signature, version, flags, method, time and date, CRC, packed size, size,
# length of the name, length of the extra field.
LOCAL_HEADER = struct.Struct("<4s3H4x3L2H")
LOCAL_SIGNATURE = b"PK\x03\x04"
_ZIP64_FIELD = 1
_IN_ZIP64_FIELD = 0xFFFFFFFF
_ENCRYPTED, _SIZES_FOLLOW, UTF8_NAME = 0x1, 0x8, 0x800


class MemberStream(io.BufferedReader):
    """A buffered archive whose directory cannot fill the memory: its size is only what the archive says."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual; raise a BadZipFile where `size` is larger than any directory."""
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory claims to have {size} bytes")
        return super().read(size)


def open_member(stream: IO[bytes], info: zipfile.ZipInfo) -> zipfile.ZipExtFile:
    """Open a member of a zip for reading; its CRC is checked as it is read to the end.

    Unlike ZipFile.open this compares the sizes in the member's header with the directory's, and needs no ZipFile: a
    directory of 100,000 members takes each process 0.6 s and 60 MB to parse. The member reads from `stream`, so one can
    be open at a time; `info` has its true offset.

    Raises:
        zipfile.BadZipFile: No header is there, or it differs from the directory.
        NotImplementedError: It is packed in a way that Python cannot unpack.
    """
    stream.seek(info.header_offset)
    header = stream.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or not header.startswith(LOCAL_SIGNATURE):
        raise zipfile.BadZipFile("no member begins where the directory says")
    _, _, flags, method, crc, packed, size, name_length, extra_length = LOCAL_HEADER.unpack(header)
    name = stream.read(name_length).decode("utf-8" if flags & UTF8_NAME else "cp437", errors="replace")
    extra = stream.read(extra_length)
    if name != info.orig_filename:
        raise zipfile.BadZipFile(f"its header names {name!r}")
    if flags & _ENCRYPTED or method != info.compress_type:
        raise zipfile.BadZipFile("its header states another packing than the directory")
    # Where the sizes follow the data, the header has none.
    if not flags & _SIZES_FOLLOW:
        stated = (crc, *_true_sizes(size, packed, extra))
        if stated != (info.CRC, info.file_size, info.compress_size):
            raise zipfile.BadZipFile(
                f"its header states a CRC of {stated[0]:08x}, {stated[1]} bytes and {stated[2]} packed; the directory "
                f"{info.CRC:08x}, {info.file_size} and {info.compress_size}"
            )
    return zipfile.ZipExtFile(stream, "r", info)


def _true_sizes(size: int, packed: int, extra: bytes) -> tuple[int, int]:
    """Return size and packed size of a member's header, from the zip64 field where they are there (APPNOTE 4.5.3)."""
    if _IN_ZIP64_FIELD not in (size, packed):
        return size, packed
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == _ZIP64_FIELD and length >= 16 and len(extra) >= 20:
            large, large_packed = struct.unpack_from("<2Q", extra, 4)
            return large if size == _IN_ZIP64_FIELD else size, large_packed if packed == _IN_ZIP64_FIELD else packed
        extra = extra[4 + length :]
    return size, packed
