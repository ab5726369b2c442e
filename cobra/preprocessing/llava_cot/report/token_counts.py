"""Statistics of the rows' tokens, and of the answers that training would cut."""

from collections import Counter
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cobra.preprocessing.llava_cot.report.row_sources import RowSources

BIN_EDGES = tuple(range(0, 4097, 128))
"""Lower edges of the histogram's bins; the last bin has no upper end."""


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

    @classmethod
    def of_rows(
        cls,
        llm_backbone_id: str,
        tokenizer: str,
        llm_max_length: int,
        tokens: NDArray[np.int32],
        cut: NDArray[np.bool_],
        sources: RowSources,
    ) -> Self:
        """Count the rows, training rows first.

        Args:
            llm_backbone_id: A registered language model.
            tokenizer: Repository of the hub, or name of a local folder.
            llm_max_length: Tokens at which training cuts a row.
            tokens: Tokens of each row (rows,), int32.
            cut: Rows whose last CONCLUSION would be cut (rows,), bool.
            sources: The sources of the same rows.
        """
        longer = tokens > llm_max_length
        source = np.concatenate([sources.of_rows(False), sources.of_rows(True)])
        median, p95 = np.quantile(tokens, [0.5, 0.95], method="inverted_cdf").tolist()
        bins = np.bincount(np.searchsorted(BIN_EDGES, tokens, "right") - 1, minlength=len(BIN_EDGES))
        return cls(
            llm_backbone_id,
            tokenizer,
            llm_max_length,
            rows=len(tokens),
            total=int(tokens.sum(dtype=np.int64)),
            mean=round(float(tokens.mean(dtype=np.float64)), 1),
            median=median,
            p95=p95,
            max=int(tokens.max()),
            longer=int(longer.sum()),
            conclusion_cut=int(cut.sum()),
            longer_by_source=_count_by_source(source[longer], sources.names),
            conclusion_cut_by_source=_count_by_source(source[cut], sources.names),
            bin_edges=BIN_EDGES,
            bin_rows=tuple(bins.tolist()),
        )

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of the tokens' table: label, and number as text."""
        limit = f"{self.llm_max_length:,}"
        return [
            ("per row, mean", f"{self.mean:,}"),
            ("per row, median", f"{self.median:,}"),
            ("per row, 95 % have at most", f"{self.p95:,}"),
            ("per row, most", f"{self.max:,}"),
            ("all rows together", f"{self.total:,}"),
            (f"rows of more than {limit} tokens", f"{self.longer:,}"),
            (f"rows whose CONCLUSION is cut at {limit} tokens", f"{self.conclusion_cut:,}"),
        ]


def _count_by_source(sources: NDArray[np.uint16], names: list[str]) -> dict[str, int]:
    counts = Counter(sources.tolist())
    return {name: counts[index] for name, index in sorted((names[index], index) for index in counts)}
