"""Token counts of every row, made once and cached."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import BatchEncoding, PreTrainedTokenizerBase

from cobra.models.backbones.llm.prompting import PromptBuilder
from cobra.preprocessing.datasets.arrow_rows import Rows, read_rows
from cobra.preprocessing.datasets.row_cache import load_or_build
from cobra.preprocessing.datasets.row_keys import Row
from cobra.preprocessing.progress import track_items
from cobra.reasoning.trace import find_conclusion_end
from cobra.util.conversation import ROLES
from cobra.util.errors import UserError
from cobra.util.files import atomic_path

# Changes with what is counted.
_FORMAT = "1"
# Rows tokenised together: enough to use all threads, few enough to hold.
_CHUNK = 256

# What :func:`_write` returns.
_Written = tuple[list[str], int, str | None]


@dataclass(frozen=True)
class TokenLengths:
    """Tokens of every row as `FinetuneDataset` makes it before it cuts.

    Attributes:
        tokens: Tokens of the whole row (rows,), int32.
        conclusion_end: Tokens of the row up to the end of its last answer's CONCLUSION, closing tag included (rows,),
            int32; up to the end of that answer where it has no CONCLUSION, and all of a row without an answer.
    """

    tokens: NDArray[np.int32]
    conclusion_end: NDArray[np.int32]

    def cut(self, limit: int) -> NDArray[np.bool_]:
        """Return which rows lose a part of that when they are cut after `limit` tokens (rows,), bool."""
        return self.conclusion_end > limit

    def kept(self, limit: int, annotation_file: Path) -> NDArray[np.bool_]:
        """Return which rows truncation `drop` keeps (rows,), bool: those that :meth:`cut` is False of.

        Raises:
            UserError: It keeps none.
        """
        kept = ~self.cut(limit)
        if not kept.any():
            raise UserError(
                f"every row of {annotation_file} is longer than {limit} tokens before its last CONCLUSION ends, and "
                "truncation 'drop' leaves such rows out: raise --model.llm_max_length, or use "
                "--dataset.truncation right"
            )
        return kept


def token_lengths(
    annotation_file: Path, tokenizer: PreTrainedTokenizerBase, prompt_builder_fn: Callable[..., PromptBuilder]
) -> TokenLengths:
    """Count the tokens of all rows, or read the counts of an earlier call with the same file, tokenizer and prompts.

    The counts lie beside the rows' Arrow file (:func:`cobra.preprocessing.datasets.row_cache.load_or_build`).
    The tokenizer's `model_max_length` plays no part; `prompt_builder_fn`, called with `model_family`, makes an empty
    conversation.

    Raises:
        UserError: The file is missing, is not JSON, or a row is not of the format.
    """
    rows = read_rows(annotation_file)
    key = f"{_FORMAT}:{rows.key}"

    def load(path: Path) -> TokenLengths:
        with np.load(path, allow_pickle=False) as arrays:
            lengths = TokenLengths(arrays["tokens"], arrays["conclusion_end"])
            if str(arrays["key"]) != key or not len(lengths.tokens) == len(lengths.conclusion_end) == len(rows):
                raise ValueError(f"{path} was made from another state of {annotation_file}")
        return lengths

    def build(path: Path) -> None:
        lengths = _count(rows, tokenizer, prompt_builder_fn)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(key), tokens=lengths.tokens, conclusion_end=lengths.conclusion_end)

    return load_or_build(annotation_file, f".{_fingerprint(tokenizer, prompt_builder_fn)}.lengths.npz", load, build)


def count_unlabelled(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, prompt_builder_fn: Callable[..., PromptBuilder]
) -> int:
    """Return how many rows have no label left once they are cut: their first question fills `model_max_length`.

    Each row has an answer; `prompt_builder_fn`, called with `model_family`, makes an empty conversation.
    """
    limit = tokenizer.model_max_length
    # A token has at least a byte, so that of 100,000 rows only the few with long questions are tokenised.
    markup = len(_question(prompt_builder_fn, "").encode()) + tokenizer.num_special_tokens_to_add()
    candidates = np.flatnonzero(rows.question_bytes + markup >= limit).tolist()
    unlabelled = 0
    for start in track_items(range(0, len(candidates), _CHUNK), f"Measuring questions of {rows.annotation_file.name}"):
        chunk = [rows[row]["conversations"][0]["value"] for row in candidates[start : start + _CHUNK]]
        batch = _encode(tokenizer, [_question(prompt_builder_fn, text) for text in chunk])
        unlabelled += sum(len(ids) >= limit for ids in batch.input_ids)
    return unlabelled


def _question(prompt_builder_fn: Callable[..., PromptBuilder], text: str) -> str:
    return prompt_builder_fn(model_family="cobra").add_turn("human", text)


def is_cut(row: Row, tokenizer: PreTrainedTokenizerBase, prompt_builder_fn: Callable[..., PromptBuilder]) -> bool:
    """Return True if a row, cut after `model_max_length` tokens, loses what :meth:`TokenLengths.cut` is about.

    `prompt_builder_fn`, called with `model_family`, makes an empty conversation.
    """
    written = _write(row, prompt_builder_fn)
    limit, special = tokenizer.model_max_length, tokenizer.num_special_tokens_to_add()
    # A token has at least a byte, so that short rows are not tokenised.
    if sum(len(turn.encode()) + special for turn in written[0]) <= limit:
        return False
    [(_, end)] = _measure([written], tokenizer)
    return end > limit


def _write(row: Row, prompt_builder_fn: Callable[..., PromptBuilder]) -> _Written:
    """Return a row's turns in the prompt, how many end with the last answer, and that up to its CONCLUSION's end."""
    builder = prompt_builder_fn(model_family="cobra")
    turns = [builder.add_turn(turn["from"], turn["value"]) for turn in row["conversations"]]
    answers = len(turns) // 2 * 2
    if not answers:
        return turns, len(turns), None
    answer = turns[answers - 1].removesuffix(builder.end)
    end = find_conclusion_end(answer)
    return turns, answers, None if end is None else answer[:end]


def _count(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, prompt_builder_fn: Callable[..., PromptBuilder]
) -> TokenLengths:
    tokens, ends = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int32)
    for start in track_items(range(0, len(rows), _CHUNK), f"Counting tokens of {rows.annotation_file.name}"):
        written = [_write(row, prompt_builder_fn) for row in rows[start : start + _CHUNK]]
        for row, (size, end) in enumerate(_measure(written, tokenizer), start):
            tokens[row], ends[row] = size, end
    return TokenLengths(tokens, ends)


def _measure(written: Sequence[_Written], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, int]]:
    """Yield the two counts of :class:`TokenLengths` for each row, which are tokenised together."""
    batch = _encode(tokenizer, [text for turns, _, _ in written for text in turns])
    sizes = map(len, batch.input_ids)
    last = -1
    for turns, answers, conclusion in written:
        turn_sizes = list(islice(sizes, len(turns)))
        end = sum(turn_sizes[:answers])
        if conclusion is not None:
            end += _tokens_through(tokenizer, batch, last + answers, conclusion) - turn_sizes[answers - 1]
        yield sum(turn_sizes), end
        last += len(turn_sizes)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> BatchEncoding:
    # As FinetuneDataset does it: the special tokens of a tokenizer are added to every turn.
    return tokenizer(texts, add_special_tokens=True, truncation=False, verbose=False)


def _tokens_through(tokenizer: PreTrainedTokenizerBase, batch: BatchEncoding, index: int, beginning: str) -> int:
    """Return how many tokens of a text of the batch it takes to hold its beginning."""
    size = len(batch.input_ids[index])
    if batch.encodings is None:
        # Without the tokens' candidates in the text: the beginning alone may be cut into tokens otherwise at its end.
        return min(size, len(_encode(tokenizer, [beginning]).input_ids[0]))
    token = batch.encodings[index].char_to_token(len(beginning) - 1)
    if token is None:
        return size
    # A character of several bytes may be several tokens.
    to_chars = batch.encodings[index].token_to_chars
    while token + 1 < size and (span := to_chars(token + 1)) is not None and span[0] < len(beginning):
        token += 1
    return token + 1


def _fingerprint(tokenizer: PreTrainedTokenizerBase, prompt_builder_fn: Callable[..., PromptBuilder]) -> str:
    """Return a fingerprint of tokenizer and prompt format: 16 hex digits."""
    if tokenizer.is_fast:
        core = json.loads(tokenizer.backend_tokenizer.to_str())
        # Set by the last call, whatever it was.
        core["truncation"] = core["padding"] = None
    else:
        core = [sorted(tokenizer.get_vocab().items()), repr(tokenizer.init_kwargs)]
    builder = prompt_builder_fn(model_family="cobra")
    example = [builder.add_turn(role, text) for role, text in (("human", "a"), ("gpt", "b")) * 2]
    empty = [builder.add_turn(role, "") for role in ROLES]
    identity = json.dumps([type(tokenizer).__qualname__, core, example, empty, builder.end], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
