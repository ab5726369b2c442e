"""Pass over the texts: stages of the answers, duplicates, and tokens."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cobra.conf import ModelConfig
from cobra.models.backbones.llm.backbone import prompt_builder_of
from cobra.models.registry import MODELS
from cobra.preprocessing.datasets.arrow_rows import Rows
from cobra.preprocessing.datasets.row_keys import Row
from cobra.preprocessing.datasets.token_lengths import count_unlabelled, token_lengths
from cobra.preprocessing.progress import track_items
from cobra.reasoning.trace import extract_reasoning_trace
from cobra.training.planning.row_lengths import cached_tokenizer

# Packaged, so that its tokenizer is always at hand.
_SMALL = "cobra-tiny"


@dataclass
class Texts:
    """Facts about conversations."""

    turns: Counter[int] = field(default_factory=Counter)
    """Rows by their number of questions."""
    answers: int = 0
    four_stages: int = 0
    """Answers with all four stages, closed and in order."""
    some_stages: int = 0
    """Answers with stages, not in that form."""
    keys: dict[bytes, int] = field(default_factory=dict)
    """First row by :func:`row_key`."""
    repeated: int = 0
    """Rows that say what an earlier one says about the same image."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows."""

    tokenizer: str
    """Model whose tokenizer counted."""
    limit: int
    """Tokens that a row is cut at."""
    median: int
    p95: int
    longest: int
    longer: int
    """Rows that are cut."""
    conclusion_cut: int
    """Rows that lose a part of their last CONCLUSION thereby, or of a last answer without one."""
    unlabelled: int
    """Rows that no answer is left of."""


def read_texts(rows: Rows, contents: Mapping[str, str]) -> Texts:
    """Read the conversations of all rows; `contents` are the digests of images by path."""
    texts = Texts()
    for number, row in enumerate(track_items(rows, "Reading answers")):
        answers = [extract_reasoning_trace(turn["value"]) for turn in row["conversations"][1::2]]
        valid = sum(trace.is_valid for trace in answers)
        texts.turns[len(answers)] += 1
        texts.answers += len(answers)
        texts.four_stages += valid
        texts.some_stages += sum(bool(trace.texts) for trace in answers) - valid
        texts.repeated += texts.keys.setdefault(row_key(row, contents), number) != number
    return texts


def row_key(row: Row, contents: Mapping[str, str]) -> bytes:
    """Return a digest that rows share which say the same about the same image."""
    image = row.get("image")
    said = [[turn["from"], turn["value"].strip()] for turn in row["conversations"]]
    text = json.dumps([image and contents.get(image, image), said])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def with_tokenizer(model: ModelConfig) -> tuple[ModelConfig, str]:
    """Return a model whose tokenizer is at hand, and the id of the one that it is from: itself, or the packaged one."""
    if cached_tokenizer(model) is not None:
        return model, model.model_id
    return replace(model, llm_backbone_id=MODELS[_SMALL].config.llm_backbone_id), _SMALL


def count_lengths(rows: Rows, annotation_file: Path, model: ModelConfig) -> Lengths:
    """Count the tokens of all rows with the model's tokenizer, or the packaged one where that is not at hand."""
    model, name = with_tokenizer(model)
    tokenizer = cached_tokenizer(model)
    assert tokenizer is not None
    builder, limit = prompt_builder_of(model.llm_backbone_id), model.llm_max_length
    lengths = token_lengths(annotation_file, tokenizer, builder)
    median, p95 = np.quantile(lengths.tokens, [0.5, 0.95], method="inverted_cdf").tolist()
    return Lengths(
        tokenizer=name,
        limit=limit,
        median=median,
        p95=p95,
        longest=int(lengths.tokens.max()),
        longer=int((lengths.tokens > limit).sum()),
        conclusion_cut=int(lengths.cut(limit).sum()),
        unlabelled=count_unlabelled(rows, tokenizer, builder),
    )
