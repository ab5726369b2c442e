"""Check that the published files are there and in order, and fetch those that are missing."""

import shutil
from pathlib import Path

from rich.console import Console

from cobra.preprocessing.llava_cot.archive.hub_files import bytes_to_come, download_publication
from cobra.preprocessing.llava_cot.archive.integrity import inspect_archive
from cobra.preprocessing.llava_cot.archive.joined_parts import RECORDS, WHOLE, consumed_parts, find_archive
from cobra.preprocessing.llava_cot.archive.unpack import MANIFEST, find_root
from cobra.preprocessing.llava_cot.config import PrepareConfig
from cobra.preprocessing.llava_cot.rows.raw_row import sample_images
from cobra.preprocessing.published_files import COT_ROWS, prepare_command
from cobra.util.errors import UserError

# Parts that are on the disk beside their images at the same time where each is deleted once it is unpacked.
_PARTS_IN_WORK = 2


def provide_files(config: PrepareConfig, folder: Path, token: str | None) -> list[str]:
    """Provide the rows and the images, or the archive that they are in.

    The network is not used where they are there and in order, unless another revision than `main` is wanted.

    Returns:
        Image paths of rows, a sample of the whole file; empty where no row has an image.

    Raises:
        UserError: Something is absent or damaged and may not or cannot be fetched.
    """
    problem = _problem(folder)
    if problem is None and not (config.download and config.revision != "main"):
        return sample_images(folder / COT_ROWS)
    if not config.download:
        raise UserError(f"{problem} To fetch what is missing: {prepare_command(config.dataset_root)}")
    if problem:
        Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(f"{problem} It is fetched now.")
    consumed = consumed_parts(folder)
    _check_space(config, folder, bytes_to_come(folder, config.revision, token, consumed))
    download_publication(folder, config.revision, token, consumed)
    if problem := _problem(folder):
        raise UserError(f"what was fetched cannot be used: {problem}")
    return sample_images(folder / COT_ROWS)


def _problem(folder: Path) -> str | None:
    """Return, as a sentence, what is absent or out of order; None where nothing is."""
    if not (folder / COT_ROWS).is_file():
        return f"{folder / COT_ROWS} does not exist."
    try:
        inspect_archive(folder)
    except UserError as error:
        return str(error)
    if find_archive(folder) or consumed_parts(folder):
        return None
    images = sample_images(folder / COT_ROWS)
    if images and find_root(folder, images) is None:
        return (
            f"{folder} holds neither the images (such as {images[0]}, in any subfolder) nor their archive "
            f"({WHOLE}.part-aa and on, or {WHOLE})."
        )
    return None


def _check_space(config: PrepareConfig, folder: Path, to_come: int) -> None:
    """Refuse to begin a download after which the images would not fit."""
    parts = [path.stat().st_size for path in folder.glob(f"{WHOLE}*")]
    # Images are packed as they are, so they take about as much as the archive; some may be there already.
    archive = 0 if (folder / RECORDS / MANIFEST).is_file() else sum(parts) + to_come
    in_work = archive * _PARTS_IN_WORK // 16
    beside = archive if config.keep_parts else in_work
    free = shutil.disk_usage(folder).free
    if to_come + beside > free:
        least = f"{(to_come + in_work) / 1e9:,.0f} GB"
        remedy = f", or give --keep_parts false, which deletes the parts as they are unpacked and takes {least}"
        raise UserError(
            f"{folder} needs about {(to_come + beside) / 1e9:,.0f} GB ({to_come / 1e9:,.0f} GB to fetch and "
            f"{beside / 1e9:,.0f} GB to unpack) and its disk has {free / 1e9:,.0f} GB free: free some space, give "
            f"another folder with --dataset_root{remedy if config.keep_parts else ''}"
        )
