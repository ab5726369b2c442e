"""Rows of a split by a column that names it, as in data sets whose one split of files holds all rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cobra.util.errors import UserError
from cobra.util.shown import shown

if TYPE_CHECKING:
    from datasets import Dataset

_COLUMNS = ("split", "splits", "subset", "partition")
# By what people write, what it means.
_TRAIN = ("train", "training")
_MEANINGS = (_TRAIN, ("restval",), ("val", "validation", "valid", "dev"), ("test", "testing"))
_DEFAULTS = ("val", "test")
# How many values a message lists, and characters of each.
_SHOWN = 8
_CHARACTERS = 40


@dataclass(frozen=True)
class ChosenRows:
    """Rows of a split."""

    split: str
    remarks: tuple[str, ...] = ()
    flags: Sequence[bool] | None = None
    """Which rows are of it; None is all."""

    def holds(self, row: int) -> bool:
        """Return whether a row is of the split."""
        return self.flags is None or self.flags[row]


def choose_rows(
    dataset: "Dataset", splits: Sequence[str], opened: str, asked: str | None, source: Path | str
) -> ChosenRows:
    """Choose among the rows of a data set's split by their own column of splits, where there is one.

    Args:
        dataset: The rows.
        splits: Those that the data set's files make.
        opened: The one that the rows are of.
        asked: What somebody asked for; None takes `opened` where the column names it too, else `val` or `test`.
        source: Names the data set in messages.

    Raises:
        UserError: Neither the files nor a column has the split that was asked for.
    """
    column = next((name for name in dataset.column_names if name.lower() in _COLUMNS), None)
    values = [] if column is None else [str(value).strip().casefold() for value in dataset[column]]
    counts = Counter(values)
    if not any(value in meaning for value in counts for meaning in _MEANINGS):
        if asked not in (None, opened):
            raise UserError(f"{source} has no split {asked!r}; it has {', '.join(splits)}. Choose one with --split.")
        return ChosenRows(opened)
    there = ", ".join(f"{shown(value, _CHARACTERS)} ({count:,} rows)" for value, count in counts.most_common(_SHOWN))
    # Files without a split in their names are all called train.
    wished = [asked] if asked is not None else [opened, *_DEFAULTS] if opened not in _TRAIN else _DEFAULTS
    found = next((name for name in wished if _same(counts, name)), None)
    if found is None:
        if asked not in (None, opened):
            raise UserError(
                f"{source} has no split {asked!r}; its column {column} has {there}. Choose one with --split."
            )
        return ChosenRows(
            opened, (f"The split {opened} of {source} is taken whole, and its rows' column {column} has {there}.",)
        )
    same = _same(counts, found)
    if len(same) == len(counts):
        return ChosenRows(found)
    remark = f"The column {column} of {source} has {there}: those of {found} are taken (--split chooses another)."
    return ChosenRows(found, (remark,), [value in same for value in values])


def _same(counts: Counter[str], name: str) -> set[str]:
    """Return the values in a column that mean a split: those that are its name, else those of another spelling."""
    name = name.strip().casefold()
    if name in counts:
        return {name}
    meaning = next((meaning for meaning in _MEANINGS if name in meaning), ())
    return {value for value in counts if value in meaning}
