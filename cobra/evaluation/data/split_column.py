"""Rows of a split by a column that names it, as in data sets whose one split of files holds all rows."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cobra.util.errors import UserError
from cobra.util.numbers import counted
from cobra.util.printable import printable

if TYPE_CHECKING:
    from datasets import Dataset

_COLUMN = re.compile(r"(?:[a-z]+_)?(?:splits?|subset|partition|set|fold|phase)")
# By what people write, what it means.
_TRAIN = ("train", "training")
_MEANINGS = (_TRAIN, ("restval",), ("val", "validation", "valid", "dev"), ("test", "testing"))
_DEFAULTS = ("val", "test")
_YEAR = re.compile(r"[_-]?20[0-9]{2}")
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
        """Return True if a row is of the split."""
        return self.flags is None or self.flags[row]


def choose_rows(
    dataset: "Dataset", splits: Sequence[str], opened: str, asked: str | None, source: Path | str
) -> ChosenRows:
    """Choose among the rows of a data set's split by their own column of splits, where there is one.

    Args:
        dataset: The rows.
        splits: Those that the data set's files make.
        opened: The one that the rows are of.
        asked: Split that is asked for; None takes `opened` where the column names it too, else `val` or `test`.
        source: Names the data set in messages.

    Raises:
        UserError: Neither the files nor a column has the split that was asked for.
    """
    columns = {name: _values(dataset, name) for name in dataset.column_names if _COLUMN.fullmatch(name.lower())}
    column = next((name for name, values in columns.items() if any(map(_meaning, set(values)))), None)
    if column is None:
        if asked not in (None, opened):
            raise UserError(f"{source} has no split {asked!r}; it has {', '.join(splits)}. Choose one with --split.")
        return ChosenRows(opened)
    values = columns[column]
    counts = Counter(values)
    common = counts.most_common(_SHOWN)
    there = ", ".join(f"{printable(value, _CHARACTERS)} ({counted(count, 'row')})" for value, count in common)
    # Files without a split in their names are all called train.
    wished = [asked] if asked is not None else [opened, *_DEFAULTS] if opened not in _TRAIN else _DEFAULTS
    chosen = next((name for name in wished if _same(counts, name)), None)
    if chosen is None:
        if asked not in (None, opened):
            raise UserError(
                f"{source} has no split {asked!r}; its column {column} has {there}. Choose one with --split."
            )
        remark = f"The split {opened} of {source} is taken whole, and its rows' column {column} has {there}."
        return ChosenRows(opened, (remark,))
    same = _same(counts, chosen)
    if len(same) == len(counts):
        return ChosenRows(chosen)
    remark = f"The column {column} of {source} has {there}: those of {chosen} are taken (--split chooses another)."
    return ChosenRows(chosen, (remark,), [value in same for value in values])


def _values(dataset: "Dataset", column: str) -> list[str]:
    """Return what a column says of each row, by the names of its classes where it holds their numbers."""
    names = getattr(dataset.features[column], "names", None)
    values = dataset[column]
    if names is not None:
        values = [names[value] if value is not None and value >= 0 else None for value in values]
    return [str(value).strip().casefold() for value in values]


def _meaning(value: str) -> tuple[str, ...]:
    """Return the names of the split that a value means, as `val2017` and `valid` do; empty where it means none."""
    name = _YEAR.sub("", value)
    return next((meaning for meaning in _MEANINGS if name in meaning), ())


def _same(counts: Counter[str], name: str) -> set[str]:
    """Return the values in a column that mean a split: those that are its name, else those of another spelling."""
    name = name.strip().casefold()
    if name in counts:
        return {name}
    meaning = _meaning(name)
    return {value for value in counts if meaning and _meaning(value) == meaning}
