"""A small archive of images cut into parts, as published, for the tests of joining, inspecting and unpacking."""

import io
import random
import zipfile
from pathlib import Path

PREFIX = "images/"
SOURCES = ("sqa/train/{}/image.png", "chartqa/{}.png", "coco/train2017/{}.jpg")


def make_images(count: int, least: int = 300, most: int = 900) -> dict[str, bytes]:
    """Return made-up images by path, in three sources one after another, so that parts hold one or two of them."""
    draw = random.Random(count)
    paths = [SOURCES[number * len(SOURCES) // count].format(number) for number in range(count)]
    return {path: draw.randbytes(draw.randint(least, most)) for path in paths}


def zip_of(images: dict[str, bytes], prefix: str = PREFIX) -> bytes:
    """Return a zip with zip64 headers, every second member packed, and litter at both ends."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(f"{prefix}readme.txt", "not an image")
        for number, (path, content) in enumerate(images.items()):
            info = zipfile.ZipInfo(prefix + path)
            info.compress_type = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            with file.open(info, "w", force_zip64=True) as member:
                member.write(content)
        file.writestr("__MACOSX/._x.png", "litter")
    return buffer.getvalue()


def part_name(number: int) -> str:
    return f"image.zip.part-a{chr(97 + number)}"


def cut(folder: Path, content: bytes, parts: int) -> list[Path]:
    """Cut into equal parts, the last one smaller."""
    folder.mkdir(parents=True, exist_ok=True)
    size = len(content) // parts + 1
    paths = [folder / part_name(number) for number in range(parts)]
    for number, path in enumerate(paths):
        path.write_bytes(content[number * size : (number + 1) * size])
    return paths


def unpacked(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder` but the parts and the records."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != ".prepare" and not path.name.startswith("image.zip")
    }


def parts_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("image.zip*"))
