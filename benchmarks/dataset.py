"""Rows and pictures on their way into training.

100,000 rows like LLaVA-CoT's are opened as training does, against `json.load` of the same file, and built for the first
time, against the commit before that was made faster; the memory that four
DataLoader workers add once each has touched every row is measured for both; and pictures are decoded by every
maintained library at hand, through the resize to the towers' 384 pixels.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import ROOT, Row, finish, median_seconds, worktree
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image, read_file

from cobra.preprocessing.datasets.arrow_rows import read_rows
from cobra.util import cli
from cobra.util.errors import UserError
from cobra.util.images import read_rgb

WORKERS = 4
SIDE = 384
PHOTO_SIZE = (640, 480)

_BUILD = """
import sys, time
from pathlib import Path
from cobra.preprocessing.datasets.arrow_rows import read_rows
begin = time.perf_counter()
read_rows(Path(sys.argv[1]))
print(time.perf_counter() - begin)
"""

Decoder = Callable[[Path], Image.Image]


@dataclass
class DatasetBenchmark:
    """Measure how fast rows open, what workers add to the memory, and how fast pictures are decoded."""

    rows: int = 100_000
    """Rows to generate."""
    before: str = "6f3ff21"
    """Commit whose first build is measured too; left out where this is no clone that has it."""
    images: str | None = None
    """A folder of JPEG files in place of generated ones."""


class _Touch(Dataset[int]):
    """One item a worker: the length of all texts of all rows, so that every row has been read."""

    def __init__(self, rows: Sequence[dict]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return WORKERS

    def __getitem__(self, index: int) -> int:
        return sum(len(turn["value"]) for row in self.rows for turn in row["conversations"])


def make_rows(path: Path, count: int) -> None:
    """Write a JSON list of rows of some 2 KB, with the four stages in the answers."""
    draw = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(draw.choice(letters, draw.integers(2, 10))) for _ in range(5000)]

    def text(length: int) -> str:
        return " ".join(words[place] for place in draw.integers(len(words), size=length))

    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            stages = {"SUMMARY": 40, "CAPTION": 80, "REASONING": 140, "CONCLUSION": 10}
            answer = "\n\n".join(f"<{name}> {text(length)} </{name}>" for name, length in stages.items())
            turns = [{"from": "human", "value": text(20)}, {"from": "gpt", "value": answer}]
            row = {"id": str(index), "image": f"coco/train2017/{index:012d}.jpg", "conversations": turns}
            file.write(("[\n" if not index else ",\n") + json.dumps(row))
        file.write("\n]\n")


def make_photos(folder: Path, count: int = 48) -> list[Path]:
    """Write JPEG files of COCO's size and quality: 640 x 480, some 150 KB, noise at every scale."""
    draw = np.random.default_rng(0)
    paths = []
    for index in range(count):
        layers = []
        for cell in (2, 8, 32, 160):
            noise = draw.integers(0, 256, (PHOTO_SIZE[1] // cell, PHOTO_SIZE[0] // cell, 3), np.uint8)
            layers.append(np.asarray(Image.fromarray(noise).resize(PHOTO_SIZE)))
        photo = Image.fromarray(np.average(layers, 0, (1, 2, 4, 6)).astype(np.uint8)).filter(ImageFilter.SMOOTH)
        paths.append(folder / f"{index}.jpg")
        photo.save(paths[-1], quality=92)
    return paths


def first_build(root: Path, path: Path) -> float:
    """Return the seconds in which the sources in a folder open rows for the first time, in a process of its own."""
    for cache in path.parent.glob(f".{path.name}.*"):
        cache.unlink()
    command = [sys.executable, "-c", _BUILD, str(path)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    # From its folder, which comes before PYTHONPATH.
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def build_figures(folder: Path, path: Path, config: DatasetBenchmark) -> tuple[float, list[Row]]:
    """Time the first build, and that of the commit before, by turns; the shortest of three counts."""
    with worktree(config.before, folder / "before") as before:
        roots = [ROOT] if before is None else [before, ROOT]
        seconds = [
            min(times) for times in zip(*([first_build(root, path) for root in roots] for _ in range(3)), strict=True)
        ]
    first = seconds[-1]
    figures = [Row("first build", first, "s")]
    if before is not None:
        figures.append(Row("first build against the commit before", first / seconds[0], "x", "<= 0.25"))
    return first, figures


def rows_figures(folder: Path, config: DatasetBenchmark) -> list[Row]:
    """Time opening, and measure what workers add."""
    path, count = folder / "rows.json", config.rows
    make_rows(path, count)
    first, builds = build_figures(folder, path, config)
    seconds = median_seconds({"json": lambda: json.loads(path.read_bytes()), "rows": lambda: read_rows(path)}, 5)
    figures = [
        Row(f"open {count:,} rows once built, against json.load", seconds["rows"] / seconds["json"], "x", "<= 0.2"),
        Row("the same", seconds["rows"], "s"),
        *builds,
        Row("first build against json.load", first / seconds["json"], "x"),
    ]
    if not Path("/proc/self/smaps_rollup").is_file():
        print("memory is not measured: this system has no /proc/PID/smaps_rollup", file=sys.stderr)
        return figures
    mapped = added_memory(read_rows(path))
    plain = added_memory(json.loads(path.read_bytes()))
    return [
        *figures,
        Row(f"memory that {WORKERS} workers add, mapped against a list", mapped / plain, "x", "<= 0.25"),
        Row("the same, mapped", mapped / 2**20, "MiB"),
        Row("the same, a list", plain / 2**20, "MiB"),
    ]


def added_memory(rows: Sequence[dict]) -> int:
    """Return the bytes of proportional memory that workers add when each of them touches every row."""
    gc.collect()
    # Of a machine with fewer cores; no time is taken here.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    before = proportional_memory([os.getpid()])
    loader = DataLoader(_Touch(rows), batch_size=1, num_workers=WORKERS, persistent_workers=True)
    iterator = iter(loader)
    assert len({int(total) for total in iterator}) == 1
    workers = [process.pid for process in iterator._workers]  # type: ignore[attr-defined]
    return proportional_memory([os.getpid(), *workers]) - before


def proportional_memory(pids: Sequence[int]) -> int:
    """Return the sum of PSS of some processes in bytes: a page that n processes share counts as 1/n for each."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def as_cobra(path: Path) -> Image.Image:
    """Decode as Cobra does."""
    with Image.open(path) as image:
        return image.convert("RGB")


def by_draft(path: Path) -> Image.Image:
    """Decode at the smallest size that libjpeg can scale to, not below the towers'."""
    with Image.open(path) as image:
        image.draft("RGB", (SIDE, SIDE))
        return image.convert("RGB")


def by_torchvision(path: Path) -> Image.Image:
    """Decode through torchvision."""
    pixels = decode_image(read_file(str(path)), ImageReadMode.RGB)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def decoders() -> dict[str, Decoder]:
    """Return the decoders at hand by name, the peer first."""
    found: dict[str, Decoder] = {
        "Pillow as Cobra": as_cobra,
        "this project": read_rgb,
        "Pillow draft": by_draft,
        "torchvision": by_torchvision,
    }
    try:
        import simplejpeg
    except ImportError:
        print("simplejpeg is not measured: pip install simplejpeg", file=sys.stderr)
    else:
        found["simplejpeg"] = lambda path: Image.fromarray(simplejpeg.decode_jpeg(path.read_bytes(), "RGB"))
    return found


def resized(decode: Decoder, path: Path) -> NDArray[np.int16]:
    """Return the pixels (384, 384, 3) that a decoder leads to."""
    return np.asarray(decode(path).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)


def largest_difference(found: Sequence[NDArray[np.int16]], expected: Sequence[NDArray[np.int16]]) -> float:
    """Return the largest difference between two lists of pictures, in levels of 255."""
    return float(max(np.abs(one - other).max() for one, other in zip(found, expected, strict=True)))


def image_figures(photos: Sequence[Path]) -> list[Row]:
    """Time decoding and resizing, and compare pixels."""
    torch.set_num_threads(1)
    known = decoders()

    def through(decode: Decoder) -> Callable[[], object]:
        return lambda: [decode(path).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for path in photos]

    seconds = median_seconds({name: through(decode) for name, decode in known.items()}, 5)
    expected = [resized(as_cobra, path) for path in photos]
    rows = []
    for name, decode in known.items():
        rows.append(Row(f"decode and resize, {name}", len(photos) / seconds[name], "images/s"))
        if decode is as_cobra:
            continue
        found = [resized(decode, path) for path in photos]
        rows.append(Row(f"{name} against Pillow as Cobra", seconds["Pillow as Cobra"] / seconds[name], "x"))
        rows.append(Row(f"{name}: largest difference of a pixel", largest_difference(found, expected), "of 255"))
    return rows


def main(config: DatasetBenchmark) -> None:
    """Measure, and print the rows."""
    with tempfile.TemporaryDirectory() as name:
        photos = sorted(Path(config.images).glob("**/*.jpg")) if config.images else make_photos(Path(name))
        if not photos:
            raise UserError(f"--images {config.images} holds no .jpg file")
        finish("dataset", [*rows_figures(Path(name), config), *image_figures(photos)])


if __name__ == "__main__":
    cli.run(main, DatasetBenchmark)
