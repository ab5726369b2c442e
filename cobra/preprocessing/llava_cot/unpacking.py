"""Images out of the archive and into the folder, member by member, where the rows' paths find them."""

import io
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cobra.preprocessing.archives import (
    DAMAGE_ERRORS,
    Refusal,
    check_free_space,
    check_total,
    is_whole,
    member_path,
    sort_out_members,
    write_member,
)
from cobra.preprocessing.llava_cot.joining import JoinedParts
from cobra.preprocessing.progress import byte_progress
from cobra.util.errors import UserError

# Only images are unpacked: a member `train.jsonl` in an archive without a top folder would overwrite the rows.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}

# Rows that are looked up by their endings to find candidates for the prefix; all others only count.
_PROBED = 50
# Top folders of the archive that are tried besides.
_TOPS = 20


@dataclass
class Unpacked:
    """What came of unpacking."""

    prefix: str
    """The folders in front of the rows' paths in the archive, e.g. `images/`; empty if there are none."""
    images: int
    """Images of the archive that are whole on the disk now."""
    new: int
    """Those of them that this call wrote."""
    other_files: int
    """Members that were left alone: no images, or outside the prefix."""
    refused: list[Refusal] = field(default_factory=list)
    """Members that are not safe to unpack."""
    damaged: list[Refusal] = field(default_factory=list)
    """Members that could not be read, with the part they begin in."""


def find_prefix(members: Collection[str], images: Sequence[str]) -> str | None:
    """Find what stands in the archive in front of the rows' image paths.

    Args:
        members: Names of the archive's files.
        images: Image paths of rows.

    Returns:
        The prefix under which most of `images` are members, the shortest of equals; None if none of them is.
    """
    endings: dict[str, list[str]] = {}
    for name in members:
        endings.setdefault(name.rsplit("/", 1)[-1], []).append(name)
    candidates = {
        name.removesuffix(image)
        for image in images[:_PROBED]
        for name in endings.get(image.rsplit("/", 1)[-1], ())
        if name == image or name.endswith("/" + image)
    }
    # Where the first rows' images are all missing, the top folders are worth a try.
    tops = Counter(name.partition("/")[0] + "/" for name in members if "/" in name)
    candidates |= {"", *(top for top, _ in tops.most_common(_TOPS))}
    return _best(candidates, lambda prefix: sum(prefix + image in members for image in images))


def find_root(folder: Path, images: Sequence[str]) -> str | None:
    """Find the subfolder of `folder` under which most of `images` are files.

    Returns:
        The empty string, or a path with a slash at its end such as `images/`; None if none of `images` is a file.
    """
    names = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    # `unzip` into a folder `images` of an archive that has one too.
    candidates = ["", *(f"{name}/" for name in names), *(f"{name}/{name}/" for name in names)]
    return _best(candidates, lambda prefix: sum((folder / (prefix + image)).is_file() for image in images))


def _best(candidates: Iterable[str], score: Callable[[str], int]) -> str | None:
    scores = {candidate: score(candidate) for candidate in candidates}
    best = min(scores, key=lambda candidate: (-scores[candidate], len(candidate), candidate))
    return best if scores[best] else None


def unpack_images(parts: Sequence[Path], destination: Path, images: Sequence[str]) -> Unpacked | None:
    """Unpack the images of the archive below `destination`, so that the rows' paths are theirs.

    Images that are there with their size are skipped, so a rerun goes on where the last one stopped; each is checked
    by its CRC and appears under its name only when it is whole. Unsafe and damaged members are left out and returned.

    Args:
        parts: The archive, as :func:`find_archive` returns it.
        destination: The image root.
        images: Image paths of rows, to find the archive's prefix with.

    Returns:
        What came of it; None if none of `images` is in the archive.

    Raises:
        UserError: The archive cannot be read, would unfold to an absurd size, or does not fit on the disk.
    """
    with JoinedParts(parts) as joined, io.BufferedReader(joined, 2**18) as stream, _open(stream, joined) as archive:
        members, refused = sort_out_members(archive.infolist())
        names = {member_path(info.filename): info for info in members}
        prefix = find_prefix(names.keys(), images)
        if prefix is None:
            return None
        targets = {
            name.removeprefix(prefix): info
            for name, info in names.items()
            if name.startswith(prefix) and Path(name).suffix.lower() in IMAGE_SUFFIXES
        }
        result = Unpacked(prefix, len(targets), 0, len(members) - len(targets), refused)
        _write_all(archive, joined, targets, destination, result)
    return result


def _write_all(
    archive: zipfile.ZipFile,
    joined: JoinedParts,
    targets: dict[str, zipfile.ZipInfo],
    destination: Path,
    result: Unpacked,
) -> None:
    """Write the members that are not there yet, in the order of the archive, and count them in `result`."""
    total = sum(info.file_size for info in targets.values())
    check_total(f"the archive of images ({joined.paths[0]} ...)", joined.size, total)
    absent = {
        path: info
        for path, info in sorted(targets.items(), key=lambda item: item[1].header_offset)
        if not is_whole(destination / path, info.file_size)
    }
    left = sum(info.file_size for info in absent.values())
    check_free_space(destination, left)
    with byte_progress("unpacking images", total, total - left) as advance:
        for path, info in absent.items():
            try:
                with archive.open(info) as source:
                    write_member(source, destination / path, info.file_size, advance)
                result.new += 1
            except DAMAGE_ERRORS as error:
                part = joined.part_at(info.header_offset).name
                result.damaged.append(Refusal(info.filename, f"cannot be read from {part}: {error}"))
    result.images -= len(result.damaged)


def _open(stream: IO[bytes], joined: JoinedParts) -> zipfile.ZipFile:
    """Open the archive and check that no byte is missing or too many before its directory."""
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UserError(
            f"{_describe(joined)} cannot be read as a zip archive ({error}): the last part is cut short, or parts "
            f"after it are missing.{_odd_sizes(joined)} Delete that part and fetch it again."
        ) from error
    # zipfile shifts all offsets when the directory is not where it says it is; the first member then is not at 0.
    shift = min((info.header_offset for info in archive.infolist()), default=0)
    if shift:
        what = f"{-shift} bytes are missing from" if shift < 0 else f"{shift} bytes are too many in"
        raise UserError(
            f"{what} {_describe(joined)}: a part is cut short, missing or there twice.{_odd_sizes(joined)} Delete it "
            "and fetch it again."
        )
    return archive


def _describe(joined: JoinedParts) -> str:
    first, last = joined.paths[0], joined.paths[-1]
    return str(first) if first == last else f"{first.parent} ({first.name} to {last.name})"


def _odd_sizes(joined: JoinedParts) -> str:
    """Name the parts whose size differs from most others'; the last one may be smaller."""
    usual = Counter(joined.sizes[:-1]).most_common(1)
    if not usual or usual[0][1] < 2:
        return ""
    pairs = list(zip(joined.paths, joined.sizes, strict=True))
    odd = [f"{path.name} ({size} bytes)" for path, size in pairs[:-1] if size != usual[0][0]]
    odd += [f"{path.name} ({size} bytes)" for path, size in pairs[-1:] if size > usual[0][0]]
    return f" Most parts have {usual[0][0]} bytes, but not {', '.join(odd)}." if odd else ""
