"""Captions of any system in COCO's results format: a list of `{"image_id": ..., "caption": ...}`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cobra.evaluation.data.captioned_image import ImageId, count_images, id_of, refuse_images, shortened, text_of
from cobra.evaluation.data.image_index import KnownImages, Matched, match_ids
from cobra.util.errors import UserError
from cobra.util.files import read_json

_EXPECTED = (
    "Expected is COCO's results format, a list of objects as JSON in UTF-8: "
    '[{"image_id": 42, "caption": "a dog"}, ...], with ids or file names of the annotation file.'
)


@dataclass(frozen=True)
class Predictions:
    """The captions of a results file."""

    captions: dict[ImageId, str]
    """Captions of the images asked for, in their order and by the ids of the annotation file."""
    missing: list[ImageId]
    """Images asked for that the file has no caption for."""
    remark: str | None = None
    """Sentence on how ids were matched and on duplicates that count once; None where there is nothing to say."""


def read_predictions(
    path: Path,
    known: KnownImages,
    wanted: Sequence[ImageId],
    allow_missing: bool = False,
    list_file: Path | None = None,
) -> Predictions:
    """Read captions, and match their ids with those of the annotation file, as :func:`match_ids` does.

    Args:
        path: The file; its list may be written as JSON lines.
        known: All images that have references; captions of those that are not wanted are left out.
        wanted: Ids among them that a caption is needed for.
        allow_missing: True where wanted ones may be missing, though not all.
        list_file: Written, with all ids that an error is about, where they are more than it names.

    Raises:
        UserError: The file is missing, is not JSON (with the line) or not of that form, or its ids are unknown, lack
            wanted ones or repeat with another caption.
    """
    content = read_json(path, "the predictions file", _EXPECTED, lines=True)
    if not isinstance(content, list):
        raise UserError(f"{path} is not in COCO's results format: {shortened(content)} was found. {_EXPECTED}")
    rows = []
    for number, entry in enumerate(content):
        where = f"{path}: [{number}]"
        try:
            rows.append((id_of(entry, "image_id", where), text_of(entry, "caption", where)))
        except UserError as error:
            raise UserError(f"{error}. {_EXPECTED}") from error
    matched = match_ids([image_id for image_id, _ in rows], known)
    ids = matched.ids
    unknown = list(dict.fromkeys(image_id for image_id, _ in rows if image_id not in ids))
    remedy = "They are neither ids nor file names of one image each in the annotation file: give the one they are of."
    refuse_images(unknown, f"{path} has captions for", remedy, list_file)
    captions: dict[ImageId, str] = {}
    repeated: dict[ImageId, None] = {}
    for written, caption in rows:
        if captions.setdefault(ids[written], caption) != caption:
            repeated[ids[written]] = None
    remedy = "Leave one for each image."
    refuse_images(list(repeated), f"{path} has more than one caption for", remedy, list_file)
    missing = [image_id for image_id in wanted if image_id not in captions]
    if not allow_missing or len(missing) == len(wanted):
        remedy = "Add them, or score the others alone with --allow_missing."
        refuse_images(missing, f"{path} has no caption for", remedy, list_file)
    kept = {image_id: captions[image_id] for image_id in wanted if image_id in captions}
    remarks = _remarks(path, matched, len(rows) - len(captions), known)
    return Predictions(kept, missing, " ".join(remarks) or None)


def _remarks(path: Path, matched: Matched, repeated: int, known: KnownImages) -> list[str]:
    remarks = []
    changed = [(written, image_id) for written, image_id in matched.ids.items() if written != image_id]
    if changed:
        written, image_id = changed[0]
        remarks.append(
            f"{path} words the ids of {count_images(len(changed))} otherwise than the annotation file does: they were "
            f"matched by number or file name, {shortened(written)} with {shortened(image_id)} for one."
        )
    if matched.unclear is not None:
        number, as_id, as_name = matched.unclear
        remarks.append(
            f"The numbers in {path} were read as ids of the annotation file, whose file names have other numbers: "
            f"{number} is {shortened(known[as_id].file_name)}, not {shortened(known[as_name].file_name)}. Give file "
            "names as ids if these were meant."
        )
    if repeated:
        remarks.append(f"Captions that {path} has a second time, word for word, and that count once: {repeated:,}.")
    return remarks
