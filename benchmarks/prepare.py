"""Prepare against joining, unzipping and checking with plain tools: time, peak disk, and memory of the conversion.

The peer does what the data set's instructions say, then a plain check: `cat` of the parts, `unzip` (Python's zipfile
where the program is absent, which is said), and one Python process that reads the rows, decodes every image with Pillow
and writes the JSON list. Both get the same archive of photo-like JPEGs, and run in turn.
"""

import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import Row, finish, median_seconds
from PIL import Image

from cobra.util import cli
from cobra.util.errors import UserError

ROOT = Path(__file__).parents[1]
FOLDER = Path("download/llava-cot-100k")
PREPARE = (sys.executable, str(ROOT / "fine_tune" / "prepare_llava_cot.py"), "--download", "false")
# Of the package, so that tokens can be counted without a network.
TOKENIZER = ("--llm_backbone_id", "mamba-0.5m-zephyr")
SAMPLE_SECONDS = 0.05
PHOTO_SIZE = (800, 600)
WORDS = "the photo shows a small red car left of two blue bicycles above one wide grey road and seven trees".split()

PLAIN_CHECK = """
import json
from PIL import Image
with open("train.jsonl", encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
for path in {row["image"] for row in rows}:
    with Image.open(path) as image:
        image.convert("RGB")
with open("llava_cot_100k.json", "w", encoding="utf-8") as file:
    json.dump(rows, file)
"""

# Prepares a folder of a few rows, so that everything is imported, and then the large one; prints the resident bytes
# that the process had in between and the most that it had afterwards.
MEMORY_PROBE = """
import sys
from pathlib import Path
from cobra.preprocessing.llava_cot import PrepareConfig, prepare

def resident(line):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(line + ":")[2].split()[0])

if __name__ == "__main__":
    for root in map(Path, sys.argv[1:]):
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        prepare(PrepareConfig(dataset_root=root, download=False, llm_backbone_id="mamba-2.8b"))
    print(before, resident("VmHWM"))
"""


@dataclass
class BenchmarkConfig:
    """Flags of benchmarks/prepare.py."""

    images: int = 12_000
    """Photos of some 100 KB in the archive."""
    rows: int = 18_000
    """Rows of the archive's train.jsonl."""
    repeats: int = 1
    """Timed runs of each side, after one that samples the disk."""
    memory_rows: int = 300_000
    """Rows of the conversion whose memory is measured."""
    memory_images: int = 200_000
    """Different image paths in them; the files are small and mostly links."""


def photos(count: int, draw: np.random.Generator) -> list[bytes]:
    """Make JPEG files of 50 to 150 KB: soft shapes and grain."""
    made = []
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        soft = np.asarray(coarse.resize(PHOTO_SIZE, Image.Resampling.BICUBIC), np.float32)
        grain = draw.normal(0, draw.uniform(4, 11), soft.shape)
        buffer = io.BytesIO()
        Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
        made.append(buffer.getvalue())
    return made


def write_rows(path: Path, images: list[str], count: int) -> None:
    """Write rows of the published size, some 350 tokens; the images are used in turn."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            stages = ("SUMMARY", 30), ("CAPTION", 80), ("REASONING", 150), ("CONCLUSION", 5)
            texts = [f"<{stage}> {' '.join(draw.choices(WORDS, k=words))} </{stage}>" for stage, words in stages]
            turns = [
                {"from": "human", "value": f"Question {number}: what is in the photo?"},
                {"from": "gpt", "value": "\n\n".join(texts)},
            ]
            row = {"id": number, "image": images[number % len(images)], "conversations": turns}
            file.write(json.dumps(row) + "\n")


def write_publication(folder: Path, config: BenchmarkConfig) -> None:
    """Write train.jsonl and 16 parts of an archive, deflated as `zip` does; equal photos differ by a comment."""
    folder.mkdir(parents=True)
    templates = photos(100, np.random.default_rng(0))
    paths = [f"coco/train2017/{number:012d}.jpg" for number in range(config.images)]
    with zipfile.ZipFile(folder / "image.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, path in enumerate(paths):
            photo = templates[number % len(templates)]
            # A comment segment behind the start of the image.
            comment = b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big")
            archive.writestr(path, photo[:2] + comment + photo[2:])
    write_rows(folder / "train.jsonl", paths, config.rows)
    size = -(-(folder / "image.zip").stat().st_size // 16)
    with (folder / "image.zip").open("rb") as whole:
        for number in range(16):
            (folder / f"image.zip.part-a{chr(97 + number)}").write_bytes(whole.read(size))
    (folder / "image.zip").unlink()


class Sides:
    """Prepare and its peer, each on a fresh folder with links to the published files."""

    def __init__(self, published: Path, work: Path) -> None:
        self._published = published
        self.root = work / "run"
        self.cpu_seconds: dict[str, float] = {}
        """Of all processes of a side's last run."""

    def fresh(self) -> Path:
        """Return the folder, holding the published files and nothing else."""
        shutil.rmtree(self.root, ignore_errors=True)
        folder = self.root / FOLDER
        folder.mkdir(parents=True)
        for path in self._published.iterdir():
            os.link(path, folder / path.name)
        return folder

    def peer(self) -> None:
        """Join, unzip and check."""
        folder = self.fresh()
        with (folder / "image.zip").open("wb") as whole:
            subprocess.run(["cat", *sorted(map(str, folder.glob("image.zip.part-*")))], stdout=whole, check=True)
        unzip = [sys.executable, "-m", "zipfile", "-e", "image.zip", "."]
        subprocess.run(["unzip", "-q", "image.zip"] if shutil.which("unzip") else unzip, cwd=folder, check=True)
        subprocess.run([sys.executable, "-c", PLAIN_CHECK], cwd=folder, check=True)

    def prepare(self, keep_parts: bool = True, tokens: bool = False) -> None:
        """Run prepare as a user does; counting tokens is nothing that the peer does."""
        self.fresh()
        flags = ["--dataset_root", str(self.root), "--keep_parts", str(keep_parts).lower()]
        # Offline and with an empty cache there is no tokenizer to count with.
        without = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.root / "no-cache")}
        command = [*PREPARE, *flags, *(TOKENIZER if tokens else ())]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | ({} if tokens else without))

    def counted(self, side: str, work: Callable[[], object]) -> Callable[[], None]:
        """Return `work` with its CPU time noted under the name of its side."""

        def run() -> None:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            work()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            self.cpu_seconds[side] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        return run

    def peak_disk(self, work: Callable[[], object]) -> int:
        """Run `work` and return the most bytes that its files took on the disk."""
        # What the run before has left is not this one's.
        shutil.rmtree(self.root, ignore_errors=True)
        ended = threading.Event()
        sizes: list[int] = []

        def sample() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                sizes.append(_bytes_on_disk(self.root))

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            work()
        finally:
            ended.set()
            sampler.join()
        return max([*sizes, _bytes_on_disk(self.root)])


def _bytes_on_disk(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def conversion_memory(work: Path, config: BenchmarkConfig) -> Row:
    """Measure what the conversion of many rows takes above its imports, their images being there already."""
    roots = []
    for name, rows, count in (("few", 10, 10), ("many", config.memory_rows, config.memory_images)):
        folder = work / name / FOLDER
        pictures = folder / "vg" / "VG_100K"
        pictures.mkdir(parents=True)
        draw = random.Random(0)
        for number in range(count):
            # A file takes no more than some ten thousand links.
            if number % 100 == 0:
                original = pictures / f"{number}.jpg"
                Image.frombytes("RGB", (32, 24), draw.randbytes(32 * 24 * 3)).save(original)
            else:
                os.link(original, pictures / f"{number}.jpg")
        write_rows(folder / "train.jsonl", [f"vg/VG_100K/{number}.jpg" for number in range(count)], rows)
        roots.append(str(work / name))
    # A file, not `-c`: worker processes import the main module.
    probe = work / "probe.py"
    probe.write_text(MEMORY_PROBE)
    # No hub and an empty cache: there is no tokenizer, so no tokens are counted.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub")}
    command = [sys.executable, str(probe), *roots]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    before, peak = map(int, done.stdout.splitlines()[-1].split())
    return Row("memory of the conversion above its imports", (peak - before) / 1e6, "MB", "<= 200")


def main(config: BenchmarkConfig) -> None:
    """Measure and print; the last line is JSON."""
    if config.memory_images > config.memory_rows or config.images > config.rows:
        raise UserError("every image needs a row: --images and --memory_images may not exceed --rows and --memory_rows")
    unzip = "unzip" if shutil.which("unzip") else "Python's zipfile"
    with tempfile.TemporaryDirectory(prefix="benchmark-prepare-") as name:
        folder = Path(name)
        write_publication(folder / "published", config)
        sides = Sides(folder / "published", folder)
        disk = {
            "peer": sides.peak_disk(sides.peer),
            "kept": sides.peak_disk(sides.prepare),
            "deleted": sides.peak_disk(lambda: sides.prepare(keep_parts=False)),
        }
        work_of = {"peer": sides.peer, "prepare": sides.prepare, "tokens": lambda: sides.prepare(tokens=True)}
        seconds = median_seconds({side: sides.counted(side, run) for side, run in work_of.items()}, config.repeats)
        shutil.rmtree(sides.root)
        memory = conversion_memory(folder, config)
    peer = f"cat + {unzip} + a plain check"
    finish(
        f"prepare: {config.images:,} images; memory at {config.memory_rows:,} rows",
        [
            Row(f"time against {peer}", seconds["prepare"] / seconds["peer"], "x", "<= 0.7"),
            Row("time of prepare", seconds["prepare"], "s"),
            Row("time of prepare when it counts tokens too, as the peer does not", seconds["tokens"], "s"),
            Row(f"time of {peer}", seconds["peer"], "s"),
            Row("CPU time of prepare, all processes", sides.cpu_seconds["prepare"], "s"),
            Row("CPU time of the peer", sides.cpu_seconds["peer"], "s"),
            Row(f"peak disk against {peer}, parts kept", disk["kept"] / disk["peer"], "x", "<= 0.7"),
            Row(f"peak disk against {peer}, parts deleted", disk["deleted"] / disk["peer"], "x", "<= 0.45"),
            memory,
        ],
    )


if __name__ == "__main__":
    cli.run(main, BenchmarkConfig)
