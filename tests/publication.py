"""A synthetic LLaVA-CoT-100k in its published form: parts cut inside members, every known defect in known numbers.

Everything follows from the seed.
"""

import io
import random
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO
from unittest import mock

import numpy as np
from PIL import Image
from publication_rows import Expected, Rows, Shape, image_paths

BOMB_BYTES = 80 * 2**20
# Members that may not be unpacked: name below the top folder, Unix mode.
HOSTILE = (
    ("../../../../../evil.png", 0o100644),
    ("sqa/../../evil.png", 0o100644),
    ("sqa/link.png", 0o120777),
    ("sqa/pipe.png", 0o010644),
    ("sqa/con.png", 0o100644),
    ("sqa\\..\\evil.png", 0o100644),
)
LITTER = (".DS_Store", "readme.txt", "train.jsonl")


def write_publication(folder: Path, shape: Shape) -> Expected:
    """Write train.jsonl and the parts of image.zip into `folder`, in bounded memory, and return what they lead to."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = image_paths(shape.images)
    random.Random(shape.seed).shuffle(paths)
    rows = Rows(shape, paths)
    with (folder / "train.jsonl").open("wb") as file:
        file.writelines(line + b"\n" for line in rows.lines())
    expected = rows.expected
    bad = Counter(rows.bad_images.values())
    expected.missing_images = bad["missing"] + bad["damaged"]
    expected.unreadable_images = bad["truncated"] + bad["text"] + bad["empty"]
    expected.archive = {
        "prefix": shape.top,
        "images": shape.images + expected.unreadable_images,
        "damaged_members": bad["damaged"],
        "refused_members": len(HOSTILE) + 1,
    }
    whole = folder / "image.zip"
    _write_zip(whole, shape, paths, rows.bad_images)
    _cut(whole, shape.parts)
    whole.unlink()
    return expected


def _write_zip(target: Path, shape: Shape, paths: Sequence[str], bad_images: dict[str, str]) -> None:
    """Write the archive with zip64 in every member's header and directory entry; damage the members that shall be."""
    pictures = Pictures(shape.seed)
    contents = {path: None for path in [*paths, *bad_images]}
    order = sorted(contents)
    # 0: as if every size and offset were beyond 4 GB.
    with mock.patch.object(zipfile, "ZIP64_LIMIT", 0), zipfile.ZipFile(target, "w") as archive:

        def add(name: str, content: Iterator[bytes], mode: int = 0o100644) -> None:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_STORED if name.endswith(".jpg") else zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as member:
                member.writelines(content)

        add("__MACOSX/._images", iter([b"litter"]))
        for name in LITTER:
            add(shape.top + name, iter([b"not an image"]))
        for path in order:
            how = bad_images.get(path)
            if how != "missing":
                add(shape.top + path, iter([pictures.make(path, how)]))
        for name, mode in HOSTILE:
            add(shape.top + name, iter([b"/etc/passwd"]), mode)
        add(shape.top + "sqa/bomb.png", (bytes(2**20) for _ in range(BOMB_BYTES // 2**20)))
    with zipfile.ZipFile(target) as archive, target.open("r+b") as file:
        for path, how in bad_images.items():
            if how == "damaged":
                _flip_byte(file, archive.getinfo(shape.top + path))


def _flip_byte(file: IO[bytes], info: zipfile.ZipInfo) -> None:
    """Change one byte of a member's data: behind the header of 30 bytes, the name and the zip64 field of 20 bytes."""
    file.seek(info.header_offset + 30 + len(info.filename.encode()) + 20 + info.compress_size // 2)
    byte = file.read(1)
    file.seek(-1, io.SEEK_CUR)
    file.write(bytes([byte[0] ^ 255]))


def _cut(whole: Path, parts: int) -> None:
    """Cut a file into `whole.part-aa` and on, all but the last of the same odd size."""
    size = -(-whole.stat().st_size // parts) | 1
    with whole.open("rb") as file:
        for number in range(parts):
            suffix = chr(97 + number // 26) + chr(97 + number % 26)
            whole.with_name(f"{whole.name}.part-{suffix}").write_bytes(file.read(size))


class Pictures:
    """Small pictures with distinct bytes: a few templates and noise, in several modes."""

    def __init__(self, seed: int) -> None:
        self._noise = np.random.default_rng(seed)
        rows, columns = np.mgrid[0:24, 0:32]
        self._templates = [
            np.stack([rows * a + columns * b, rows * c, np.full_like(rows, 20 * d)], -1)
            for a, b, c, d in ((1, 4, 2, 3), (6, 1, 0, 5), (2, 2, 7, 1), (0, 5, 3, 8))
        ]
        self._made = 0

    def make(self, path: str, how: str | None = None) -> bytes:
        """Return the next picture as the file that `path` names, or one that is broken as BAD_IMAGES says."""
        if how in ("text", "empty"):
            return b"<html>404 Not Found</html>" if how == "text" else b""
        self._made += 1
        template = self._templates[self._made % 4]
        pixels = template + self._noise.integers(0, 60, template.shape)
        image = Image.fromarray(pixels.astype(np.uint8))
        buffer = io.BytesIO()
        if path.endswith(".jpg"):
            image.save(buffer, "JPEG", quality=80)
        else:
            image.convert(("RGB", "L", "RGBA", "P")[self._made // 4 % 4]).save(buffer, "PNG", compress_level=1)
        content = buffer.getvalue()
        return content[: len(content) // 2] if how == "truncated" else content
