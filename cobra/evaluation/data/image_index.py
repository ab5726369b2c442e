"""Find images by what a file calls them: an id, or a file name in any of its forms.

Ids and the numbers in file names are two name spaces: a set may count its images 1, 2, 3 while their files keep COCO's
numbers. So a file name is compared with file names alone, a number with ids; a number that is no id is taken for that
in a file name only where all of a list can be.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from urllib.parse import unquote

from cobra.evaluation.data.captioned_image import ImageId, shortened
from cobra.util.errors import UserError

_NUMBER = re.compile(r"(0|[1-9][0-9]{0,17})(?:\.0+)?")
_PHOTO = re.compile(r"(?:coco_(?:train|val|test)201[457]_)?([0-9]{12})")
_DIGITS = re.compile(r"[0-9]{1,18}")
_ENDING = re.compile(r"(?<=[^.])\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif)$")
# Images of one base name (`image.png` in a folder each) that are looked through; beyond these the whole path counts.
_ALIKE = 50
# Folders of a path that are compared where others stand in front of them.
_DEPTH = 16


@dataclass(frozen=True)
class ImageNames:
    """Names of an image beside its id."""

    file_name: str | None = None
    """None where the data have none."""
    other_ids: tuple[ImageId | None, ...] = ()
    """Further numbers or texts that stand for it, such as Karpathy's `imgid` beside `cocoid`: one a column, None where
    it is empty."""


KnownImages = Mapping[ImageId, ImageNames]


@dataclass(frozen=True)
class Matched:
    """Which images a list is about."""

    ids: dict[ImageId, ImageId]
    """The known id for each of the list that has one."""
    unclear: tuple[ImageId, ImageId, ImageId] | None = None
    """A number of the list, the image whose id it is, and another image in whose file name (or other id) it is: given
    where the whole list could be read either way. It was read as ids."""


class ImageIndex:
    """Images by their ids and file names.

    Attributes:
        columns: How many columns of other ids there are.
    """

    def __init__(self, known: KnownImages) -> None:
        """Take in the images."""
        self._known = known
        self._numbers = defaultdict[int, set[ImageId]](set)
        self._paths = defaultdict[str, set[ImageId]](set)
        self._folded = defaultdict[str, set[ImageId]](set)
        self._stems = defaultdict[str, list[tuple[ImageId, _Name]]](list)
        self.columns = max((len(names.other_ids) for names in known.values()), default=0)
        self._others = [defaultdict[ImageId, set[ImageId]](set) for _ in range(self.columns)]
        for image_id, names in known.items():
            if (number := _spelled_number(image_id)) is not None:
                self._numbers[number].add(image_id)
            for column, other in zip(self._others, names.other_ids, strict=False):
                if other is not None:
                    column[_plain(other)].add(image_id)

    @cached_property
    def _has_names(self) -> bool:
        """Sort the images by their names, once they are asked for; all have one."""
        for image_id, names in self._known.items():
            # An image without a file name has its id alone to go by.
            given = [str(image_id) if names.file_name is None else names.file_name]
            for name in map(_Name.parse, dict.fromkeys([*given, image_id] if isinstance(image_id, str) else given)):
                self._paths[name.path].add(image_id)
                self._folded[name.folded].add(image_id)
                for key in {name.stem, f"number {name.number}"} if name.number is not None else {name.stem}:
                    self._stems[key].append((image_id, name))
        return bool(self._known)

    def by_id(self, found: ImageId) -> ImageId | None:
        """Return the id that is equal, or else the only one that spells the same number, as `"42"` and 42 do."""
        if found in self._known:
            return found
        number = _spelled_number(found)
        return None if number is None else _only(self._numbers.get(number, ()))

    def by_name(self, found: ImageId) -> ImageId | None:
        """Return the only image of a file name: by path, base name or stem, or by the number of a photo of COCO.

        Letters' case, backslashes for `/`, percent codes and what is in front of a path do not count, unless several
        images differ in them; two folders of which neither ends in the other do.
        """
        name = _Name.parse(str(found))
        if not name.stem or not self._has_names:
            return None
        for paths, path in ((self._paths, name.path), (self._folded, name.folded)):
            if path in paths:
                return _only(paths[path])
        parts = name.folded.split("/")[-_DEPTH:]
        for place in range(1, len(parts)):
            if (path := "/".join(parts[place:])) in self._folded:
                return _only(self._folded[path])
        alike = self._stems.get(name.stem, [])
        same = {image_id for image_id, other in alike[: _ALIKE + 1] if name.is_below(other)}
        if same or name.number is None:
            return _only(same) if len(alike) <= _ALIKE else None
        alike = self._stems.get(f"number {name.number}", [])[: _ALIKE + 1]
        same = {image_id for image_id, other in alike if (name.is_photo and other.is_photo) or name.is_below(other)}
        return _only(same) if len(alike) <= _ALIKE else None

    def contradicts(self, image_id: ImageId, name: str) -> bool:
        """Return True if an image's file name and another one are of different photos of COCO."""
        known, other = _Name.parse(self._known[image_id].file_name or ""), _Name.parse(name)
        return known.is_photo and other.is_photo and known.number != other.number

    def by_other_id(self, found: ImageId, column: int) -> ImageId | None:
        """Return the only image with this number or text in a column of other ids."""
        return _only(self._others[column].get(_plain(found), ()))


@dataclass(frozen=True)
class _Name:
    """A file name in the forms that are compared."""

    path: str
    """With `/` between folders, none in front."""
    folded: str
    """Name without its ending, case and percent codes."""
    stem: str
    number: int | None
    is_photo: bool
    """True if it has COCO's form: 12 digits."""

    @classmethod
    def parse(cls, name: str) -> "_Name":
        text = name.replace("\\", "/")
        if "://" in text:
            text = text.partition("://")[2].partition("/")[2].partition("?")[0]
        path = "/".join(part for part in text.split("/") if part not in ("", "."))
        folded = _ENDING.sub("", unicodedata.normalize("NFC", unquote(path)).casefold())
        stem = folded.rpartition("/")[2]
        photo = _PHOTO.fullmatch(stem)
        digits = photo[1] if photo else stem if _DIGITS.fullmatch(stem) else None
        return cls(path, folded, stem, None if digits is None else int(digits), photo is not None)

    def is_below(self, other: "_Name") -> bool:
        """Return True if the folders of one end in those of the other."""
        first, second = (f"/{name.folded}".rpartition("/")[0] + "/" for name in (self, other))
        return first.endswith(second) or second.endswith(first)


def match_ids(found: Iterable[ImageId], known: KnownImages) -> Matched:
    """Tell which known images the entries of a list are about.

    File names, and numbers written as in one (`"000000000042"`), are looked up among file names, unless they are ids as
    they stand. Numbers are looked up among ids; where that leaves some over, among other ids or file names, if none is
    left over there.
    """
    index = ImageIndex(known)
    listed = list(dict.fromkeys(found))
    numbers = [entry for entry in listed if _spelled_number(entry) is not None]
    by_ids = _looked_up(numbers, index.by_id)
    others = [_looked_up(numbers, partial(index.by_other_id, column=column)) for column in range(index.columns)]
    others.append(_looked_up(numbers, index.by_name))
    whole = [other for other in others if len(other) == len(numbers)]
    unclear = None
    if len(by_ids) < len(numbers):
        by_ids = whole[0] if whole else by_ids
    else:
        differing = ((entry, by_ids[entry], other[entry]) for other in whole for entry in numbers)
        unclear = next(((entry, one, two) for entry, one, two in differing if one != two), None)
    ids = dict(by_ids)
    for entry in listed:
        if entry not in ids and _spelled_number(entry) is None:
            image_id = entry if entry in known else index.by_name(entry)
            if image_id is not None:
                ids[entry] = image_id
    return Matched(ids, unclear)


def match_images(images: Sequence[tuple[ImageId, str]], known: KnownImages) -> dict[ImageId, ImageId]:
    """Tell which known images are the same as those of another file, given by ids and file names.

    Returns:
        The known id for each image that has one: by the file names where any of them is known, else by the ids.

    Raises:
        UserError: The other file has no file names, and the ids say otherwise than the numbers in these images' names.
    """
    index, names = ImageIndex(known), dict(images)
    named = {image_id: other for image_id, name in images if (other := index.by_name(name)) is not None}
    numbered = {image_id: other for image_id, _ in images if (other := index.by_id(image_id)) is not None}
    differing = [image_id for image_id in named.keys() & numbered.keys() if named[image_id] != numbered[image_id]]
    if differing and len(numbered) == len(images) and all(image.file_name is None for image in known.values()):
        image_id = min(differing, key=str)
        raise UserError(
            f"images cannot be matched: their ids and the numbers in their file names differ ({shortened(image_id)} is "
            f"{shortened(names[image_id])}), and the other file has ids alone. Give one with file names."
        )
    # Names of photos that differ are never one image, whatever their ids are.
    return named or {own: match for own, match in numbered.items() if not index.contradicts(match, names[own])}


def _looked_up(entries: Sequence[ImageId], look_up: Callable[[ImageId], ImageId | None]) -> dict[ImageId, ImageId]:
    return {entry: image_id for entry in entries if (image_id := look_up(entry)) is not None}


def _only(ids: Iterable[ImageId]) -> ImageId | None:
    several = list(ids)
    return several[0] if len(several) == 1 else None


def _spelled_number(image_id: ImageId) -> int | None:
    """Return the number that an id is or spells; zeros in front are those of file names."""
    if isinstance(image_id, int):
        return image_id
    match = _NUMBER.fullmatch(image_id)
    return None if match is None else int(match[1])


def _plain(image_id: ImageId) -> ImageId:
    number = _spelled_number(image_id)
    return image_id if number is None else number
