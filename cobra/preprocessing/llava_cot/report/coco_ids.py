"""List of the COCO images in the training rows, which a benchmark on COCO needs."""

import re
from array import array
from pathlib import Path

import numpy as np

from cobra.util.files import write_json

# Listed even where they are empty: the splits that the published rows are drawn from, and that benchmarks use.
MAIN_SPLITS = ("train2017", "val2017")

_SPLIT = r"(train|val|test)(2014|2015|2017)"
_FOLDER_AND_FILE = re.compile(rf"(?:.*/)?(?P<split>{_SPLIT})/(?P<id>[0-9]{{1,12}})\.(?:jpe?g|png)", re.IGNORECASE)
# The names that COCO's files had before 2017 tell the split by themselves.
_OLD_FILE = re.compile(rf"(?:.*/)?COCO_(?P<split>{_SPLIT})_(?P<id>[0-9]{{12}})\.(?:jpe?g|png)", re.IGNORECASE)
_VISUAL_GENOME = re.compile(r"(?:.*/)?(?:vg|vg_100k|vg_100k_2|visual_?genome)/.*", re.IGNORECASE)


def coco_image(path: str) -> tuple[str, int] | None:
    """Return split and id of the COCO image that a path names, such as `coco/train2017/000000000009.jpg`.

    The split is in lower case; the id names the same picture in train2014, val2014, train2017 and val2017. None is for
    a path that names no COCO image.
    """
    match = _OLD_FILE.fullmatch(path) or _FOLDER_AND_FILE.fullmatch(path)
    return None if match is None else (match["split"].lower(), int(match["id"]))


def is_visual_genome(path: str) -> bool:
    """Return True if a path names an image of Visual Genome, by its folders."""
    return _VISUAL_GENOME.fullmatch(path) is not None


class CocoIds:
    """The COCO images of rows, by split; 8 bytes a row."""

    def __init__(self) -> None:
        self._ids: dict[str, array[int]] = {split: array("q") for split in MAIN_SPLITS}

    def add(self, path: str) -> None:
        """Note a row's image, if it is one of COCO."""
        if coco := coco_image(path):
            self._ids.setdefault(coco[0], array("q")).append(coco[1])

    def ids(self) -> dict[str, list[int]]:
        """Return each split's distinct ids, ascending; splits other than `MAIN_SPLITS` only where they are used."""
        more = sorted(self._ids.keys() - set(MAIN_SPLITS))
        return {split: np.unique(np.array(self._ids[split], np.int64)).tolist() for split in (*MAIN_SPLITS, *more)}

    def counts(self) -> dict[str, int]:
        """Return how many ids each split has."""
        return {split: len(ids) for split, ids in self.ids().items()}

    def write(self, path: Path) -> None:
        """Write the ids as JSON, `{"train2017": [9, ...], "val2017": [...]}`, atomically."""
        write_json(path, self.ids(), indent=None)
