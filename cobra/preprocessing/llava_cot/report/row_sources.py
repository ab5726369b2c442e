"""The source of every row that was written, in 2 bytes."""

from array import array

import numpy as np
from numpy.typing import NDArray

from cobra.util.printable import printable

# The published rows have about a dozen; a hostile file may not fill the memory with names.
MAX_SOURCES = 1000
OTHER = "(other sources)"

_MAX_NAME = 80


class RowSources:
    """The names of the sources, and which of them each written row is of, training and held-out rows apart."""

    def __init__(self) -> None:
        self._indices: dict[str, int] = {}
        self._rows: dict[bool, array[int]] = {False: array("H"), True: array("H")}

    def name(self, source: str) -> str:
        """Return the name that a source is counted under: fit to be shown, and one of `MAX_SOURCES` or `OTHER`."""
        name = source if source.isprintable() and len(source) <= _MAX_NAME else printable(source, _MAX_NAME)
        if name not in self._indices:
            if len(self._indices) >= MAX_SOURCES:
                name = OTHER
            self._indices.setdefault(name, len(self._indices))
        return name

    def add(self, name: str, held_out: bool) -> None:
        """Note a written row's source, as :meth:`name` returned it."""
        self._rows[held_out].append(self._indices[name])

    @property
    def names(self) -> list[str]:
        """The names, each at its index."""
        return list(self._indices)

    def of_rows(self, held_out: bool) -> NDArray[np.uint16]:
        """Return the index into `names` of every row (rows,), in the order in which they were written."""
        return np.array(self._rows[held_out], np.uint16)
