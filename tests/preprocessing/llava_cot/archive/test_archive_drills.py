"""Prepare, as a user starts it, on a synthetic publication: a misbehaving hub, known defects, and kills at any time.

Every drill has a short form and, for `make soak`, the full one of 20,000 images, 30,000 rows and 25 kills.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_server import Fault, HubServer
from publication import write_publication
from publication_rows import Expected, Shape

from cobra.util.files import sha256_file

ROOT = Path(__file__).parents[4]
FOLDER = Path("download/llava-cot-100k")
# The tokenizer that needs no network.
TOKENIZER = ("--llm_backbone_id", "mamba-0.5m-zephyr")
# The full forms take many minutes.
pytestmark = pytest.mark.timeout(1800)


@dataclass(frozen=True)
class Drill:
    """A publication that was prepared over a hub with faults, and what must come of it."""

    published: Path
    expected: Expected
    root: Path
    kills: int
    requests: int
    """Requests for files that the hub got."""

    @property
    def folder(self) -> Path:
        return self.root / FOLDER

    @property
    def published_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.published.iterdir())

    def report(self) -> dict:
        return json.loads((self.folder / "report.json").read_text(encoding="utf-8"))


def start_prepare(root: Path, hub: HubServer | None, *more: str) -> subprocess.Popen:
    """Start prepare in a process group of its own."""
    script = ROOT / "fine_tune" / "prepare_llava_cot.py"
    command = [sys.executable, str(script), "--dataset_root", str(root), "--num_workers", "2", *TOKENIZER, *more]
    environment = {**os.environ, **(hub.environment if hub else {}), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


FORMS = {"short": (Shape(images=2000, rows=3000, planted=3, overlong=0), 3), "full": (Shape(), 25)}


@pytest.fixture(scope="module", params=["short", pytest.param("full", marks=pytest.mark.slow)])
def drill(request, tmp_path_factory) -> Drill:
    shape, kills = FORMS[request.param]
    published, root = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("prepared")
    expected = write_publication(published, shape)
    with HubServer(published) as hub:
        hub.faults += [
            Fault("status", at="api", status=503),
            Fault("status", at="hub", status=503),
            Fault("drop", after=70_000),
            Fault("truncate", name="image.zip.part-ac", after=1000),
            Fault("status", name="image.zip.part-ad", status=403),
            Fault("status", name="train.jsonl", status=503),
            Fault("drop", name="image.zip.part-ap", after=0),
        ]
        finish(start_prepare(root, hub))
        assert not hub.faults, "a fault did not come to pass"
        requests = sum(bool(seen.name) for seen in hub.requests)
    return Drill(published, expected, root, kills, requests)


def test_files_are_right_in_spite_of_the_hub(drill):
    published = sorted(drill.published.iterdir())
    assert len(published) == 17 and drill.requests > 17
    for path in published:
        assert sha256_file(drill.folder / path.name) == sha256_file(path), path.name


def test_report_finds_exactly_what_was_planted(drill):
    report, expected = drill.report(), drill.expected
    assert {name: report[name] for name in expected.counts()} == expected.counts()
    assert Counter(report["written_by_source"]) + Counter(report["held_out_by_source"]) == expected.usable_by_source
    assert report["tokens"]["rows"] == expected.usable
    assert (report["tokens"]["longer"], report["tokens"]["conclusion_cut"]) == (
        expected.long_rows,
        expected.cut_conclusions,
    )
    assert {name: report["archive"][name] for name in expected.archive} == expected.archive
    rejected = (drill.folder / "rejected.jsonl").read_text().splitlines()
    assert len(rejected) == sum(expected.rejected.values()) == expected.rows_read - expected.usable
    assert not [*drill.root.parent.rglob("*evil*"), *drill.root.rglob("bomb.png")]


def test_rows_are_divided_by_image_and_coco_ids_are_those_of_training(drill):
    report, expected = drill.report(), drill.expected
    train, holdout = (read_rows(drill.folder, name) for name in ("llava_cot_100k", "llava_cot_100k_holdout"))
    assert (len(train), len(holdout)) == (report["rows_written"], report["rows_held_out"])
    assert len(train) + len(holdout) == expected.usable
    assert len(holdout) == (1000 if expected.usable >= 20_000 else round(expected.usable / 100))
    assert not {row["image"] for row in train if "image" in row} & {row.get("image") for row in holdout}
    ids = json.loads((drill.folder / "coco_ids.json").read_text())
    for split, planted in expected.coco_ids.items():
        trained, held_out = (coco_ids(rows, split) for rows in (train, holdout))
        assert ids[split] == sorted(trained) and report["coco_ids"][split] == len(trained)
        assert trained | held_out == planted and not trained & held_out


def coco_ids(rows: list[dict], split: str) -> set[int]:
    paths = [Path(row["image"]) for row in rows if row.get("image", "").startswith(f"coco/{split}/")]
    return {int(path.stem) for path in paths}


def read_rows(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def test_output_trains(drill, tmp_path):
    arguments = ["--model.type", "cobra-tiny", "--dataset.type", "llava-cot-100k"]
    arguments += ["--dataset.dataset_root_dir", str(drill.root), "--run_root_dir", str(tmp_path), "--run_id", "drill"]
    arguments += ["--model.finetune_max_steps", "2", "--model.finetune_global_batch_size", "4", "--device", "cpu"]
    arguments += ["--model.finetune_per_device_batch_size", "4", "--num_workers", "0"]
    done = subprocess.run(
        [sys.executable, "scripts/pretrain.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads(line) for line in (tmp_path / "drill" / "drill.jsonl").read_text().splitlines()]
    assert len(steps) == 2 and all(step["Finetune/Loss (Raw)"] > 0 for step in steps)


@dataclass(frozen=True)
class Kill:
    """A moment at which prepare is killed."""

    stage: str
    """`download`, `unpack` or `convert`."""
    share: float
    """How much of the stage is done by then."""
    group: bool
    """Whether all processes are killed, or the first one alone."""


def planned_kills(count: int, seed: int) -> list[Kill]:
    """Moments over all stages, in the order in which they come."""
    draw = random.Random(seed)
    stages = [("download", "unpack", "convert")[number * 3 // count] for number in range(count)]
    shares = [draw.random() for _ in range(count)]
    order = sorted(range(count), key=lambda number: (number * 3 // count, shares[number]))
    return [Kill(stages[number], shares[number], group=place % 3 != 1) for place, number in enumerate(order)]


class Watched:
    """A folder that is being prepared, seen from outside."""

    def __init__(self, drill: Drill, root: Path) -> None:
        self._drill, self._folder = drill, root / FOLDER
        reference = drill.folder
        last_image = max(os.stat(path).st_mtime for path in images(reference))
        self._convert_seconds = (reference / "report.json").stat().st_mtime - last_image

    def wait_for(self, kill: Kill, process: subprocess.Popen) -> bool:
        """Wait for the moment of a kill; False where the process ended before."""
        reached: dict[str, Callable[[], bool]] = {
            "download": lambda: sum(self.come().values()) >= kill.share * self._drill.published_bytes,
            "unpack": lambda: self.unpacked() >= kill.share * self._drill.expected.archive["images"],
            "convert": lambda: self.unpacked() >= self._drill.expected.archive["images"],
        }
        while not reached[kill.stage]():
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        if kill.stage == "convert":
            # The reference may have been slower than this run.
            time.sleep(0.6 * kill.share * self._convert_seconds)
        return process.poll() is None

    def unpacked(self) -> int:
        return len(images(self._folder))

    def come(self) -> dict[str, int]:
        """How many bytes of each published file have come."""
        found = {path.name: 0 for path in self._drill.published.iterdir()}
        for path in [*self._folder.glob("*"), *self._folder.glob(".fetch/*")]:
            name = path.name if path.name in found else path.name.removesuffix(".part")
            # It may be renamed or deleted between the listing and the look at it.
            with suppress(FileNotFoundError):
                if name in found:
                    found[name] = max(found[name], path.stat().st_size)
        return found


def images(folder: Path) -> list[str]:
    """Paths of the images in place."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [f"{parent}/{name}" for name in files if name.endswith((".jpg", ".png")) and name[0] != "."]
    return found


def outputs(folder: Path) -> dict[str, str]:
    """All files by path, with their hashes; parts of the archive, which may go, are left out.

    Of records for reruns, whose names begin with a dot, no hashes: they hold times.
    """
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and ".part-" not in path.name:
            name = path.relative_to(folder)
            found[str(name)] = "" if any(part.startswith(".") for part in name.parts) else sha256_file(path)
    return found


def identity(path: str) -> tuple[int, int]:
    """What changes when a file is written anew."""
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns


def kill(process: subprocess.Popen, whole_group: bool) -> None:
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()


def assert_gone(group: int) -> None:
    """Workers whose parent was killed end by themselves."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a process has outlived its parent by ten seconds")


@pytest.mark.parametrize("keep_parts", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_kills_at_any_moment_change_nothing(drill, tmp_path, keep_parts):
    folder = tmp_path / FOLDER
    killed: list[Kill] = []
    groups, come, unpacked = [], {}, {}
    with HubServer(drill.published, bytes_per_second=drill.published_bytes / 8) as hub:
        watched = Watched(drill, tmp_path)
        for moment in [*planned_kills(drill.kills, seed=1), None]:
            hub.forget()
            process = start_prepare(tmp_path, hub, "--keep_parts", str(keep_parts).lower())
            groups.append(process.pid)
            if moment is not None and watched.wait_for(moment, process):
                kill(process, moment.group)
                killed.append(moment)
            else:
                finish(process)
            # What had come, or was unpacked, before this run is neither fetched nor written again.
            for request in hub.requests:
                assert request.at != "cdn" or request.start >= come.get(request.name, 0)
            assert {path: identity(path) for path in unpacked} == unpacked
            come = {name: max(size, come.get(name, 0)) for name, size in watched.come().items()}
            unpacked = {path: identity(path) for path in images(folder)}
    assert len(killed) >= drill.kills * 3 // 4
    assert {moment.stage for moment in killed} == {"download", "unpack", "convert"}
    for group in groups:
        assert_gone(group)
    # What is kept of parts that may go.
    kept = {} if keep_parts else dict.fromkeys((".prepare/directory.bin", ".prepare/parts.json"), "")
    assert outputs(folder) == outputs(drill.folder) | kept
    parts = len(list(folder.glob("image.zip.part-*")))
    # A part with a damaged member stays.
    assert parts == 16 if keep_parts else 0 < parts <= drill.expected.archive["damaged_members"]
