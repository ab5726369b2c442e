"""Rows of a planned run: their number, their lengths, and how many are cut."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from huggingface_hub import try_to_load_from_cache
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from cobra.conf import DatasetConfig, ModelConfig
from cobra.models.backbones.llm.backbone import load_tokenizer, prompt_builder_of
from cobra.models.backbones.llm.specs import llm_spec
from cobra.preprocessing.datasets.arrow_rows import Rows, read_rows
from cobra.preprocessing.datasets.datasets import check_learnable
from cobra.preprocessing.datasets.token_lengths import token_lengths
from cobra.preprocessing.materialize import find_components
from cobra.preprocessing.packed.files import is_packed
from cobra.training.config import Hyperparameters
from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.errors import UserError

# GPT-NeoX's tokenizer makes about 1.3 tokens of a word of English prose, more of numbers and tags.
_TOKENS_PER_WORD = 1.4
_TOKENS_PER_TURN = 5
# Where the rows are not there either: an answer in four stages has 350 to 450.
_ASSUMED_TOKENS = 450


@dataclass(frozen=True)
class RowFacts:
    """The rows that a run trains on.

    source: Origin of the lengths, in words.
    has_image: True for rows with an image (rows,).
    lengths: Lengths that batches are balanced by, as in training (rows,).
    tokens: Tokens of each row after it is cut (rows,).
    longer: Rows that are cut; None where that is not known.
    conclusion_cut: Rows that lose a part of their last CONCLUSION thereby; None where that is not known.
    left_out: Rows that `--dataset.truncation drop` leaves out.
    held_out: Rows that are never trained on; None where there are none.
    problem: Reason why the rows could not be read, or None.
    """

    source: str
    has_image: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    tokens: NDArray[np.int64]
    longer: int | None = None
    conclusion_cut: int | None = None
    left_out: int = 0
    held_out: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Epoch:
    """One pass over the rows, on all processes together.

    batches: Number of global batches, and so of steps.
    images: Rows with an image, those that fill the last batch included.
    tokens: Tokens of text, without padding.
    positions: Positions that the language model reads: patches and text, padding included.
    """

    batches: int
    images: int
    tokens: int
    positions: int


def read_facts(stage: str, dataset: DatasetConfig, model: ModelConfig, patches: int) -> RowFacts:
    """Read the rows of a stage where they are, else take what is published of them.

    Nothing is fetched: tokens are counted by a tokenizer that is at hand, else estimated from words. Batches of the
    align stage are balanced by words and `patches`, those of an image.

    Raises:
        UserError: The rows are not there and nothing is published of them, or they are bad.
    """
    file, _ = dataset.components(stage)
    problem = None
    try:
        find_components(stage, dataset)
    except UserError as error:
        problem = str(error)
        if not (file.is_file() or is_packed(file)):
            if (published := dataset.published(stage)) is None:
                raise
            return _assumed(published.rows, dataset, model, problem)
    rows = read_rows(file)
    check_learnable(rows)
    facts = _estimated(rows, model) if stage == "align" else _counted(rows, file, dataset, model)
    lengths = rows.words_without_placeholder + patches * rows.has_image if stage == "align" else facts.lengths
    held_out = None if stage == "align" else _held_out(dataset)
    return replace(facts, lengths=lengths, held_out=held_out, problem=problem)


def plan_epoch(facts: RowFacts, values: Hyperparameters, world_size: int, image_positions: int, seed: int) -> Epoch:
    """Deal the rows of the first epoch as training does, and add up the passes.

    Raises:
        UserError: The global batch does not divide among the processes.
    """
    lengths = list(zip(facts.has_image.tolist(), facts.lengths.tolist(), strict=True))
    sampler = SplitModalitySampler([], lengths, values.global_batch_size, world_size, 0, seed)  # type: ignore[arg-type]
    # (passes, rows of a pass): each process has a contiguous part of every batch.
    passes = np.array(sampler.global_batches(0)).reshape(-1, values.per_device_batch_size)
    images, tokens = facts.has_image[passes], facts.tokens[passes]
    # All rows of a pass are as long as the longest.
    positions = (tokens.max(1) + image_positions * images.any(1)).sum() * values.per_device_batch_size
    return Epoch(sampler.batches_per_epoch, int(images.sum()), int(tokens.sum()), int(positions))


def _assumed(count: int, dataset: DatasetConfig, model: ModelConfig, problem: str) -> RowFacts:
    tokens = np.full(count, min(_ASSUMED_TOKENS, model.llm_max_length))
    # One as long as can be, for the memory.
    tokens[:1] = model.llm_max_length
    source = (
        f"the published number of rows of {dataset.dataset_id}, each with an image and {tokens[-1]} tokens: an "
        "assumption, because the rows are not here"
    )
    return RowFacts(source, np.ones(count, bool), tokens, tokens, problem=problem)


def _counted(rows: Rows, file: Path, dataset: DatasetConfig, model: ModelConfig) -> RowFacts:
    """Count tokens with the model's tokenizer; estimate them where it is not at hand."""
    if (tokenizer := cached_tokenizer(model)) is None:
        return _estimated(rows, model)
    lengths = token_lengths(file, tokenizer, prompt_builder_of(model.llm_backbone_id))
    limit = model.llm_max_length
    kept = lengths.kept(limit, file) if dataset.truncation == "drop" else np.ones(len(rows), bool)
    return RowFacts(
        source="counted by the model's tokenizer",
        has_image=rows.has_image[kept],
        lengths=rows.words[kept],
        tokens=np.minimum(lengths.tokens[kept], limit).astype(np.int64),
        longer=int((lengths.tokens[kept] > limit).sum()),
        conclusion_cut=int((lengths.cut(limit) & kept).sum()),
        left_out=int((~kept).sum()),
    )


def _estimated(rows: Rows, model: ModelConfig) -> RowFacts:
    tokens = np.ceil(rows.words * _TOKENS_PER_WORD + rows.turns * _TOKENS_PER_TURN).astype(np.int64)
    return RowFacts(
        source=f"estimated as {_TOKENS_PER_WORD} tokens a word, because the model's tokenizer is not at hand",
        has_image=rows.has_image,
        lengths=rows.words,
        tokens=np.minimum(tokens, model.llm_max_length),
        longer=int((tokens > model.llm_max_length).sum()),
    )


def cached_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase | None:
    """Return the language model's tokenizer from its folder or the hub's cache, or None."""
    spec = llm_spec(model.llm_backbone_id)
    source = spec.tokenizer or spec.source
    if isinstance(source, Path):
        return load_tokenizer(source, model.llm_max_length)
    cached = try_to_load_from_cache(source, "tokenizer.json")
    return load_tokenizer(Path(cached).parent, model.llm_max_length) if isinstance(cached, str) else None


def _held_out(dataset: DatasetConfig) -> int | None:
    if dataset.holdout_components is None:
        return None
    file = Path(dataset.dataset_root_dir) / dataset.holdout_components[0]
    return len(read_rows(file)) if file.is_file() or is_packed(file) else None
