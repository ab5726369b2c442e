"""Fetch a dataset into `{root_dir}/download/{dataset_id}/`, and convert images to JPEG."""

import io
import shutil
from pathlib import Path

from cobra.preprocessing.archives import extract_archive
from cobra.preprocessing.fetch import fetch
from cobra.preprocessing.llava_cot.archive.hub_files import download_publication
from cobra.preprocessing.llava_cot.archive.joined_parts import RECORDS, consumed_parts
from cobra.preprocessing.progress import track_items
from cobra.preprocessing.published_files import COT_ID, DATASET_REGISTRY, Component
from cobra.preprocessing.transfer import Unreachable
from cobra.util.errors import UserError, check_known, disk_errors
from cobra.util.files import atomic_path
from cobra.util.images import check_decodes, read_header, read_rgb
from cobra.util.lock import hold

# Published OCR-VQA images come in these forms too; the annotations name every one `.jpg`.
_CONVERTED_SUFFIXES = {".png", ".gif", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_JPEG_QUALITY = 95

# Litter that macOS puts beside the content of an archive.
_LITTER = {"__MACOSX", ".DS_Store"}


def download_extract(dataset_id: str, root_dir: Path, revision: str = "main", token: str | None = None) -> None:
    """Fetch every component of a dataset that is not there yet into `{root_dir}/download/{dataset_id}/`.

    Archives are unpacked and then removed. Each component appears under its name only when it is whole; the bytes of an
    interrupted call lie in the folder `.fetch`, where the next call resumes. Files of the Hugging Face hub are checked
    by their hashes; HF_ENDPOINT is respected.

    Args:
        dataset_id: A key of `DATASET_REGISTRY`.
        root_dir: The data folder.
        revision: Branch, tag or commit of llava-cot-100k; other datasets have none.
        token: The hub's token; without one HF_TOKEN counts.

    Raises:
        UserError: The dataset is unknown, or a component cannot be fetched, is refused or does not fit on the disk.
    """
    check_known(dataset_id, DATASET_REGISTRY, "the dataset")
    folder = Path(root_dir) / "download" / dataset_id
    if revision != "main" and dataset_id != COT_ID:
        raise UserError(f"--revision {revision} is of no use with {dataset_id}: only {COT_ID} has revisions. Drop it.")
    with hold(folder / RECORDS, "another run is at work"):
        if dataset_id == COT_ID:
            download_publication(folder, revision, token, skip=consumed_parts(folder))
        else:
            _download_components(dataset_id, folder, token)


def _download_components(dataset_id: str, folder: Path, token: str | None) -> None:
    for component in DATASET_REGISTRY[dataset_id]:
        if (folder / component["name"]).exists() or _mark(component, folder).exists():
            continue
        try:
            with disk_errors(f"{component['name']} of {dataset_id} could not be written"):
                _obtain(component, folder, token)
        except Unreachable as error:
            raise UserError(
                f"{component['name']} of {dataset_id} cannot be fetched: {error}. Run the same command again where "
                f"there is a network, and copy {folder} here; what is there already is kept."
            ) from error
    shutil.rmtree(folder / ".fetch", ignore_errors=True)


def _mark(component: Component, folder: Path) -> Path:
    """Return the file that marks an archive as unpacked where it has no name of its own to show it."""
    return folder / f".{component['name'].replace('/', '__')}.unpacked"


def _obtain(component: Component, folder: Path, token: str | None) -> None:
    # A folder of its own for each: gqa and vg both publish an images.zip.
    workspace = folder / ".fetch" / component["name"].replace("/", "__")
    fetched = fetch(component["url"], workspace, token)
    target = folder / component["name"]
    target.parent.mkdir(parents=True, exist_ok=True)
    if not component["extract"]:
        fetched.replace(target)
    elif component["do_rename"]:
        content = workspace / "content"
        extract_archive(fetched, content)
        _content(component, content).replace(target)
    else:
        extract_archive(fetched, folder)
        _mark(component, folder).touch()
    shutil.rmtree(workspace)


def _content(component: Component, unpacked: Path) -> Path:
    """Return what an archive holds: its only file, or its folder without the folders that wrap all of it."""
    entries = [entry for entry in unpacked.iterdir() if entry.name not in _LITTER]
    if len(entries) == 1 and entries[0].is_dir():
        return _content(component, entries[0])
    if component["extract_type"] == "directory":
        return unpacked
    if len(entries) != 1:
        raise UserError(f"{component['url']} holds {len(entries)} entries, expected the one file {component['name']}")
    return entries[0]


def convert_to_jpg(image_dir: Path) -> None:
    """Write a `.jpg` beside every image of another form in `image_dir`, as the OCR-VQA annotations name them.

    The originals and subfolders are left alone. Of an animation the first frame is taken, transparent pixels become
    white. Images whose `.jpg` is there are skipped, so a call can be repeated at any time.

    Raises:
        UserError: The folder does not exist, or images in it are unreadable (after all others are converted).
    """
    image_dir = Path(image_dir)
    if not image_dir.is_dir():
        raise UserError(f"the folder of images to convert does not exist: {image_dir}")
    todo = [
        path
        for path in sorted(image_dir.iterdir())
        if path.suffix.lower() in _CONVERTED_SUFFIXES and not path.with_suffix(".jpg").exists()
    ]
    unreadable = []
    for path in track_items(todo, "converting to jpg"):
        try:
            content = _as_jpeg(path)
        except OSError as error:
            unreadable.append(f"{path.name} ({error})")
        else:
            with atomic_path(path.with_suffix(".jpg")) as temporary:
                temporary.write_bytes(content)
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(todo)} images in {image_dir} are unreadable: {'; '.join(unreadable[:5])}. "
            "Fetch them again, or take the rows that name them out of the annotation file."
        )


def _as_jpeg(path: Path) -> bytes:
    """Return an image as an RGB JPEG file; one that is JPEG under another suffix stays as it is, byte by byte."""
    if read_header(path).format == "JPEG":
        check_decodes(path)
        return path.read_bytes()
    buffer = io.BytesIO()
    read_rgb(path).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
