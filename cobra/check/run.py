"""Check of data, from the file or folder to the report."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cobra.check.config import CheckConfig
from cobra.check.forecast import forecast
from cobra.check.overlap import compare_coco, compare_holdout
from cobra.check.pictures import find_folder, look_at
from cobra.check.report import CheckReport
from cobra.check.sift import sift
from cobra.check.texts import count_lengths, read_texts
from cobra.conf import ModelConfig
from cobra.models.registry import MODELS, find_model
from cobra.preprocessing.datasets.arrow_rows import Rows, read_rows
from cobra.preprocessing.datasets.datasets import check_learnable
from cobra.preprocessing.datasets.other_forms import Form, write_command
from cobra.preprocessing.forms.records import find_source
from cobra.preprocessing.packed.rows import RowImages
from cobra.preprocessing.progress import track_items
from cobra.training.row_checks import tell_markers
from cobra.util.errors import UserError, lookup
from cobra.util.files import atomic_path
from cobra.util.jsonl import to_json
from cobra.util.parallel import available_cores

_LINES = (".jsonl", ".ndjson")
_NOTHING_LEFT = "no row is left to be written"


def check(config: CheckConfig) -> CheckReport:
    """Read every row, open every image, and write rows where that is asked for.

    Raises:
        UserError: The data cannot be read, or the file to write is there already.
    """
    model = (find_model(config.model) or lookup(MODELS, config.model, "--model")).config
    if config.write is not None and config.write.exists():
        raise UserError(f"{config.write} is there already: give --write another name, or move that file away")
    source = find_source(config.data)
    if source.form is Form.PACKED and config.write is not None:
        raise UserError(
            f"--write copies rows, and the images of {source.path} are inside it: train on it as it is "
            f"(--dataset.finetune_stage_components '[{source.path}, {source.folder}]'), and leave rows out with the "
            "filter of `datasets`"
        )
    with TemporaryDirectory(prefix="cobra-check-") as folder:
        passed = Path(folder) / "rows.jsonl"
        sifted = sift(source, config.question, passed)
        report = CheckReport(source.path, source.form, model.model_id, sifted, write_command(source.path))
        if not sifted.read:
            raise UserError(f"{source.path} ({source.form}) holds no row: add some, or name another file or folder")
        if not sifted.taken:
            report.refusal = "" if config.write is None else _NOTHING_LEFT
            return report
        is_as_brought = not sifted.converted and not sifted.refused
        file = source.path if is_as_brought else passed
        rows = read_rows(file)
        images_dir = find_folder(config.images, source.folder, rows.images(), source.path)
        workers = config.num_workers or available_cores()
        report.pictures = look_at(rows.images(), RowImages(source.path, images_dir), workers)
        good = np.array([image not in report.pictures.bad for image in rows.images()])
        report.bad_image_rows = int((~good).sum())
        if config.write is not None:
            if not good.any():
                report.refusal = _NOTHING_LEFT
                return report
            write_rows(rows.select(np.flatnonzero(good)), images_dir, config.write)
            report.written = file = config.write
            rows = read_rows(file)
        _examine(report, config, model, rows, file)
    return report


def _examine(report: CheckReport, config: CheckConfig, model: ModelConfig, rows: Rows, file: Path) -> None:
    """Fill in what there is to say of rows of the right form."""
    assert report.pictures is not None
    folder, contents = report.pictures.folder, report.pictures.contents
    report.with_image = int(rows.has_image.sum())
    report.remarks = rows.remark_lines()
    # A file that was made on the way says nothing to the user.
    shown = str(report.written or report.data)

    def note(text: str) -> None:
        report.remarks.append(text.removeprefix("warning: ").replace(str(file), shown))

    tell_markers(rows, note)
    report.texts = read_texts(rows, contents)
    report.lengths = count_lengths(rows, file, model)
    if (overlap := compare_coco(config.coco_annotations, contents)) is not None:
        report.overlaps.append(overlap)
    if config.holdout is not None:
        overlap = compare_holdout(config.holdout, folder, report.texts, contents.values())
        report.overlaps.append(overlap)
    try:
        check_learnable(rows)
        report.forecast = forecast(file, folder, config.holdout, report.lengths.conclusion_cut > 0, model)
    except UserError as error:
        report.refusal = str(error).replace(str(file), shown)


def write_rows(rows: Rows, image_dir: Path, target: Path) -> None:
    """Write rows to a file, one a line: a JSON list, or JSON lines where its name ends so.

    Absolute image paths become relative to the image folder.

    Args:
        rows: The rows, whose images are all below the folder.
        image_dir: The image folder.
        target: The file, which is written whole or not at all.
    """
    first, between, last = (b"", b"\n", b"\n") if target.suffix.lower() in _LINES else (b"[\n", b",\n", b"\n]\n")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        file.write(first)
        for number, row in enumerate(track_items(rows, f"Writing {target.name}")):
            if os.path.isabs(image := row.get("image", "")):
                row["image"] = Path(os.path.relpath(image, image_dir)).as_posix()
            file.write((between if number else b"") + to_json(row))
        file.write(last)
