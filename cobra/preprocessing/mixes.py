"""Merge LLaVA v1.5's rows with LVIS-Instruct-4V (arXiv 2311.07574) and LRV-Instruct (arXiv 2306.14565).

All files lie in `{root_dir}/download/llava-v1.5-instruct/`. The order of the rows is that of Cobra's mixes: one
generator with seed 7, three shuffles for each file.
"""

import json
import os
import random
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cobra.preprocessing.archives import unsafe_name
from cobra.preprocessing.datasets.row_keys import image_of, with_image
from cobra.preprocessing.fetch import fetch
from cobra.preprocessing.progress import track_items
from cobra.preprocessing.transfer import Unreachable
from cobra.util.errors import UserError, disk_errors
from cobra.util.files import atomic_path, read_json, write_text
from cobra.util.numbers import counted

Rows = list[dict[str, Any]]

_FOLDER = Path("download/llava-v1.5-instruct")
_BASE = "llava_v1_5_mix665k.json"
_LVIS = "lvis_instruct4v_220k.json"
LVIS_MIX = "llava_v1_5_lvis4v_mix888k.json"
_LRV_MIX = "llava_v1_5_lrv_mix1008k.json"
_LVIS_LRV_MIX = "llava_v1_5_lvis4v_lrv_mix1231k.json"
_MISSING = "missing_images.txt"

_HUB = "https://huggingface.co/datasets"
_URLS = {
    _BASE: f"{_HUB}/liuhaotian/LLaVA-Instruct-150K/resolve/main/{_BASE}",
    _LVIS: f"{_HUB}/X2FD/LVIS-Instruct4V/resolve/main/{_LVIS}",
}

_SEED = 7
_SHUFFLES = 3
_SHOWN_IMAGES = 5


# (path below the folder, Google Drive's id of the archive, its name): LRV-Instruct's authors publish it there.
_LRV_VG_IMAGES = ("lrv/lrv-vg", "1k9MNV-ImEV9BYEOeLEIb4uGEUZjd3QbM", "image.tar.gz")
_LRV_CHART_IMAGES = ("lrv/lrv-chart", "1Dey-undzW2Nl21CYLFSkP_Y4RrfRJkYd", "chart_image.zip")
# File -> (path of a row's image with a place for its `image_id`, the file's id): lists of objects with `image_id`,
# `question` and `answer`.
_LRV_FILES = {
    "lrv/filter_cap1.json": ("lrv/lrv-vg/{}.jpg", "1pWkxE2kqpys1VdwBi99ZXN6-XY5SqhwU"),
    "lrv/filter_cap_more1.json": ("lrv/lrv-vg/{}.jpg", "1NTxkuRPlvDn7aWaJpK_yb0p5r0cxPLNZ"),
    "lrv/chart_release_update.json": ("lrv/lrv-chart/{}", "13j2U-ectsYGR92r6J5hPdhT8T5ezItHF"),
}


@dataclass(frozen=True)
class Mix:
    """A merged annotation file that was written."""

    path: Path
    rows: int
    val2017_rows: int
    """Rows on images of COCO val2017, the default images of the benchmark."""

    def __str__(self) -> str:
        text = f"{self.path}: {counted(self.rows, 'row')}"
        if not self.val2017_rows:
            return text
        warning = "show images of COCO val2017: scores on those say little of a model trained on them"
        return f"{text}; {self.val2017_rows:,} of them {warning}"


def mix_lvis(root_dir: Path) -> Mix:
    """Merge LVIS-Instruct-4V into LLaVA v1.5's mix: `llava_v1_5_lvis4v_mix888k.json`.

    The two inputs are fetched where they are missing from the data folder `root_dir`.

    Raises:
        UserError: An input cannot be fetched or read, or images are missing; all of these are in a file then.
    """
    folder = Path(root_dir) / _FOLDER
    with disk_errors(f"the mix could not be made in {folder}"):
        rows = _fetched_rows(folder, _BASE) + _fetched_rows(folder, _LVIS)
        _check_images(folder, rows)
        return _write_mix(folder / LVIS_MIX, rows, random.Random(_SEED))


def mix_lrv(root_dir: Path) -> list[Mix]:
    """Merge LRV-Instruct into LLaVA v1.5's mix and into the one with LVIS-Instruct-4V, where that is there.

    Writes `llava_v1_5_lrv_mix1008k.json` and `llava_v1_5_lvis4v_lrv_mix1231k.json` in the data folder `root_dir`.

    Raises:
        UserError: An input is missing (with where to get it) or cannot be read, or images are missing; all of these
            are in a file then.
    """
    folder = Path(root_dir) / _FOLDER
    _require_lrv(folder)
    with disk_errors(f"the mix could not be made in {folder}"):
        added = [row for name, (image, _) in _LRV_FILES.items() for row in _lrv_rows(folder / name, image)]
        generator = random.Random(_SEED)
        rows = _fetched_rows(folder, _BASE) + added
        _check_images(folder, rows)
        mixes = [_write_mix(folder / _LRV_MIX, rows, generator)]
        if (folder / LVIS_MIX).is_file():
            rows = _chat_rows(folder / LVIS_MIX) + added
            _check_images(folder, rows)
            mixes.append(_write_mix(folder / _LVIS_LRV_MIX, rows, generator))
    return mixes


def _fetched_rows(folder: Path, name: str) -> Rows:
    try:
        path = fetch(_URLS[name], folder)
    except Unreachable as error:
        raise UserError(
            f"{folder / name} is not there, and {error}. Run the same command again where the hub can be reached, or "
            f"bring {_URLS[name]} there by other means."
        ) from error
    return _chat_rows(path)


def _chat_rows(path: Path) -> Rows:
    """Read rows in LLaVA's format, with or without an image."""
    rows = _read_rows(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("conversations"), list):
            raise _row_error(path, number, "has no list `conversations`")
        try:
            image = image_of(row)
        except ValueError as error:
            raise _row_error(path, number, str(error)) from error
        if image is not None:
            _check_path(path, number, image)
        rows[number - 1] = with_image(row, image)
    return rows


def _lrv_rows(path: Path, image_form: str) -> Rows:
    """Read a file of LRV-Instruct and return its rows in LLaVA's format, one question and answer each."""
    rows: Rows = []
    for number, row in enumerate(_read_rows(path), 1):
        image_id, question, answer = (row.get(key) for key in ("image_id", "question", "answer"))
        if not (isinstance(image_id, str | int) and isinstance(question, str) and isinstance(answer, str)):
            raise _row_error(path, number, "lacks `image_id`, or `question` and `answer` as text")
        image = image_form.format(image_id)
        _check_path(path, number, image)
        turns = [{"from": "human", "value": f"<image>\n{question.strip()}"}, {"from": "gpt", "value": answer.strip()}]
        row_id = PurePosixPath(image).stem if isinstance(image_id, str) else image_id
        rows.append({"id": row_id, "image": image, "conversations": turns})
    return rows


def _read_rows(path: Path) -> Rows:
    rows = read_json(path, "the annotation file", "Delete it and fetch it again.")
    if not isinstance(rows, list) or not rows:
        kind = "an empty list" if rows == [] else f"a JSON {type(rows).__name__}"
        raise UserError(f"{path} holds {kind}, expected a list of rows: delete it and fetch it again")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise _row_error(path, number, f"is a JSON {type(row).__name__}, expected an object")
    return rows


def _check_path(path: Path, number: int, image: Any) -> None:
    problem = "is no text" if not isinstance(image, str) else unsafe_name(image)
    if problem:
        raise _row_error(path, number, f"names the image {str(image)[:80]!r}, which {problem}")


def _row_error(path: Path, number: int, problem: str) -> UserError:
    return UserError(f"row {number} of {path} {problem}: it is not the published file; delete it and fetch it again")


def _require_lrv(folder: Path) -> None:
    """Name all inputs of LRV-Instruct that are not there, and where each comes from."""
    absent = [
        f"{name} (https://drive.google.com/uc?id={drive_id})"
        for name, (_, drive_id) in _LRV_FILES.items()
        if not (folder / name).is_file()
    ]
    absent += [
        f"{name}/ (unpacked from {archive}: https://drive.google.com/uc?id={drive_id})"
        for name, drive_id, archive in (_LRV_VG_IMAGES, _LRV_CHART_IMAGES)
        if not (folder / name).is_dir()
    ]
    if absent:
        raise UserError(
            f"LRV-Instruct is not complete in {folder}; its authors publish it on Google Drive, which wants a browser "
            f"or `gdown`. Put there: {'; '.join(absent)}"
        )


def _check_images(folder: Path, rows: Rows) -> None:
    """Raise a UserError that counts the missing images, after writing all of their paths to a file."""
    images = dict.fromkeys(row["image"] for row in rows if "image" in row)
    missing = [image for image in track_items(images, "checking images") if not os.path.isfile(folder / image)]
    (folder / _MISSING).unlink(missing_ok=True)
    if not missing:
        return
    write_text(folder / _MISSING, "".join(f"{image}\n" for image in missing))
    more = ", ..." if len(missing) > _SHOWN_IMAGES else ""
    raise UserError(
        f"{len(missing)} of {len(images)} images are missing in {folder}: {', '.join(missing[:_SHOWN_IMAGES])}{more}; "
        f"all of them are in {folder / _MISSING}. {_image_remedy(folder, missing)}"
    )


def _image_remedy(folder: Path, missing: Sequence[str]) -> str:
    """Return the sentences that say where the missing images come from."""
    root = shlex.quote(str(folder.parent.parent))
    remedies = {
        "coco/val2017/": f"Unpack http://images.cocodataset.org/zips/val2017.zip in {folder / 'coco'}.",
        "lrv/": f"Unpack the images of LRV-Instruct in {folder / 'lrv'} again.",
        "": f"Fetch the rest: python scripts/preprocess.py --dataset_id llava-v1.5-instruct --root_dir {root}",
    }
    sources = {next(filter(image.startswith, remedies)) for image in missing}
    return " ".join(remedy for source, remedy in remedies.items() if source in sources)


def _write_mix(path: Path, rows: Rows, generator: random.Random) -> Mix:
    """Shuffle `rows` in place and write them, one a line."""
    for _ in range(_SHUFFLES):
        generator.shuffle(rows)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "[\n"
        for row in track_items(rows, f"writing {path.name}"):
            file.write(separator + json.dumps(row))
            separator = ",\n"
        file.write("\n]\n")
    return Mix(path, len(rows), sum(row.get("image", "").startswith("coco/val2017/") for row in rows))
