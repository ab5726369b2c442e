"""LLaVA-CoT-100k made ready for training: unpack, convert, check, report."""

from pathlib import Path

from cobra.conf.datasets import LLaVa_CoT_100k_Config
from cobra.preprocessing.llava_cot.converting import convert_rows
from cobra.preprocessing.llava_cot.images import ImageChecker
from cobra.preprocessing.llava_cot.joining import FETCH_COMMAND, find_archive
from cobra.preprocessing.llava_cot.report import Report
from cobra.preprocessing.llava_cot.rows import sample_images
from cobra.preprocessing.llava_cot.unpacking import Unpacked, find_root, unpack_images
from cobra.util.errors import UserError
from cobra.util.files import write_json

TRAIN = "train.jsonl"
REJECTED = "rejected.jsonl"
REPORT = "report.json"

# Outcomes of decoding, so that a rerun need not decode again.
_CHECKED_IMAGES = Path(".prepare/images.jsonl")


def prepare(dataset_root: Path) -> Report:
    """Make the published files in `{dataset_root}/download/llava-cot-100k/` into what `llava-cot-100k` trains on.

    Reads `train.jsonl` and the images: the parts of `image.zip`, a whole `image.zip`, or images that are unpacked
    already. Writes the images, `llava_cot_100k.json` (unless no row is usable), `rejected.jsonl` and `report.json`
    there. A rerun skips what is done; an interrupt loses nothing that is done.

    Args:
        dataset_root: The data folder, as `--dataset.dataset_root_dir` of the training.

    Raises:
        UserError: Files are absent, the archive cannot be read, no row's image is found anywhere, or the disk is full.
    """
    annotation, folder = (Path(dataset_root) / path for path in LLaVa_CoT_100k_Config.finetune_stage_components)
    train = folder / TRAIN
    fetch_command = FETCH_COMMAND.format(root=dataset_root)
    if not train.is_file():
        raise UserError(f"{train} does not exist. Fetch LLaVA-CoT-100k: {fetch_command}")
    try:
        images = sample_images(train)
        report = Report()
        root = ""
        if images:
            root, report.archive = _provide_images(folder, images, fetch_command)
        with ImageChecker(folder, folder / _CHECKED_IMAGES) as checker:
            convert_rows(train, annotation, folder / REJECTED, checker, root, report)
        write_json(folder / REPORT, report.to_json())
    except OSError as error:
        raise UserError(
            f"{folder} cannot be prepared: {error}. Mend that and run again; what is done is kept."
        ) from error
    return report


def _provide_images(folder: Path, images: list[str], fetch_command: str) -> tuple[str, Unpacked | None]:
    """Unpack the archive, if there is one, where images lie already or else into `folder`.

    Args:
        folder: The dataset's folder.
        images: Image paths of rows.
        fetch_command: Closes the error.

    Returns:
        The folder that the rows' paths start from, relative to `folder` (see :func:`find_root`), and what came of
        unpacking.
    """
    root = find_root(folder, images)
    parts = find_archive(folder)
    if not parts and root is None:
        raise UserError(
            f"{folder} holds neither the images (such as {images[0]}, in any subfolder) nor their archive "
            f"(image.zip.part-aa and on, or image.zip). Fetch them: {fetch_command}"
        )
    unpacked = unpack_images(parts, folder / (root or ""), images) if parts else None
    if root is None and unpacked is None:
        raise UserError(
            f"none of the rows' images (such as {images[0]}) is in the archive {parts[0]}: it is not the archive that "
            f"belongs to {folder / TRAIN}. Delete both and fetch them: {fetch_command}"
        )
    return root or "", unpacked
