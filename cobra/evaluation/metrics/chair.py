"""CHAIR: share of the objects that captions mention and images lack (Rohrbach et al., 2018, arXiv 1809.02156).

The objects are COCO's 80 categories. An image has those of its instance annotations and those that its reference
captions mention. CHAIR-i is the share of hallucinated mentions among all mentions, CHAIR-s the share of captions with
one or more; a mention counts as often as it is made. Mentions are found as in the paper's program, by synonyms, with
its rules for double words (`hot dog` is no dog) and qualifiers (`baby elephant` is no person), but without nltk: the
table `coco_synonyms.json` is turned into all singular and plural forms. It is wider than the paper's (`surfer`,
`armchair`, `train station` is no train), so that scores compare within this program, and about with published ones.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cobra.evaluation.data.captioned_image import ImageId, id_of, refuse_images, shortened, text_of
from cobra.evaluation.data.coco import read_names
from cobra.evaluation.data.image_index import ImageIndex, KnownImages, match_images
from cobra.evaluation.metrics.base import Captions, MeanMetric, MetricMaker, Metrics, RatioMetric, References, Scorer
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

# Endings of singulars, and what becomes of them in the plural, beside an added s.
_IRREGULAR = {"child": ["children"], "goose": ["geese"], "mouse": ["mice"], "ox": ["oxen"], "person": ["people"]}
_PLURALS = [(r"(?<!hu)man$", "men"), (r"fe?$", "ves"), (r"(?<=[^aeiou])y$", "ies"), (r"(?<=[sxzo])$|(?<=[cs]h)$", "es")]


def read_objects(path: Path) -> Objects:
    """Read COCO's instance annotations: `images` (id), `categories` (id, name), `annotations` (image_id, category_id).

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
    categories: dict[ImageId, set[str]] = {image_id: set() for image_id in known}
    for index, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotations[{index}]"
        written, category = id_of(annotation, "image_id", where), id_of(annotation, "category_id", where)
        image_id = index_of_ids.by_id(written)
        if image_id is None or category not in names:
            raise UserError(
                f"{where} belongs to the image {shortened(written)} and the category {shortened(category)}, which "
                "`images` and `categories` do not both list"
            )
        categories[image_id].add(names[category])
    return Objects({image_id: frozenset(objects) for image_id, objects in categories.items()}, known)


def _categories(entries: Any, path: Path) -> dict[ImageId, str]:
    """Return the names of the categories by id, which must be COCO's 80."""
    if not isinstance(entries, list):
        raise UserError(f"{path} is no COCO instances file: it has no list `categories`. {_SOURCE}")
    names = {}
    for number, entry in enumerate(entries):
        where = f"{path}: categories[{number}]"
        names[id_of(entry, "id", where)] = text_of(entry, "name", where)
    known = set(_table()["categories"])
    other = sorted(set(names.values()) - known)
    missing = known - set(names.values())
    if other or missing:
        odd = f"it has {shortened(other[0])}" if other else f"{len(missing)} of them are not there"
        raise UserError(f"{path} does not list the 80 categories of COCO's instances ({odd}). {_SOURCE}")
    return names


def chair(objects: Objects) -> MetricMaker:
    """Return the maker of `chair_i` and `chair_s`, fractions of 1; a caption that mentions nothing has 0.

    The maker raises a UserError where `objects` lacks images; further ones do not matter.
    """

    def make(references: References) -> Scorer:
        images = references.images
        ids = match_images([(image.image_id, image.file_name) for image in images], objects.known)
        missing = [image.image_id for image in images if image.image_id not in ids]
        remedy = "CHAIR needs the one of the same images: COCO's of train or val, 2014 or 2017."
        refuse_images(missing, "the instances file lacks", remedy)
        present = [objects.categories[ids[image.image_id]].union(*map(mentions, image.references)) for image in images]

        def score(captions: Captions) -> Metrics:
            named = list(map(mentions, captions.texts))
            wrong = [sum(name not in there for name in names) for names, there in zip(named, present, strict=True)]
            note = "objects named that are not there"
            rate = RatioMetric(wrong, list(map(len, named)), "CHAIR-i", note, lower_is_better=True)
            note = "captions with such an object"
            share = MeanMetric([count > 0 for count in wrong], "CHAIR-s", note, lower_is_better=True)
            return {"chair_i": rate, "chair_s": share}

        return score

    return make


def mentions(caption: str) -> list[str]:
    """Return the categories that a caption mentions, one for each mention, in order."""
    words = re.findall(r"[^\W\d_]+", caption[:MAX_CHARACTERS].lower())
    phrases = _phrases()
    longest = max(map(len, phrases))
    matched = []
    place = 0
    while place < len(words):
        # Of several phrases the longest counts.
        sizes = range(min(longest, len(words) - place), 0, -1)
        size = next((size for size in sizes if tuple(words[place : place + size]) in phrases), 0)
        if size:
            phrase = tuple(words[place : place + size])
            matched.append((phrase, phrases[phrase]))
        place += max(size, 1)
    # As in the paper: the seat of a toilet is no chair, wherever in the caption it is.
    seats = {("seat",), ("seats",)} if any(name == "toilet" for _, name in matched) else set()
    return [name for phrase, name in matched if name is not None and phrase not in seats]


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
