"""Count the tokens of the prepared rows with the model's tokenizer, where one can be had; brings torch."""

from pathlib import Path

import numpy as np
from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from cobra.models.backbones.llm import load_tokenizer, prompt_builder_of
from cobra.models.backbones.llm.specs import llm_spec
from cobra.preprocessing.datasets.token_lengths import token_lengths
from cobra.preprocessing.llava_cot.report.row_sources import RowSources
from cobra.preprocessing.llava_cot.report.token_counts import TokenCounts
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
    """Count the tokens of the written rows.

    Only the tokenizer is loaded, not the model; counts of an earlier run with the same rows are read.

    Args:
        annotation: The file of the training rows; read if there are any.
        holdout: The file of the held-out rows; read if there are any.
        sources: The sources of the written rows.
        llm_backbone_id: A registered language model.
        llm_max_length: Tokens at which training cuts a row.
        token: The hub's token, not needed.

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
    counts = TokenCounts.of_rows(
        llm_backbone_id,
        source.name if isinstance(source, Path) else source,
        llm_max_length,
        np.concatenate([length.tokens for length in lengths]),
        np.concatenate([length.cut(llm_max_length) for length in lengths]),
        sources,
    )
    return counts, None


def _tokenizer(source: str | Path, max_length: int, token: str | None) -> PreTrainedTokenizerBase:
    """Load a tokenizer; from the cache where the hub does not answer.

    Raises:
        _NoTokenizerError: There is none.
        UserError: A local folder has none.
    """
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
