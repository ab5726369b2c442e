"""Count the tokens of the prepared rows with the model's tokenizer, where one can be had; brings torch."""

from collections import Counter
from pathlib import Path

import numpy as np
from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from numpy.typing import NDArray
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from cobra.models.backbones.llm.backbone import load_tokenizer, prompt_builder_of
from cobra.models.backbones.llm.specs import llm_spec
from cobra.preprocessing.datasets.token_lengths import token_lengths
from cobra.preprocessing.llava_cot.report.token_counts import BIN_EDGES, RowSources, TokenCounts
from cobra.util.errors import UserError

# For one answer of the hub, whatever it is: huggingface_hub itself tries for 23 seconds where there is no network.
_REACH_SECONDS = 5.0


class _NoTokenizerError(Exception):
    """There is none; the text is the reason, the same for the same state of things."""


def count_tokens(
    annotation: Path,
    holdout: Path,
    sources: RowSources,
    llm_backbone_id: str,
    llm_max_length: int,
    token: str | None = None,
) -> tuple[TokenCounts | None, str | None]:
    """Count the tokens of the written rows, and those that training cuts at `llm_max_length` tokens.

    Only the tokenizer is loaded, not the model; counts of an earlier run with the same rows are read. A file is read
    only where `sources` has rows of it.

    Returns:
        The counts and None; or None and the reason, where the rows cannot be counted.
    """
    files = [path for path, held_out in ((annotation, False), (holdout, True)) if len(sources.of_rows(held_out))]
    if not files:
        return None, "there are no rows"
    try:
        spec = llm_spec(llm_backbone_id)
        source = spec.tokenizer or spec.source
        tokenizer = _tokenizer(source, llm_max_length, token)
        builder = prompt_builder_of(llm_backbone_id)
    except (UserError, _NoTokenizerError) as error:
        return None, str(error)
    lengths = [token_lengths(path, tokenizer, builder) for path in files]
    tokens = np.concatenate([length.tokens for length in lengths])
    cut = np.concatenate([length.cut(llm_max_length) for length in lengths])
    name = source.name if isinstance(source, Path) else source
    return _count(tokens, cut, sources, llm_backbone_id, name, llm_max_length), None


def _count(
    tokens: NDArray[np.int32],
    cut: NDArray[np.bool_],
    sources: RowSources,
    llm_backbone_id: str,
    tokenizer: str,
    llm_max_length: int,
) -> TokenCounts:
    """Count by the tokens of each row (rows,), training rows first, and by which lose their CONCLUSION (rows,)."""
    longer = tokens > llm_max_length
    source = np.concatenate([sources.of_rows(False), sources.of_rows(True)])
    median, p95 = np.quantile(tokens, [0.5, 0.95], method="inverted_cdf").tolist()
    bins = np.bincount(np.searchsorted(BIN_EDGES, tokens, "right") - 1, minlength=len(BIN_EDGES))
    return TokenCounts(
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


def _count_by_source(sources: NDArray[np.uint16], names: list[str]) -> dict[str, int]:
    counts = Counter(sources.tolist())
    return {name: counts[index] for name, index in sorted((names[index], index) for index in counts)}


def _tokenizer(source: str | Path, max_length: int, token: str | None) -> PreTrainedTokenizerBase:
    """Load a tokenizer, from the cache where the hub does not answer; an error where there is none."""
    if isinstance(source, Path):
        return load_tokenizer(source, max_length)
    is_reached = _hub_answers(source)
    cached = None if is_reached else try_to_load_from_cache(source, "tokenizer.json")
    if not is_reached and not isinstance(cached, str):
        raise _NoTokenizerError(f"the tokenizer {source} is not in the cache and the hub cannot be reached")
    try:
        return load_tokenizer(Path(cached).parent if isinstance(cached, str) else source, max_length, token)
    except UserError as error:
        # What the hub says holds numbers of the request: shown, but no part of the report.
        Console(stderr=True).print(str(error), style="yellow", markup=False, soft_wrap=True)
        raise _NoTokenizerError(f"the tokenizer {source} is not there, not open to the token, or damaged") from error


def _hub_answers(repository: str) -> bool:
    """Return True if the hub answers, with any answer, within some seconds."""
    try:
        get_session().head(hf_hub_url(repository, "tokenizer.json"), timeout=_REACH_SECONDS)
    except (HTTPError, OSError):
        # Offline mode (HF_HUB_OFFLINE) is an OSError.
        return False
    return True
