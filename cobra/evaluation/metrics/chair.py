"""CHAIR: share of the objects that captions mention and images lack (Rohrbach et al., 2018, arXiv 1809.02156).

The objects are COCO's 80 categories. An image has those of its instance annotations and those that its reference
captions mention. CHAIR-i is the share of hallucinated mentions among all mentions, CHAIR-s the share of captions with
one or more; a mention counts as often as it is made. Mentions are found as in the paper's program, by synonyms, with
its rules for double words (`hot dog` is no dog) and qualifiers (`baby elephant` is no person), but without nltk: the
table `coco_synonyms.json` is turned into all singular and plural forms. It is wider than the paper's (`surfer`,
`armchair`, `train station` is no train), so that scores compare within this program, and about with published ones.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cobra.evaluation.data.captioned_image import CaptionedImage, ImageId, id_of, refuse_images, shortened, text_of
from cobra.evaluation.data.coco import read_names
from cobra.evaluation.data.image_index import ImageIndex, KnownImages, match_images
from cobra.evaluation.metrics.base import MeanMetric, MetricMaker, Metrics, RatioMetric, References, Scorer
from cobra.evaluation.metrics.ptb_tokenizer import MAX_CHARACTERS
from cobra.util.errors import UserError
from cobra.util.files import read_json


@dataclass(frozen=True)
class Objects:
    """Objects that instance annotations list for images."""

    categories: Mapping[ImageId, frozenset[str]]
    """Categories of the objects in each image."""
    known: KnownImages
    """Names of the images."""


_TABLE = Path(__file__).with_name("coco_synonyms.json")
_SOURCE = "COCO's annotations_trainval2017.zip holds it as instances_val2017.json."

_IRREGULAR = {
    "child": ["children"],
    "goose": ["geese"],
    "mouse": ["mice"],
    "ox": ["oxen"],
    "person": ["people", "persons"],
}
# Endings of singulars, and what becomes of them in the plural, beside an added s.
_PLURALS = [
    (r"(?<!hu)man$", "men"),
    (r"fe?$", "ves"),
    (r"(?<=[^aeiou])y$", "ies"),
    (r"(?<=[sxz])$|(?<=[cs]h)$|(?<=o)$", "es"),
]


def read_objects(path: Path) -> Objects:
    """Read COCO's instance annotations: `images` (id), `categories` (id, name), `annotations` (image_id, category_id).

    Returns:
        The categories of every image in the file.

    Raises:
        UserError: The file is missing, is not JSON (with the line) or holds something else, such as captions, key
            points or the categories of another data set.
    """
    content = read_json(path, "the instances file", _SOURCE)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise UserError(f"{path} is no COCO instances file: it has no lists `images` and `annotations`. {_SOURCE}")
    names = _categories(content.get("categories"), path)
    known = read_names(content["images"], path)
    index_of_ids = ImageIndex(known)
    found: dict[ImageId, set[str]] = {image_id: set() for image_id in known}
    for index, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotations[{index}]"
        written, category = id_of(annotation, "image_id", where), id_of(annotation, "category_id", where)
        image_id = index_of_ids.by_id(written)
        if image_id is None or category not in names:
            raise UserError(
                f"{where} belongs to the image {shortened(written)} and the category {shortened(category)}, which "
                "`images` and `categories` do not both list"
            )
        found[image_id].add(names[category])
    return Objects({image_id: frozenset(objects) for image_id, objects in found.items()}, known)


def _categories(entries: Any, path: Path) -> dict[ImageId, str]:
    """Return the names of the categories by id, which must be COCO's 80."""
    if not isinstance(entries, list):
        raise UserError(f"{path} is no COCO instances file: it has no list `categories`. {_SOURCE}")
    rows = [(id_of(entry, "id", where), text_of(entry, "name", where)) for where, entry in _placed(entries, path)]
    names = dict(rows)
    known = set(_table()["categories"])
    other = sorted(set(names.values()) - known)
    missing = known - set(names.values())
    if other or missing:
        odd = f"it has {shortened(other[0])}" if other else f"{len(missing)} of them are not there"
        raise UserError(f"{path} does not list the 80 categories of COCO's instances ({odd}). {_SOURCE}")
    return names


def _placed(entries: list[Any], path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the categories with what errors call them."""
    for number, entry in enumerate(entries):
        yield f"{path}: categories[{number}]", entry


class Chair:
    """Scores captions against the objects of N images."""

    def __init__(self, images: Sequence[CaptionedImage], objects: Objects) -> None:
        """Join the annotated objects with those that the references mention.

        Args:
            images: The images.
            objects: Objects of these images, and of any others, from :func:`read_objects`.

        Raises:
            UserError: It lacks images.
        """
        ids = match_images([(image.image_id, image.file_name) for image in images], objects.known)
        missing = [image.image_id for image in images if image.image_id not in ids]
        remedy = "CHAIR needs the one of the same images: COCO's of train or val, 2014 or 2017."
        refuse_images(missing, "the instances file lacks", remedy)
        self._present = [
            objects.categories[ids[image.image_id]].union(*map(mentions, image.references)) for image in images
        ]

    def score(self, captions: Sequence[str]) -> Metrics:
        """Score one caption for each image.

        Returns:
            `chair_i` and `chair_s`, fractions of 1; lower is better, and a caption that mentions nothing has 0.
        """
        found = [mentions(caption) for caption in captions]
        hallucinated = [
            sum(name not in present for name in names) for names, present in zip(found, self._present, strict=True)
        ]
        return {
            "chair_i": RatioMetric(
                hallucinated,
                [len(names) for names in found],
                "CHAIR-i",
                "objects named that are not there",
                lower_is_better=True,
            ),
            "chair_s": MeanMetric(
                [count > 0 for count in hallucinated], "CHAIR-s", "captions with such an object", lower_is_better=True
            ),
        }


def chair(objects: Objects) -> MetricMaker:
    """Return the maker of `chair_i` and `chair_s`; it raises a UserError where `objects` lacks images."""

    def make(references: References) -> Scorer:
        scorer = Chair(references.images, objects)
        return lambda captions: scorer.score(captions.texts)

    return make


def mentions(caption: str) -> list[str]:
    """Return the categories that a caption mentions, one for each mention, in order."""
    words = re.findall(r"[^\W\d_]+", caption[:MAX_CHARACTERS].lower())
    phrases = _phrases()
    longest = max(map(len, phrases))
    found = []
    place = 0
    while place < len(words):
        # Of several phrases the longest counts.
        sizes = range(min(longest, len(words) - place), 0, -1)
        size = next((size for size in sizes if tuple(words[place : place + size]) in phrases), 0)
        if size:
            phrase = tuple(words[place : place + size])
            found.append((phrase, phrases[phrase]))
        place += max(size, 1)
    # As in the paper: the seat of a toilet is no chair, wherever in the caption it is.
    seats = {("seat",), ("seats",)} if any(name == "toilet" for _, name in found) else set()
    return [name for phrase, name in found if name is not None and phrase not in seats]


def plurals(phrase: str) -> list[str]:
    """Return the plurals that an English noun, the last word of a phrase, may have."""
    before, _, noun = phrase.rpartition(" ")
    forms = [*_IRREGULAR.get(noun, ()), f"{noun}s"]
    forms += [re.sub(ending, plural, noun) for ending, plural in _PLURALS if re.search(ending, noun)]
    return [f"{before} {form}".strip() for form in forms]


@cache
def _table() -> dict[str, Any]:
    return read_json(_TABLE, "the table of synonyms")


@cache
def _phrases() -> dict[tuple[str, ...], str | None]:
    """Return the category of every phrase, singular and plural; None for those that mention no object."""
    table = _table()
    singular: dict[str, str | None] = dict(table["other_phrases"])
    for name, synonyms in table["categories"].items():
        singular |= dict.fromkeys((name, *synonyms), name)
    for qualifier, names in table["qualifiers"].items():
        for name in names:
            singular |= dict.fromkeys((f"{qualifier} {word}" for word in (name, *table["categories"][name])), name)
    return {tuple(form.split()): name for phrase, name in singular.items() for form in (phrase, *plurals(phrase))}
