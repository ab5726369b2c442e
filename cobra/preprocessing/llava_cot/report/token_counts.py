"""Tokens of every row, and the answers that training would cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cobra.util.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cobra.preprocessing.llava_cot.report.counts import Report

# Of the histogram; the last bin has no upper end.
BIN_EDGES = tuple(range(0, 4097, 128))

# For one answer of the hub, whatever it is: huggingface_hub itself tries for 23 seconds where there is no network.
_REACH_SECONDS = 5.0


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
    """Of the bins, ascending; the last one has no upper end."""
    bin_rows: tuple[int, ...]
    """Rows in each bin, the lower edge included."""


class _NoTokenizerError(Exception):
    """There is none; the text is the reason, the same for the same state of things."""


def count_tokens(
    report: Report, annotation: Path, holdout: Path, llm_backbone_id: str, llm_max_length: int, token: str | None = None
) -> None:
    """Count the tokens of the written rows into `report.tokens`; where that is not possible, say why in the report.

    Only the tokenizer is loaded, not the model; counts of an earlier run with the same rows are read.

    Args:
        report: Has counted the rows; changed.
        annotation: The file of the training rows; read if the report has any.
        holdout: The file of the held-out rows; read if the report has any.
        llm_backbone_id: A registered language model.
        llm_max_length: Tokens at which training cuts a row.
        token: For the hub.
    """
    files = [path for path, rows in ((annotation, report.rows_written), (holdout, report.rows_held_out)) if rows]
    if not files:
        report.tokens_missing = "there are no rows"
        return
    # Imported here because they bring torch, which reading and checking the rows does without.
    from cobra.models.backbones.llm import prompt_builder_of
    from cobra.models.backbones.llm.specs import llm_spec
    from cobra.preprocessing.datasets.token_lengths import token_lengths

    try:
        spec = llm_spec(llm_backbone_id)
        source = spec.tokenizer or spec.source
        tokenizer = _tokenizer(source, llm_max_length, token)
        builder = prompt_builder_of(llm_backbone_id)
    except (UserError, _NoTokenizerError) as error:
        report.tokens_missing = str(error)
        return
    lengths = [token_lengths(path, tokenizer, builder) for path in files]
    report.tokens_missing = None
    report.tokens = _counts(
        (llm_backbone_id, source.name if isinstance(source, Path) else source, llm_max_length),
        np.concatenate([found.tokens for found in lengths]),
        np.concatenate([found.cut(llm_max_length) for found in lengths]),
        np.concatenate([report.sources.of_rows(False), report.sources.of_rows(True)]),
        report.sources.names,
    )


def _counts(
    about: tuple[str, str, int],
    tokens: NDArray[np.int32],
    cut: NDArray[np.bool_],
    sources: NDArray[np.uint16],
    names: list[str],
) -> TokenCounts:
    longer = tokens > about[2]
    median, p95 = np.quantile(tokens, [0.5, 0.95], method="inverted_cdf").tolist()
    bins = np.bincount(np.searchsorted(BIN_EDGES, tokens, "right") - 1, minlength=len(BIN_EDGES))
    return TokenCounts(
        *about,
        rows=len(tokens),
        total=int(tokens.sum(dtype=np.int64)),
        mean=round(float(tokens.mean(dtype=np.float64)), 1),
        median=median,
        p95=p95,
        max=int(tokens.max()),
        longer=int(longer.sum()),
        conclusion_cut=int(cut.sum()),
        longer_by_source=_by_source(sources[longer], names),
        conclusion_cut_by_source=_by_source(sources[cut], names),
        bin_edges=BIN_EDGES,
        bin_rows=tuple(bins.tolist()),
    )


def _by_source(sources: NDArray[np.uint16], names: list[str]) -> dict[str, int]:
    found = Counter(sources.tolist())
    return {name: found[index] for name, index in sorted((names[index], index) for index in found)}


def _tokenizer(source: str | Path, max_length: int, token: str | None) -> PreTrainedTokenizerBase:
    """Load a tokenizer; from the cache where the hub does not answer.

    Raises:
        _NoTokenizerError: There is none.
        UserError: A local folder has none.
    """
    from huggingface_hub import try_to_load_from_cache

    from cobra.models.backbones.llm import load_tokenizer

    if isinstance(source, Path):
        return load_tokenizer(source, max_length)
    reached = _hub_answers(source)
    cached = None if reached else try_to_load_from_cache(source, "tokenizer.json")
    if not reached and not isinstance(cached, str):
        raise _NoTokenizerError(f"the tokenizer {source} is not in the cache and the hub cannot be reached")
    try:
        return load_tokenizer(Path(cached).parent if isinstance(cached, str) else source, max_length, token)
    except UserError as error:
        # What the hub says holds numbers of the request: shown, but no part of the report.
        Console(stderr=True).print(str(error), style="yellow", markup=False, soft_wrap=True)
        raise _NoTokenizerError(f"the tokenizer {source} is not there, not open to the token, or damaged") from error


def _hub_answers(repository: str) -> bool:
    """Return whether the hub answers, with any answer, within some seconds."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.errors import HTTPError

    try:
        get_session().head(hf_hub_url(repository, "tokenizer.json"), timeout=_REACH_SECONDS)
    except (HTTPError, OSError):
        # Offline mode (HF_HUB_OFFLINE) is an OSError.
        return False
    return True
