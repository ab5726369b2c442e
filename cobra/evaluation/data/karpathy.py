"""The splits of Karpathy and Fei-Fei (arXiv 1412.2306), which captioning papers report on.

Their `dataset_coco.json` (and those of Flickr8k and Flickr30k, in the same form) holds every image with its split and
captions. Where COCO's own captions_val2014.json is at hand, the ids of the 5,000 test images are enough.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cobra.evaluation.data.captioned_image import (
    CaptionedImage,
    ImageId,
    check_file_name,
    id_of,
    refuse_images,
    shortened,
    text_of,
    whole_text,
)
from cobra.evaluation.data.image_index import ImageNames, KnownImages, match_ids
from cobra.util.errors import UserError, missing_extra
from cobra.util.files import package_folder, parse_json, read_json, read_text
from cobra.util.numbers import counted

TEST_IDS = "karpathy-test"
"""Asks for the test images by the ids that the package eccv-caption holds."""


def is_karpathy(content: Any) -> bool:
    """Return True if the content of a JSON file has this form: `images`, each with `sentences`."""
    images = content.get("images") if isinstance(content, dict) else None
    return isinstance(images, list) and any(isinstance(entry, dict) and "sentences" in entry for entry in images[:1])


def parse_karpathy(content: Any, path: Path, split: str | None) -> tuple[list[CaptionedImage], KnownImages]:
    """Take the images of a split out of what :func:`is_karpathy` has accepted.

    Args:
        content: Content of the file: `images` with `filename`, `filepath` (its folder, in COCO alone), `cocoid` (or
            `imgid`), `split` and `sentences`, each with its text `raw`.
        path: Names the file in errors.
        split: Its name; None is `test`.

    Returns:
        The images in the file's order, and the names of all images of the file.

    Raises:
        UserError: There is no such split, an image is not of that form, has no caption or is there twice, or a file
            name leads out of the image folder.
    """
    split = "test" if split is None else split
    images: list[CaptionedImage] = []
    known: dict[ImageId, ImageNames] = {}
    splits: Counter[str] = Counter()
    for number, entry in enumerate(content["images"]):
        where = f"{path}: images[{number}]"
        key = "cocoid" if isinstance(entry, dict) and "cocoid" in entry else "imgid"
        image_id, name = id_of(entry, key, where), text_of(entry, "filename", where)
        if image_id in known:
            raise UserError(f"{where}: the {key} {image_id!r} was there before")
        if isinstance(entry.get("filepath"), str):
            name = f"{entry['filepath']}/{name}"
        imgid = entry.get("imgid")
        known[image_id] = ImageNames(name, (imgid,) if type(imgid) in (int, str) and key != "imgid" else ())
        splits[str(entry.get("split"))] += 1
        if entry.get("split") == split:
            check_file_name(name, where)
            images.append(CaptionedImage(image_id, name, _captions(entry, where)))
    if not images:
        there = ", ".join(f"{shortened(name)} ({counted(count, 'image')})" for name, count in splits.most_common(10))
        raise UserError(f"{path} has no images of the split {split!r}; it has: {there}. Choose one with --split.")
    bare = [image.image_id for image in images if not image.references]
    refuse_images(bare, f"{path} has no caption for", "Take them out of `images`, or add sentences.")
    return images, known


def _captions(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    sentences = entry.get("sentences")
    if not isinstance(sentences, list):
        raise UserError(f"{where} has the sentences {shortened(sentences)}, and a list was expected")
    texts = []
    for sentence in sentences:
        raw = sentence.get("raw") if isinstance(sentence, dict) else None
        if not isinstance(raw, str):
            raise UserError(f"{where} has the sentence {shortened(sentence)}, without a text in `raw`")
        texts.append(whole_text(raw))
    return tuple(texts)


def read_ids(image_ids: Path | str) -> list[ImageId]:
    """Read which images to keep.

    Args:
        image_ids: A file with a JSON list of ids or file names of COCO, or one a line; or `karpathy-test`, which needs
            the package eccv-caption.

    Raises:
        UserError: The file is missing or holds something else, or the package is not installed.
    """
    if str(image_ids) == TEST_IDS:
        folder = package_folder("eccv_caption")
        if folder is None:
            raise missing_extra("eccv-caption", "karpathy", "The list of Karpathy's test images")
        numbers = read_json(folder / "data" / "original_image_to_caption.json", "the list of Karpathy's test images")
        # As file names: other sets than COCO's own have ids that are not its numbers.
        return [f"{int(number):012d}.jpg" for number in numbers]
    path = Path(image_ids)
    what, remedy = "the file of image ids", f"The word {TEST_IDS} needs no file."
    text = read_text(path, what, remedy)
    is_json = text.lstrip()[:1] in ("[", "{")
    content: Any = parse_json(text, f"{path} ({what})", remedy) if is_json else text.split()
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} is not a list of image ids, numbers or texts: {shortened(content)}")
    where = f"{path} is not a list of image ids: its entry"
    return list(dict.fromkeys(id_of({"id": entry}, "id", f"{where} {place}") for place, entry in enumerate(content)))


def keep_ids(
    images: Sequence[CaptionedImage],
    known: KnownImages,
    ids: Sequence[ImageId],
    source: str,
    list_file: Path | None = None,
) -> list[CaptionedImage]:
    """Return the images of some ids or file names, matched as :func:`match_ids` does, in the images' order.

    Args:
        images: All images.
        known: Names of these images, and maybe of others.
        ids: Those to keep.
        source: Names the file of the images in errors.
        list_file: Written, with all ids that are missing, where they are more than the error names.

    Raises:
        UserError: Ids are not among the images, or it is not clear whether they are numbers in file names.
    """
    matched = match_ids(ids, {image.image_id: known[image.image_id] for image in images})
    missing = [image_id for image_id in ids if image_id not in matched.ids]
    remedy = "Give the captions that the ids are of: for Karpathy's test images, COCO's captions_val2014.json."
    refuse_images(missing, f"{source} does not hold", remedy, list_file)
    if matched.unclear is not None:
        number, as_id, as_name = matched.unclear
        raise UserError(
            f"the list of images to keep is not clear: in {source}, {number} is the id of "
            f"{shortened(known[as_id].file_name)} and the number of {shortened(known[as_name].file_name)}, and so all "
            "numbers of the list can be read either way. Give file names in place of numbers."
        )
    wanted = set(matched.ids.values())
    return [image for image in images if image.image_id in wanted]
