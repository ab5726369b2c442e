"""Statistics of the rows' tokens, and of the answers that training would cut, by the sources of the rows."""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobra.util.printable import printable

# The published rows have about a dozen; a hostile file may not fill the memory with names.
MAX_SOURCES = 1000
OTHER = "(other sources)"
_MAX_NAME = 80

BIN_EDGES = tuple(range(0, 4097, 128))
"""Lower edges of the histogram's bins; the last bin has no upper end."""


class RowSources:
    """The source of every row that was written, in 2 bytes; training and held-out rows apart."""

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


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of the rows, training and held-out together, as training makes them before it cuts."""

    llm_backbone_id: str
    tokenizer: str
    """Repository of the hub, or name of a local folder."""
    llm_max_length: int
    """Tokens at which training cuts a row."""
    rows: int
    total: int
    mean: float
    median: int
    p95: int
    max: int
    longer: int
    """Rows of more than `llm_max_length` tokens."""
    conclusion_cut: int
    """Rows whose last CONCLUSION would be cut there; of a last answer without one, its end."""
    longer_by_source: dict[str, int]
    conclusion_cut_by_source: dict[str, int]
    bin_edges: tuple[int, ...]
    """Lower edges of the bins, ascending; the last bin has no upper end."""
    bin_rows: tuple[int, ...]
    """Rows in each bin, the lower edge included."""

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of the tokens' table: label, and number as text."""
        limit = f"{self.llm_max_length:,}"
        return [
            ("of a row, mean", f"{self.mean:,}"),
            ("median", f"{self.median:,}"),
            ("95 % have at most", f"{self.p95:,}"),
            ("most", f"{self.max:,}"),
            ("all together", f"{self.total:,}"),
            (f"rows of more than {limit} tokens", f"{self.longer:,}"),
            (f"rows whose CONCLUSION is cut at {limit} tokens", f"{self.conclusion_cut:,}"),
        ]
