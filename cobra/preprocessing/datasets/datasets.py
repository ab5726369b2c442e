"""Rows in LLaVA's format (`{"id", "image", "conversations": [{"from", "value"}, ...]}`) as token ids and pixels."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from cobra.models.backbones.llm.prompting import PromptBuilder
from cobra.models.backbones.vision import ImageTransform, PixelValues
from cobra.preprocessing.datasets.reasoning import ReasoningTrace, extract_reasoning_trace
from cobra.util.data_utils import IGNORE_INDEX
from cobra.util.errors import UserError
from cobra.util.files import read_json

_PLACEHOLDER = "<image>"
_ROLES = ("human", "gpt")

Row = dict[str, Any]


class _RowDataset(Dataset[dict[str, Any]]):
    """Rows of a JSON list, checked once when they are read, and their images, opened when they are asked for."""

    def __init__(
        self,
        annotation_file: Path,
        image_dir: Path,
        image_transform: ImageTransform,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.annotation_file = Path(annotation_file)
        self.image_dir = Path(image_dir)
        self.image_transform = image_transform
        self.tokenizer = tokenizer
        self.examples: list[Row] = read_rows(self.annotation_file)
        if not self.image_dir.is_dir():
            raise UserError(f"the image folder does not exist: {self.image_dir}")

    def __len__(self) -> int:
        return len(self.examples)

    def _pixels(self, index: int) -> PixelValues | None:
        """Return the pixels of a row's image, or None for a row of text only."""
        row = self.examples[index]
        if "image" not in row:
            return None
        where = f"row {index} (id {row.get('id')!r}) of {self.annotation_file}"
        path = self.image_dir / row["image"]
        try:
            image = _read_rgb(path, self.image_dir)
        except FileNotFoundError as error:
            raise UserError(f"{where} names an image that does not exist: {path}") from error
        # Decoders answer damaged files with errors of almost any kind, NotImplementedError and struct.error among them.
        except Exception as error:
            raise UserError(
                f"{where} names an image that cannot be read: {path} ({error}); replace the file or take the row out"
            ) from error
        try:
            return self.image_transform(image)
        except UserError as error:
            raise UserError(f"{where}: {path}: {error}") from error

    def _truncated(self, input_ids: list[int], labels: list[int], index: int) -> dict[str, Any]:
        limit = self.tokenizer.model_max_length
        return {
            "pixel_values": self._pixels(index),
            "input_ids": torch.tensor(input_ids[:limit], dtype=torch.long),
            "labels": torch.tensor(labels[:limit], dtype=torch.long),
        }

    def _encode(self, text: str) -> list[int]:
        """Return token ids; what is too long is cut when the whole row is joined."""
        return self.tokenizer(text, add_special_tokens=True, truncation=False, verbose=False).input_ids


class AlignDataset(_RowDataset):
    """Captions for the align stage: the question is dropped, and every token of the caption is labelled."""

    def __init__(
        self, chat_json: Path, image_dir: Path, image_transform: ImageTransform, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Read the rows.

        Args:
            chat_json: A JSON list of rows of one question and one answer.
            image_dir: Folder that the rows' image paths are relative to.
            image_transform: From a picture to pixels.
            tokenizer: Its `model_max_length` is where captions are cut, on the right.

        Raises:
            UserError: The file or folder is missing, is not JSON, or a row is not of the format.
        """
        super().__init__(chat_json, image_dir, image_transform, tokenizer)
        for index, row in enumerate(self.examples):
            where = f"row {index} (id {row.get('id')!r}) of {chat_json}"
            if len(row["conversations"]) != 2:
                raise UserError(
                    f"{where} has {len(row['conversations'])} turns; the align stage takes rows of one question and "
                    "one caption"
                )
            if "image" not in row:
                raise UserError(f"{where} has no image; the align stage trains the projector, which only images reach")

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `pixel_values`, `input_ids` and `labels` (text,) int64 of a row."""
        turns = self.examples[index]["conversations"]
        caption = turns[-1]["value"].replace(_PLACEHOLDER, "").strip()
        ids = self._encode(caption + str(self.tokenizer.eos_token))
        return self._truncated(ids, list(ids), index)

    def get_modality_lengths(self, n_image_patches: int) -> list[tuple[bool, int]]:
        """Return (has an image, words of all turns and patches) of every row."""
        lengths = []
        for row in self.examples:
            words = sum(len(turn["value"].replace(_PLACEHOLDER, "").split()) for turn in row["conversations"])
            has_image = "image" in row
            lengths.append((has_image, words + n_image_patches if has_image else words))
        return lengths


class FinetuneDataset(_RowDataset):
    """Conversations for the finetune stages: the answers, with the token that ends each, are labelled."""

    def __init__(
        self,
        instruct_json: Path,
        image_dir: Path,
        image_transform: ImageTransform,
        tokenizer: PreTrainedTokenizerBase,
        prompt_builder_fn: Callable[..., PromptBuilder],
    ) -> None:
        """Read the rows.

        Args:
            instruct_json: A JSON list of rows.
            image_dir: Folder that the rows' image paths are relative to.
            image_transform: From a picture to pixels.
            tokenizer: Its `model_max_length` is where rows are cut, on the right.
            prompt_builder_fn: Makes an empty conversation; called with `model_family`.

        Raises:
            UserError: The file or folder is missing, is not JSON, or a row is not of the format.
        """
        super().__init__(instruct_json, image_dir, image_transform, tokenizer)
        self.prompt_builder_fn = prompt_builder_fn

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `pixel_values` (None for text only), `input_ids` and `labels` (text,) int64 of a row."""
        builder = self.prompt_builder_fn(model_family="cobra")
        input_ids: list[int] = []
        labels: list[int] = []
        for turn in self.examples[index]["conversations"]:
            ids = self._encode(builder.add_turn(turn["from"], turn["value"]))
            input_ids += ids
            labels += ids if turn["from"] == "gpt" else [IGNORE_INDEX] * len(ids)
        return self._truncated(input_ids, labels, index)

    def get_modality_lengths(self) -> list[tuple[bool, int]]:
        """Return (has an image, words of all turns) of every row; `<image>` counts as a word."""
        return [
            ("image" in row, sum(len(turn["value"].split()) for turn in row["conversations"])) for row in self.examples
        ]

    def extract_reasoning_trace(self, index: int) -> list[ReasoningTrace]:
        """Return the stages of every answer of a row."""
        turns = self.examples[index]["conversations"]
        return [extract_reasoning_trace(turn["value"]) for turn in turns if turn["from"] == "gpt"]


def read_rows(path: Path) -> list[Row]:
    """Read a JSON list of rows and check every row's form.

    Raises:
        UserError: The file is missing or not JSON (with the line), or a row has no conversation, an unknown or
            misplaced role, or an image that is not a path (with the row's number, from 0, and id).
    """
    rows = read_json(path, "the annotation file")
    if not isinstance(rows, list) or not rows:
        raise UserError(
            f"{path} must be a JSON list of rows and holds {'an empty list' if rows == [] else type(rows).__name__}"
        )
    for index, row in enumerate(rows):
        problem = _row_problem(row)
        if problem:
            identity = f" (id {row.get('id')!r})" if isinstance(row, dict) else ""
            raise UserError(
                f'row {index}{identity} of {path} {problem}; expected {{"id": ..., "image": a path, '
                '"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}'
            )
    return rows


def _read_rgb(path: Path, image_dir: Path) -> Image.Image:
    """Read an image as RGB.

    Raises:
        ValueError: The path leads out of the folder, or cannot be a path.
        Exception: Whatever the decoder raises on a file that is not a whole image.
    """
    # By the path's text: a link that the user has made in the folder, to another disk say, is the user's own.
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(image_dir)):
        raise ValueError(f"it lies outside the image folder {image_dir}")
    with Image.open(path) as image:
        return image.convert("RGB")


def _row_problem(row: Any) -> str | None:
    """Return what is wrong with a row, or None."""
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}"
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        return "has no conversations"
    for place, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return f"has a turn {place} without a text in 'value'"
        if not _is_unicode(turn["value"]):
            return f"has a turn {place} whose text holds half a surrogate pair, which no tokenizer can read"
        if turn.get("from") != _ROLES[place % 2]:
            return f"has a turn {place} from {turn.get('from')!r} where {_ROLES[place % 2]!r} was expected"
    if "image" in row and not (isinstance(row["image"], str) and row["image"]):
        return f"has the image {row['image']!r}, which is not a path"
    return None


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded; JSON's escapes can spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
