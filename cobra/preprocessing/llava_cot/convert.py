"""Convert `train.jsonl` to the JSON lists that Cobra's finetune stage reads, a row at a time."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cobra.preprocessing.datasets.rows import Defect, RowError, source_of
from cobra.preprocessing.llava_cot.config import PrepareConfig
from cobra.preprocessing.llava_cot.report.counts import Report
from cobra.preprocessing.llava_cot.rows.image_checks import ImageChecker
from cobra.preprocessing.llava_cot.rows.raw_row import check_row, encode_row, parse_line, read_lines, row_digests
from cobra.preprocessing.llava_cot.rows.scan import Scan
from cobra.preprocessing.llava_cot.rows.splits import draw_rows, hold_out, holdout_size
from cobra.preprocessing.progress import byte_progress
from cobra.util.files import atomic_path
from cobra.util.jsonl import to_lines

_MAX_SHOWN_ID = 200


@dataclass(frozen=True)
class Outputs:
    """The files that a conversion writes."""

    annotation: Path
    """JSON list of the training rows, a row a line; left as it was where no row is usable."""
    holdout: Path
    """The same of the held-out rows; removed where there are none."""
    rejected: Path
    """JSON lines, `{"line", "id", "reason"}` of every rejected row."""


class Fate(Enum):
    """Destination of a row of the right form."""

    TRAIN = 0
    HOLD_OUT = 1
    LEAVE_OUT = 2
    """Not wanted, by `sources` or `max_samples`."""
    REPEATS = 3
    """A duplicate: an earlier row has the same id, image and turns."""
    BAD_IMAGE = 4


def decide_fates(scan: Scan, checker: ImageChecker, root: str, config: PrepareConfig) -> NDArray[np.int8]:
    """Decide the fate of every row, and check the images that are needed for that.

    The paths of images are `root`, which is empty or a folder with a slash at its end, and the row's own.

    Returns:
        The value of a :class:`Fate` for each row of the scan.

    Raises:
        UserError: `sources` names an unknown one, or `holdout` leaves nothing to train on.
    """

    def usable(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        needed = np.unique(scan.images[rows])
        paths = {int(image): root + scan.image_paths[image] for image in needed if image >= 0}
        checker.check(paths.values())
        good = np.array([image < 0 or checker.is_usable(paths[int(image)]) for image in needed], bool)
        kept = good[np.searchsorted(needed, scan.images[rows])]
        fates[rows[~kept]] = Fate.BAD_IMAGE.value
        return kept

    fates = np.full(len(scan.lines), Fate.LEAVE_OUT.value, np.int8)
    wanted = scan.of_sources(config.sources)
    fates[wanted & ~scan.is_first] = Fate.REPEATS.value
    candidates = np.flatnonzero(wanted & scan.is_first)
    count = len(candidates) if config.max_samples is None else config.max_samples
    rows = draw_rows(scan, candidates, count, usable)
    held_out = hold_out(scan, rows, _groups(scan, rows, checker, root), holdout_size(config.holdout, len(rows)))
    fates[rows] = np.where(held_out, Fate.HOLD_OUT.value, Fate.TRAIN.value)
    return fates


def _groups(scan: Scan, rows: NDArray[np.int64], checker: ImageChecker, root: str) -> NDArray[np.int64]:
    """Return a number for each row: rows with the same image, by its bytes where known, have the same one."""
    images = scan.images[rows]
    contents: dict[str, int] = {}
    of_image = {
        int(image): contents.setdefault(checker.content(root + scan.image_paths[image]), len(contents))
        for image in np.unique(images)
        if image >= 0
    }
    # A row of text only is alone.
    groups = [of_image.get(image, -1 - row) for row, image in zip(rows.tolist(), images.tolist(), strict=True)]
    return np.array(groups, np.int64)


def convert_rows(
    train: Path, outputs: Outputs, scan: Scan, fates: NDArray[np.int8], checker: ImageChecker, root: str, report: Report
) -> None:
    """Write every row to where its fate sends it, and count it; only one row at a time is in memory.

    `train` is the file of the scan, `fates` are those from :func:`decide_fates`, whose arguments the others are; counts
    are added to `report`. The outputs are written whole or not at all.
    """
    with ExitStack() as stack:
        rejected = stack.enter_context(_written(outputs.rejected))
        lists = {
            fate: stack.enter_context(_written(path))
            for fate, path in ((Fate.TRAIN, outputs.annotation), (Fate.HOLD_OUT, outputs.holdout))
            if (fates == fate.value).any()
        }
        if Fate.HOLD_OUT not in lists:
            outputs.holdout.unlink(missing_ok=True)
        separators = dict.fromkeys(lists, b"[\n")
        indices = itertools.count()
        advance = stack.enter_context(byte_progress("converting rows", train.stat().st_size))
        for number, read, line in read_lines(train):
            advance(read)
            report.rows_read += 1
            row_id, source = None, "(malformed line)"
            try:
                value = parse_line(line)
                row_id, source = value.get("id"), source_of(value)
                row = check_row(value, number)
                row_digests(row, None)
                index = next(indices)
                image = None if row.image is None else root + row.image
                fate = _checked_fate(scan, fates, index, checker, image)
                if fate is Fate.LEAVE_OUT:
                    report.count_left_out(source)
                    continue
                lists[fate].write(separators[fate] + encode_row(row, image))
                separators[fate] = b",\n"
                report.count_row(row, source, fate is Fate.HOLD_OUT)
                report.duplicate_ids += int(scan.repeats_id[index])
            except RowError as error:
                entry = {"line": number, "id": _shown_id(row_id), "reason": str(error)}
                rejected.write(to_lines([entry]).encode())
                report.count_rejected(error.defect, source, entry)
        for file in lists.values():
            file.write(b"\n]\n")
    counts = checker.counts()
    report.missing_images = counts[Defect.MISSING_IMAGE]
    report.unreadable_images = counts[Defect.UNREADABLE_IMAGE]


@contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `path` when all went well."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def _checked_fate(scan: Scan, fates: NDArray[np.int8], index: int, checker: ImageChecker, image: str | None) -> Fate:
    """Return the fate of a row of the scan; a RowError where it is rejected."""
    fate = Fate(int(fates[index]))
    if fate in (Fate.REPEATS, Fate.BAD_IMAGE) and image is not None:
        checker.require_usable(image)
    if fate is Fate.REPEATS:
        raise RowError(Defect.DUPLICATE, f"of line {scan.first_lines[index]}")
    return fate


def _shown_id(row_id: Any) -> str | int | None:
    """Return an id as it can stand in the rejected rows, whatever the row gives as its id."""
    if row_id is None or isinstance(row_id, int):
        return row_id
    return (row_id if isinstance(row_id, str) else repr(row_id))[:_MAX_SHOWN_ID]
