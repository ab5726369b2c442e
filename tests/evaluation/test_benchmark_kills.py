"""benchmark.py killed while it answers, and started again: the same results as without a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scratch import picture

from cobra.evaluation import benchmark as module
from cobra.evaluation.config import BenchmarkConfig
from cobra.evaluation.responses.protocol import VARIANTS
from cobra.evaluation.tasks import captions as caption_task

ROOT = Path(__file__).parents[2]
COUNT = 30
# The answers at once are the same for both roles of one checkpoint, and the scratchpads are not.
ANSWERS = 3 * COUNT

# The script, without the seconds in which the embedding model is loaded.
SCRIPT = """
import runpy
from cobra.evaluation.tasks import captions as caption_task
caption_task.packaged_model_is_installed = lambda: False
runpy.run_path("benchmark.py", run_name="__main__")
"""


def config(folder: Path, output_dir: Path) -> BenchmarkConfig:
    return BenchmarkConfig(
        checkpoint="cobra-tiny",
        baseline_checkpoint="cobra-tiny",
        coco_annotations=str(folder / "captions.json"),
        image_dir=folder,
        output_dir=output_dir,
        max_new_tokens=8,
        batch_size=2,
        device="cpu",
    )


@pytest.fixture(scope="module", autouse=True)
def no_embeddings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_task, "packaged_model_is_installed", lambda: False)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        picture(number, (60, 48)).save(folder / f"{number}.png")
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(COUNT)]
    captions = [{"image_id": number, "caption": "A red circle and two squares."} for number in range(COUNT)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return folder


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory) -> Path:
    """What is written without a kill."""
    output_dir = tmp_path_factory.mktemp("whole")
    module.benchmark(config(photos, output_dir))
    return output_dir


def start(photos: Path, output_dir: Path) -> subprocess.Popen:
    values = {name: value for name, value in vars(config(photos, output_dir)).items() if value not in (None, ())}
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def stored(output_dir: Path) -> list[tuple[str, bytes]]:
    """Whole lines of the answers on disk, with their files."""
    keyed = [path for path in output_dir.glob("answers/kept/*.jsonl") if path.with_suffix(".json").exists()]
    return [(path.name, line) for path in sorted(keyed) for line in path.read_bytes().split(b"\n")[:-1]]


def kill_at(process: subprocess.Popen, output_dir: Path, count: int, delay: float) -> bool:
    """Kill a process somewhat after so many answers are there; return whether it was still at work."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(stored(output_dir)) >= count:
            time.sleep(delay)
            process.kill()
            break
        time.sleep(0.01)
    return process.wait() == -signal.SIGKILL


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_at_any_moment_change_nothing(photos, whole, tmp_path, kills):
    generator = random.Random(kills)
    met, kept = 0, []
    for count in sorted(generator.sample(range(ANSWERS - 10), kills)):
        process = start(photos, tmp_path)
        met += kill_at(process, tmp_path, count, generator.uniform(0, 0.05))
        lines = stored(tmp_path)
        # What was answered is neither lost nor answered again.
        assert set(kept) <= set(lines) and len(lines) == len(set(lines))
        kept = lines
    assert met >= kills * 3 // 4 and 0 < len(kept)
    module.benchmark(config(photos, tmp_path))
    assert len(stored(tmp_path)) == ANSWERS
    for variant in VARIANTS[:4]:
        for name in (f"predictions/{variant}.json", f"answers/{variant}.jsonl"):
            assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    metrics, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, whole))
    assert metrics["variants"] == expected["variants"]
