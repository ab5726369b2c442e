"""A few rows and images of LLaVA-CoT-100k in their published form, to be broken by hand."""

import io
import json
import random
import zipfile
from pathlib import Path

from PIL import Image

ANSWER = (
    "<SUMMARY> I will look. </SUMMARY>\n\n<CAPTION> A {} square. </CAPTION>\n\n"
    "<REASONING> It is {}. </REASONING>\n\n<CONCLUSION> {} </CONCLUSION>"
)
NAMES = [
    "sqa/train/{}/image.png",
    "chartqa/train/png/two_col_{}.png",
    "coco/train2017/{:012d}.jpg",
    "geoqa+/images/{}.png",
]
COLOURS = ["red", "green", "blue"]


def picture(path: str, colour: str) -> bytes:
    buffer = io.BytesIO()
    pixels = random.Random(path).randbytes(24 * 24 * 3)
    image = Image.frombytes("RGB", (24, 24), pixels)
    image.paste(colour, (4, 4, 20, 20))
    image.save(buffer, format="JPEG" if path.endswith(".jpg") else "PNG")
    return buffer.getvalue()


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


class Publication:
    """Rows and images, to be written in the published form."""

    def __init__(self, count: int = 12):
        self.lines: list[bytes] = []
        self.images: dict[str, bytes] = {}
        for number in range(count):
            path, colour = NAMES[number % 4].format(number), COLOURS[number % 3]
            self.images[path] = picture(path, colour)
            self.add(
                {"id": number, "image": path, "conversations": turns("Which colour?", ANSWER.format(*[colour] * 3))}
            )

    def add(self, row, raw: bytes | None = None) -> int:
        """Add a line and return its number."""
        self.lines.append(json.dumps(row).encode() if raw is None else raw)
        return len(self.lines)

    def zip_bytes(self, prefix: str = "", litter: bool = True) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            if litter:
                file.writestr(entry(prefix + "readme.txt"), "not an image")
                file.writestr(entry("__MACOSX/._x"), "litter")
                file.writestr(entry("train.jsonl"), "not the rows")
            for path, content in self.images.items():
                # zip64 for every member, as in archives beyond 4 GB.
                with file.open(entry(prefix + path), "w", force_zip64=True) as member:
                    member.write(content)
        return buffer.getvalue()

    def write_rows(self, root: Path) -> Path:
        folder = root / "download" / "llava-cot-100k"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.jsonl").write_bytes(b"\n".join(self.lines) + b"\n")
        return folder

    def write(self, root: Path, prefix: str = "", parts: int = 5) -> Path:
        folder = self.write_rows(root)
        write_parts(folder, self.zip_bytes(prefix), parts)
        return folder

    def write_unpacked(self, root: Path, below: str) -> Path:
        folder = self.write_rows(root)
        for path, content in self.images.items():
            target = folder / below / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return folder


def entry(name: str) -> zipfile.ZipInfo:
    """Return a member of a fixed date: the same publication has the same bytes whenever it is written."""
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def write_parts(folder: Path, content: bytes, parts: int) -> None:
    """Cut at odd places inside members, as sizes of parts go."""
    size = len(content) // parts + 1
    for index in range(parts):
        (folder / f"image.zip.part-a{chr(97 + index)}").write_bytes(content[index * size : (index + 1) * size])


def annotation(folder: Path) -> list[dict]:
    return json.loads((folder / "llava_cot_100k.json").read_text(encoding="utf-8"))


def rejected(folder: Path) -> dict[int, dict]:
    entries = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    return {entry["line"]: entry for entry in entries}
