"""Read the archive's directory, and check cheaply that the parts are those that it describes; nothing is read in full.

The directory says at which offset every member begins. A part that is cut short, exchanged with another, missing or too
many puts members elsewhere, and a few of them looked up in each part show which part it is.
"""

import bisect
import itertools
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cobra.preprocessing.archives import DAMAGE_ERRORS
from cobra.preprocessing.llava_cot.archive.joined_parts import JoinedParts, PartsRecord, find_archive
from cobra.preprocessing.zip_members import LOCAL_HEADER, LOCAL_SIGNATURE, UTF8_NAME, MemberStream
from cobra.util.errors import UserError

# Members that are looked up in each part: enough that a damaged one among them does not condemn its part.
_PROBES = 8
_PROBES_THAT_CONDEMN = 3

# A directory's entry without what varies, its end, and what zip64 puts before that (APPNOTE 4.3.12 to 4.3.16).
_ENTRY_BYTES = 46
_END_BYTES = 22
_ZIP64_END_BYTES = 76

_FETCH_AGAIN = "Delete it and fetch it again."


@dataclass(frozen=True)
class ImageArchive:
    """Parts of a zip archive, and its directory."""

    paths: list[Path]
    """The parts in order; those that were deleted too."""
    sizes: list[int]
    """Bytes of each part."""
    members: list[zipfile.ZipInfo]
    """Every member, with its offset in the joined parts."""
    directory_start: int
    """Offset at which the members end."""
    record: PartsRecord | None
    """The record of the parts that were deleted; None if none was."""

    @cached_property
    def starts(self) -> list[int]:
        """The offset of each part, and the size of the whole."""
        return list(itertools.accumulate(self.sizes, initial=0))

    @cached_property
    def by_offset(self) -> list[zipfile.ZipInfo]:
        """The members in the order of the archive."""
        return sorted(self.members, key=lambda info: info.header_offset)

    @cached_property
    def _offsets(self) -> list[int]:
        return [info.header_offset for info in self.by_offset]

    def parts_of(self, info: zipfile.ZipInfo) -> range:
        """Return the positions of the parts that hold a member, its header and what follows its data."""
        following = bisect.bisect_right(self._offsets, info.header_offset)
        end = self._offsets[following] if following < len(self._offsets) else self.directory_start
        return self.parts_between(info.header_offset, end)

    def parts_between(self, start: int, end: int) -> range:
        """Return the positions of the parts that hold the bytes from `start` to before `end`, at least one."""
        first = bisect.bisect_right(self.starts, start, hi=len(self.paths)) - 1
        return range(first, max(bisect.bisect_left(self.starts, end, hi=len(self.paths)), first + 1))

    def probes(self, start: int, end: int) -> dict[int, bytes]:
        """Return the first bytes of the name of some members whose headers lie in a window, by offset from `start`."""
        first, last = bisect.bisect_left(self._offsets, start), bisect.bisect_left(self._offsets, end)
        inside = self.by_offset[first:last]
        return {
            info.header_offset - start: name
            for info in inside[:: max(1, len(inside) // _PROBES)][:_PROBES]
            if info.header_offset + LOCAL_HEADER.size + len(name := _raw_name(info)) <= end
        }


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & UTF8_NAME else "cp437")


def inspect_archive(folder: Path) -> ImageArchive | None:
    """Read the directory of the image archive in `folder` and check its parts; None if there is no archive.

    Raises:
        UserError: A part is missing, cut short, exchanged with another, too many or of another archive; it is named.
    """
    paths = find_archive(folder)
    if not paths:
        return None
    record = PartsRecord.load(folder)
    archive = _open(paths) if record is None else _open_consumed(folder, paths, record)
    _check_places(archive)
    return archive


def _open_consumed(folder: Path, paths: list[Path], record: PartsRecord) -> ImageArchive:
    """Open an archive some parts of which are gone; its directory is in a file of its own."""
    sizes = list(record.sizes.values())
    for path, size in zip(paths, sizes, strict=True):
        if path.is_file() and path.stat().st_size != size:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes instead of {size}: it is cut short, or belongs to another "
                f"revision than the parts that are unpacked and deleted already. {_FETCH_AGAIN}"
            )
    members, _ = read_directory([record.directory_file(folder)])
    # In a file that begins with the directory, all members lie before the file.
    for info in members:
        info.header_offset += record.directory_start
    return ImageArchive(paths, sizes, members, record.directory_start, record)


def _open(paths: list[Path]) -> ImageArchive:
    sizes = [path.stat().st_size for path in paths]
    try:
        members, start = read_directory(paths)
    except (*DAMAGE_ERRORS, ValueError) as error:
        raise UserError(_explain_no_directory(paths, sizes, error)) from error
    # zipfile shifts all offsets when the directory is not where it says it is; the first member then is not at 0.
    shift = min((info.header_offset for info in members), default=0)
    archive = ImageArchive(paths, sizes, members, start, None)
    if shift:
        for info in members:
            info.header_offset -= shift
        raise UserError(_explain_shift(archive, shift))
    return archive


def read_directory(paths: Sequence[Path]) -> tuple[list[zipfile.ZipInfo], int]:
    """Return the members of the archive in these parts and the offset of its directory, as zipfile understands them.

    Raises:
        zipfile.BadZipFile: The parts do not end with a directory; other `DAMAGE_ERRORS` and ValueError too.
    """
    joined = JoinedParts(paths)
    with MemberStream(joined) as stream, zipfile.ZipFile(stream) as file:
        members = file.infolist()
        entries = sum(_ENTRY_BYTES + len(_raw_name(info)) + len(info.extra) + len(info.comment) for info in members)
        # zipfile takes up to 64 KiB of anything after the end for a comment.
        surplus = joined.size - file.start_dir - entries - _END_BYTES - len(file.comment)
        if surplus not in (0, _ZIP64_END_BYTES):
            raise zipfile.BadZipFile("other bytes follow its directory")
        return members, file.start_dir


def _reads_well(paths: Sequence[Path]) -> bool:
    try:
        members, _ = read_directory(paths)
    except (*DAMAGE_ERRORS, ValueError):
        return False
    return min((info.header_offset for info in members), default=0) == 0


def _explain_no_directory(paths: list[Path], sizes: list[int], error: Exception) -> str:
    """Say why the parts do not end with the archive's directory."""
    last = paths[-1]
    for count in range(len(paths) - 1, 0, -1):
        if _reads_well(paths[:count]):
            extra = ", ".join(path.name for path in paths[count:])
            return f"{last.parent}: the archive ends with {paths[count - 1].name}, but {extra} follows. Move it away."
    for index, path in enumerate(paths[:-1]):
        if _reads_well([*paths[:index], last, *paths[index + 1 : -1], path]):
            return (
                f"{last.parent}: {path.name} holds what belongs to {last.name}, the end of the archive. Exchange the "
                "two, or delete them and fetch them again."
            )
    if len(paths) > 2 and sizes[-1] == sizes[0]:
        what = f"parts after {last.name} are missing (it is as large as the others, the last one seldom is)"
    else:
        what = "the last part is cut short, or parts after it are missing"
    return (
        f"{_describe(paths)} cannot be read as a zip archive ({error}): {what}.{_odd_sizes(paths, sizes)} Delete "
        f"{last.name} and fetch it and what follows it again."
    )


def _explain_shift(archive: ImageArchive, shift: int) -> str:
    """Say which part has `shift` bytes too many (fewer where negative); offsets are as they would be without them."""
    if shift in archive.sizes and (extra := _part_too_many(archive, shift)):
        return (
            f"{archive.paths[0].parent}: {extra.name} does not belong to the archive, or is there twice. Move it away, "
            "and name the parts after it as they were."
        )
    what = f"{-shift} bytes are missing from" if shift < 0 else f"{shift} bytes are too many in"
    odd = _odd_sizes(archive.paths, archive.sizes)
    index = _shifting_part(archive, shift)
    guess = f" The members are out of place from {archive.paths[index].name} on." if index is not None else ""
    return f"{what} {_describe(archive.paths)}: a part is cut short, missing or there twice.{guess}{odd} {_FETCH_AGAIN}"


def _shifting_part(archive: ImageArchive, shift: int) -> int | None:
    """Return the position of the part in or after which members begin to be `shift` bytes from their places."""
    for index, path in enumerate(archive.paths):
        start, end = archive.starts[index], archive.starts[index + 1]
        if _matches(path, archive.probes(start - shift, end - shift)):
            return index if _matches(path, archive.probes(start, end)) else max(index - 1, 0)
    return None


def _part_too_many(archive: ImageArchive, size: int) -> Path | None:
    """Return the part of `size` bytes without which all members are where they should be; None if there is none."""
    for index in reversed(range(len(archive.paths))):
        if archive.sizes[index] == size:
            paths, sizes = list(archive.paths), list(archive.sizes)
            del paths[index], sizes[index]
            without = replace(archive, paths=paths, sizes=sizes, directory_start=archive.directory_start - size)
            if all(_matches(path, probes) or not probes for path, probes in _expected(without)):
                return archive.paths[index]
    return None


def _expected(archive: ImageArchive) -> list[tuple[Path, dict[int, bytes]]]:
    """Return each part with the probes that it should match."""
    bounds = itertools.pairwise(archive.starts)
    return [(path, archive.probes(*bound)) for path, bound in zip(archive.paths, bounds, strict=True)]


def _matches(path: Path, probes: dict[int, bytes]) -> int:
    """Return how many members with these names (by offset in the file) the file holds."""
    matches = 0
    with path.open("rb") as file:
        for offset, name in probes.items():
            file.seek(offset)
            header = file.read(LOCAL_HEADER.size + len(name))
            matches += header.startswith(LOCAL_SIGNATURE) and header[LOCAL_HEADER.size :] == name
    return matches


def _check_places(archive: ImageArchive) -> None:
    """Check that each part that is there holds what the directory puts there."""
    expected = _expected(archive)
    strange = [(path, probes) for path, probes in expected if path.is_file() and probes and not _matches(path, probes)]
    exchanged = [
        f"{path.name} holds what belongs to {owner.name}"
        for path, _ in strange
        for owner, probes in expected
        if owner != path and probes and _matches(path, probes)
    ]
    if exchanged:
        raise UserError(
            f"{archive.paths[0].parent}: {', '.join(exchanged)}. Give them their names, or delete them and fetch them "
            "again."
        )
    for path, probes in strange:
        # Fewer may have been hit by chance; their members are named as damaged when they are read.
        if len(probes) >= _PROBES_THAT_CONDEMN:
            raise UserError(
                f"{path} does not hold the members that the archive's directory puts there: it is damaged, or belongs "
                f"to another revision than the last part. {_FETCH_AGAIN}"
            )


def _describe(paths: Sequence[Path]) -> str:
    first, last = paths[0], paths[-1]
    return str(first) if first == last else f"{first.parent} ({first.name} to {last.name})"


def _odd_sizes(paths: Sequence[Path], sizes: Sequence[int]) -> str:
    """Name the parts whose size differs from most others'; the last one may be smaller."""
    usual = Counter(sizes[:-1]).most_common(1)
    if not usual or usual[0][1] < 2:
        return ""
    pairs = list(zip(paths, sizes, strict=True))
    odd = [f"{path.name} ({size} bytes)" for path, size in pairs[:-1] if size != usual[0][0]]
    odd += [f"{path.name} ({size} bytes)" for path, size in pairs[-1:] if size > usual[0][0]]
    return f" Most parts have {usual[0][0]} bytes, but not {', '.join(odd)}." if odd else ""
