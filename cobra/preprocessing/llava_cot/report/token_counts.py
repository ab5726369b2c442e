"""Statistics of the rows' tokens, and of the answers that training would cut."""

from dataclasses import dataclass

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
