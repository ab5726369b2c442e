"""Unpack zip and tar archives from the network without trusting them.

Nothing is written outside the destination, links and special files are never made, and an archive that would unfold to
an absurd size is refused. Every file appears under its name only when it is whole, so a rerun skips by size.
"""

import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cobra.preprocessing.progress import byte_progress
from cobra.preprocessing.zip_members import LOCAL_HEADER, MemberStream, open_member
from cobra.util.errors import UserError, disk_errors

# Deflate reaches 1032:1 on constant bytes; images and annotation files stay under 10:1. Small members are let be.
MAX_RATIO = 200
RATIO_FLOOR_BYTES = 64 * 2**20

# What zipfile and the decompressors raise on damaged data.
DAMAGE_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, UnicodeDecodeError)

_BLOCK_BYTES = 2**20
_BUFFER_BYTES = 2**16
_DISK_BLOCK_BYTES = 2**12
# Linux takes paths of 4,095 bytes, macOS of 1,023; the folder that they lie in counts too.
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 800
_TEMPORARY = re.compile(r"\.unpacking\.[0-9]+\.part")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DEVICE = re.compile(r"(^|/)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.[^/]*)?(/|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Refusal:
    """A member of an archive that is not unpacked, and the reason."""

    member: str
    reason: str


def unsafe_name(name: str) -> str | None:
    """Return why `name`, with `/` between folders, may not become a path below a folder; None if it may."""
    if name.strip("./") == "" and ".." not in name or _CONTROL.search(name):
        return "is empty or holds control characters"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\\" in name:
        return "is an absolute path or holds a drive letter or backslash"
    parts = name.split("/")
    if ".." in parts:
        return "leads out of its folder"
    if _DEVICE.search(name):
        return "is the name of a device"
    try:
        longest, whole = max(len(part.encode()) for part in parts), len(name.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if longest > _MAX_NAME_BYTES or whole > _MAX_PATH_BYTES:
        return f"is longer than {_MAX_NAME_BYTES} bytes a part, or {_MAX_PATH_BYTES} in all"
    return None


def member_path(name: str) -> str:
    """Return a safe member name without `./` and doubled slashes."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def sort_out_members(infos: Sequence[zipfile.ZipInfo], end: int) -> tuple[list[zipfile.ZipInfo], list[Refusal]]:
    """Divide the files of a zip's directory into those to unpack and those to refuse; folders are dropped.

    The directory alone decides, nothing is read: no more bytes are ever written than the directory states. The members
    have their true offsets; at the offset `end` they end and the directory begins.
    """
    good: list[zipfile.ZipInfo] = []
    refused: list[Refusal] = []
    overlaps, names = _overlaps(infos, end), NameClaims()
    for position, info in enumerate(infos):
        # Not ZipInfo.is_dir, which raises an IndexError where the name is empty (Python 3.11).
        if info.filename.endswith("/"):
            continue
        problem = unsafe_name(info.filename) or _zip_problem(info) or overlaps.get(position)
        if problem := problem or names.claim(member_path(info.filename)):
            refused.append(Refusal(info.filename, problem))
        else:
            good.append(info)
    return good, refused


class NameClaims:
    """Names that files of an archive have taken, compared as file systems do that ignore case or normalise letters."""

    def __init__(self) -> None:
        # By the folded name: the name itself, or that of the first member inside the folder.
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def claim(self, name: str) -> str | None:
        """Take `name`, as :func:`member_path` gives it; return why it collides with an earlier one, or None.

        Folders that differ only in case are one folder on some systems and two on others; neither loses a file.
        """
        key = name.lower()
        if not name.isascii():
            key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        parents = [key[: match.start()] for match in re.finditer("/", key)]
        twin = self._files.get(key)
        if twin is not None and twin != name:
            return f"collides with {twin!r} where upper and lower case, or two forms of a letter, are the same"
        collision = twin or self._folders.get(key) or next(filter(None, map(self._files.get, parents)), None)
        if collision is not None:
            return f"is there twice, or is a file and a folder at once (beside {collision!r})"
        self._files[key] = name
        for parent in parents:
            self._folders.setdefault(parent, name)
        return None


def _overlaps(infos: Sequence[zipfile.ZipInfo], end: int) -> dict[int, str]:
    """Return by position in `infos` which members claim bytes that are not theirs."""
    overlaps: dict[int, str] = {}
    next_start, next_name = end, "the directory"
    for position in sorted(range(len(infos)), key=lambda at: infos[at].header_offset, reverse=True):
        info = infos[position]
        # The name has at least a byte a letter; what else lies between header and data is not known here.
        least_end = info.header_offset + LOCAL_HEADER.size + len(info.orig_filename) + info.compress_size
        if info.header_offset < 0 or least_end > next_start:
            overlaps[position] = f"claims bytes of the archive that belong to {next_name}"
        next_start, next_name = info.header_offset, repr(info.filename)
    return overlaps


def _zip_problem(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a device or another special file"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.file_size > max(RATIO_FLOOR_BYTES, MAX_RATIO * info.compress_size):
        return f"unfolds from {info.compress_size} to {info.file_size} bytes"
    return None


def check_total(archive: str, packed_bytes: int, unpacked_bytes: int) -> None:
    """Raise a UserError if an archive's members, overlapping ones too, unfold to an absurd multiple of its size."""
    if unpacked_bytes > max(RATIO_FLOOR_BYTES, MAX_RATIO * packed_bytes):
        raise UserError(
            f"{archive} has {packed_bytes} bytes and would unfold to {unpacked_bytes}, more than {MAX_RATIO} times as "
            "much: it is damaged or hostile and was not unpacked. Delete it and fetch it again."
        )


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise a UserError if the file system of `folder`, which exists, has fewer free bytes than `needed_bytes`."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise UserError(
            f"{folder} needs {needed_bytes / 1e9:.2f} GB more and its disk has {free / 1e9:.2f} GB free: free some "
            "space and run the same command again; what is there already is kept"
        )


def disk_bytes(size: int) -> int:
    """Return what a file of `size` bytes takes on a disk that gives files whole blocks, as most do."""
    return -(-size // _DISK_BLOCK_BYTES) * _DISK_BLOCK_BYTES


def is_whole(target: Path, size: int) -> bool:
    """Return True if `target` has the size stated: :func:`write_member` never leaves a part under that name."""
    return target.is_file() and target.stat().st_size == size


def link_problem(destination: Path, folder: str) -> str | None:
    """Return why nothing may be written into `folder` (relative, may be empty) below `destination`; None if it may.

    A link that the user made directly below `destination`, to another disk say, is followed: nothing here makes links.
    A deeper one may come from an archive that another program unpacked, and must not lead anywhere else.
    """
    ends = (*(match.start() for match in re.finditer("/", folder)), len(folder))
    if not any(os.path.islink(f"{destination}/{folder[:end]}") for end in ends):
        return None
    base = os.path.realpath(destination)
    real = os.path.realpath(os.path.join(base, folder))
    homes = (base, os.path.realpath(os.path.join(base, folder.partition("/")[0])))
    if any(os.path.commonpath((home, real)) == home for home in homes):
        return None
    return f"lies below a link that leads out of {destination}, to {real}"


def split_linked(
    destination: Path, members: Mapping[str, zipfile.ZipInfo]
) -> tuple[dict[str, zipfile.ZipInfo], list[Refusal]]:
    """Divide members, by their paths below `destination`, into those to unpack and those that a link would lead out."""
    folders = {path: path.rpartition("/")[0] for path in members}
    problems = {folder: problem for folder in set(folders.values()) if (problem := link_problem(destination, folder))}
    kept = {path: info for path, info in members.items() if folders[path] not in problems}
    refused = [Refusal(members[path].filename, problems[folders[path]]) for path in members if path not in kept]
    return kept, refused


def write_member(
    source: IO[bytes] | io.BufferedIOBase, target: Path | str, size: int, advance: Callable[[int], None]
) -> None:
    """Copy `source` to `target`, whole or not at all.

    Not flushed to disk each: 100,000 flushes would take longer than the copy. A file that a power cut leaves short is
    found by its size. What a kill leaves, :func:`remove_temporaries` removes. The reader of `source` checks the CRC;
    the folders of `target` are made; `advance` is called with the bytes of every block written.

    Raises:
        EOFError: The member has not the `size` that the archive's directory states.
    """
    # The process is in the name because one of a killed run may still be writing.
    temporary = f"{os.path.dirname(target)}/.unpacking.{os.getpid()}.part"
    written = 0
    try:
        with _create(temporary) as file:
            while block := source.read(_BLOCK_BYTES):
                file.write(block)
                written += len(block)
                advance(len(block))
        if written != size:
            raise EOFError(f"{written} bytes instead of {size}")
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _create(path: str) -> IO[bytes]:
    """Open a new file, and make its folder where it is not there: to look first would take longer than the copy."""
    try:
        return open(path, "wb", buffering=_BUFFER_BYTES)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return open(path, "wb", buffering=_BUFFER_BYTES)


def remove_temporaries(folders: Iterable[Path]) -> None:
    """Remove what processes that were killed in :func:`write_member` left in these folders, which need not exist."""
    for folder in filter(Path.is_dir, folders):
        for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
            (folder / name).unlink()


def extract_archive(archive: Path, destination: Path) -> None:
    """Unpack a zip or tar archive (tar also as gz, bz2 or xz) below `destination`, skipping files that are whole.

    Raises:
        UserError: It is neither, is damaged, holds a member that is refused, or does not fit on the disk. Of a zip
            with a refused member nothing is written; of a tar, which has no directory, what comes before it.
    """
    with disk_errors(f"unpacking into {destination} stopped"):
        destination.mkdir(parents=True, exist_ok=True)
        try:
            if zipfile.is_zipfile(archive):
                _extract_zip(archive, destination)
            elif tarfile.is_tarfile(archive):
                _extract_tar(archive, destination)
            else:
                raise UserError(f"{archive} is neither a zip nor a tar archive: delete it and fetch it again")
        except (*DAMAGE_ERRORS, tarfile.TarError) as error:
            raise UserError(f"{archive} is damaged ({error}): delete it and fetch it again") from error


def _extract_zip(archive: Path, destination: Path) -> None:
    with MemberStream(archive.open("rb", buffering=0)) as stream:
        directory = zipfile.ZipFile(stream)
        members, refused = sort_out_members(directory.infolist(), directory.start_dir)
        _, linked = split_linked(destination, {member_path(info.filename): info for info in members})
        if refused or linked:
            raise _refusal(archive, refused + linked)
        total = sum(info.file_size for info in members)
        check_total(str(archive), archive.stat().st_size, total)
        absent = [info for info in members if not is_whole(destination / info.filename, info.file_size)]
        left = sum(info.file_size for info in absent)
        check_free_space(destination, left)
        remove_temporaries({(destination / info.filename).parent for info in absent})
        with byte_progress(f"unpacking {archive.name}", total, total - left) as advance:
            for info in absent:
                with open_member(stream, info) as source:
                    write_member(source, destination / info.filename, info.file_size, advance)


def _extract_tar(archive: Path, destination: Path) -> None:
    packed, total = archive.stat().st_size, 0
    names = NameClaims()
    cleaned: set[Path] = set()
    with tarfile.open(archive) as file, byte_progress(f"unpacking {archive.name}", None) as advance:
        for member in file:
            # The header counts too: tarfile keeps each in memory, and millions of empty files pack well.
            total += tarfile.BLOCKSIZE + member.size
            check_total(str(archive), packed, total)
            if member.isdir():
                continue
            problem = unsafe_name(member.name) or _tar_problem(member, names, destination)
            source = file.extractfile(member) if problem is None else None
            if source is None:
                raise _refusal(archive, [Refusal(member.name, problem or "cannot be read")])
            target = destination / member.name
            if not is_whole(target, member.size):
                if target.parent not in cleaned:
                    remove_temporaries([target.parent])
                    cleaned.add(target.parent)
                check_free_space(destination, member.size)
                write_member(source, target, member.size, advance)


def _tar_problem(member: tarfile.TarInfo, names: NameClaims, destination: Path) -> str | None:
    """Return why a member with a safe name may not be unpacked; its name is claimed."""
    if not member.isfile():
        return "is a link, a device or another special file"
    name = member_path(member.name)
    return names.claim(name) or link_problem(destination, name.rpartition("/")[0])


def _refusal(archive: Path, refused: Sequence[Refusal]) -> UserError:
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    return UserError(
        f"{archive} was not unpacked: its member {refused[0].member!r} {refused[0].reason}{more}. Such an archive is "
        "not the published one: delete it and fetch it again from its source."
    )
