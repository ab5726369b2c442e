"""A few steps of training on a handful of pictures, for the examples of how to extend the package."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cobra.training.config import PretrainConfig
from cobra.training.pretrain import pretrain
from cobra.training.run_context import StepPart
from cobra.util.cli import parse

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (220, 200, 40)}


def write_colours(folder: Path) -> Path:
    """Write `rows.json`, in LLaVA's form, and `images/`, a picture of each colour, into a folder; return it."""
    rows = []
    (folder / "images").mkdir()
    for name, pixel in COLOURS.items():
        Image.new("RGB", (48, 48), pixel).save(folder / "images" / f"{name}.png")
        turns = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": f"It is {name}."}]
        rows.append({"id": name, "image": f"{name}.png", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def train(root: Path, *flags: str, parts: Sequence[StepPart] = ()) -> Path:
    """Run a stage of scripts/pretrain.py on one process for three steps; return the run directory."""
    given = {
        "--model.type": "cobra-tiny",
        "--dataset.type": "custom",
        "--dataset.dataset_root_dir": str(root),
        "--run_root_dir": str(root / "runs"),
        "--run_id": "few",
        "--device": "cpu",
        "--num_workers": "0",
        "--model.finetune_max_steps": "3",
        "--model.finetune_global_batch_size": "4",
        "--model.finetune_per_device_batch_size": "4",
    } | dict(zip(flags[::2], flags[1::2], strict=True))
    if given["--dataset.type"] == "custom":
        given["--dataset.finetune_stage_components"] = "[rows.json, images]"
    return pretrain(parse(PretrainConfig, [word for flag in given.items() for word in flag]), parts)


def losses(run_dir: Path) -> list[float]:
    """Return the loss of each step."""
    lines = map(json.loads, (run_dir / f"{run_dir.name}.jsonl").read_text().splitlines())
    return [next(value for name, value in line.items() if name.endswith("/Loss (Raw)")) for line in lines]
