"""Captions of any system in COCO's results format: a list of `{"image_id": ..., "caption": ...}`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cobra.evaluation.entries import ImageId, count_images, id_and_text, match_ids, refuse, shortened
from cobra.util.errors import UserError
from cobra.util.files import read_json


@dataclass(frozen=True)
class Predictions:
    """The captions of a results file."""

    captions: dict[ImageId, str]
    """Of the images asked for, in their order and by the ids of the annotation file."""
    missing: list[ImageId]
    """Images asked for that the file has no caption for."""
    remark: str | None = None
    """What was done to match the ids, in one sentence; None where they are the same."""


def read_predictions(
    path: Path,
    known: Iterable[ImageId],
    wanted: Iterable[ImageId],
    allow_missing: bool = False,
    list_file: Path | None = None,
) -> Predictions:
    """Read captions, and match their ids with those of the annotation file.

    An id that is not known as it stands is matched by its number: of `"42"`, `42` and the file name of a photo of COCO
    that number is 42. So results with ids as text are scored too; the remark says so.

    Args:
        path: The file; its list may be written as JSON lines.
        known: Ids of all images that have references; captions of those that are not wanted are left out.
        wanted: Ids among them that a caption is needed for.
        allow_missing: Whether wanted ones may be missing, though not all.
        list_file: Written, with all ids that an error is about, where they are more than it names.

    Raises:
        UserError: The file is missing, is not JSON (with the line) or not of that form, or its ids repeat, are unknown
            or lack wanted ones.
    """
    content = read_json(path, "the predictions file", lines=True)
    if not isinstance(content, list):
        raise UserError(
            f'{path} is not in COCO\'s results format: a list of {{"image_id", "caption"}} was expected, and '
            f"{shortened(content)} was found"
        )
    rows = [id_and_text(entry, "image_id", "caption", f"{path}: [{number}]") for number, entry in enumerate(content)]
    ids = match_ids([image_id for image_id, _ in rows], known)
    unknown = [image_id for image_id, _ in rows if image_id not in ids]
    remedy = "The annotation file does not know them: give the one they belong to."
    refuse(list(dict.fromkeys(unknown)), f"{path} has captions for", remedy, list_file)
    repeated = [image_id for image_id, count in Counter(ids[found] for found, _ in rows).items() if count > 1]
    refuse(repeated, f"{path} has more than one caption for", "Leave one for each image.", list_file)
    captions = {ids[found]: caption for found, caption in rows}
    wanted = list(wanted)
    missing = [image_id for image_id in wanted if image_id not in captions]
    if not allow_missing or len(missing) == len(wanted):
        remedy = "Add them, or score the others alone with --allow_missing."
        refuse(missing, f"{path} has no caption for", remedy, list_file)
    kept = {image_id: captions[image_id] for image_id in wanted if image_id in captions}
    return Predictions(kept, missing, _remark(path, ids))


def _remark(path: Path, ids: dict[ImageId, ImageId]) -> str | None:
    changed = [(found, known) for found, known in ids.items() if found != known]
    if not changed:
        return None
    found, known = changed[0]
    return (
        f"{path} words the ids of {count_images(len(changed))} otherwise than the annotation file does: they were "
        f"matched by their numbers, {found!r} with {known!r} for one."
    )
