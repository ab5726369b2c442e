"""Datasets of rows in LLaVA's format, `{"id", "image", "conversations": [{"from", "value"}, ...]}`, for training."""

import math
import sys
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from cobra.models.backbones.llm.prompting import PromptBuilder
from cobra.models.backbones.vision import ImageTransform, PixelValues
from cobra.models.backbones.vision.transforms import map_pixels
from cobra.preprocessing.datasets.answer_forms import FULL, Conversations
from cobra.preprocessing.datasets.arrow_rows import Rows, read_rows
from cobra.preprocessing.datasets.image_presence import leads_out
from cobra.preprocessing.datasets.row_keys import ASKS_ABOUT_IMAGE
from cobra.preprocessing.datasets.token_lengths import count_unlabelled, is_cut, token_lengths
from cobra.preprocessing.packed.rows import RowImages
from cobra.reasoning.trace import ReasoningTrace, extract_reasoning_trace
from cobra.util.conversation import PLACEHOLDER, without_placeholder
from cobra.util.data_utils import IGNORE_INDEX, SKIPPED_ROW
from cobra.util.errors import UserError, check_known
from cobra.util.images import BadImageError, read_rgb
from cobra.util.printable import printable

ON_BAD_IMAGE = ("raise", "skip")
TRUNCATIONS = ("right", "drop")

# Side of the picture that shows what form the transform's pixels have.
_PROBE = 64
# Both let a run go on that has begun.
_REMEDY = "put a whole file there, or give --dataset.on_bad_image skip"
# Characters of a path in an error; one of the data can have any length.
_SHOWN_PATH = 300


class _RowDataset(Dataset[dict[str, Any]]):
    """Rows of an annotation file, checked when it is first opened, and their images, opened when they are asked for.

    Attributes:
        images: Where the images are opened.
        row_fields: Names of numbers that a row of the file holds beside its conversation, and that its example has too.
    """

    row_fields: tuple[str, ...] = ()

    def __init__(
        self,
        annotation_file: Path,
        image_dir: Path,
        image_transform: ImageTransform,
        tokenizer: PreTrainedTokenizerBase,
        on_bad_image: str,
        truncation: str = "right",
    ) -> None:
        check_row_options(on_bad_image, truncation)
        self.annotation_file, self.image_dir = Path(annotation_file), Path(image_dir)
        self.image_transform, self.tokenizer, self.on_bad_image = image_transform, tokenizer, on_bad_image
        self.examples = read_rows(self.annotation_file)
        check_learnable(self.examples)
        if not self.image_dir.is_dir():
            raise UserError(f"the image folder does not exist: {self.image_dir}")
        self.images = RowImages(self.annotation_file, self.image_dir)
        self._named: set[int] = set()

    def __len__(self) -> int:
        return len(self.examples)

    def _example(self, input_ids: list[int], labels: list[int], index: int) -> dict[str, Any]:
        """Return a row as the collator takes it; without labels where its image is bad and such rows are skipped."""
        limit = self.tokenizer.model_max_length
        example: dict[str, Any] = {
            "input_ids": torch.tensor(input_ids[:limit], dtype=torch.long),
            "labels": torch.tensor(labels[:limit], dtype=torch.long),
        }
        for name in self.row_fields:
            value = self.examples[index].get(name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(
                    f"{self.examples.row_name(index)} has {printable(repr(value), 100)} under `{name}`, where "
                    "--objective needs a finite number"
                )
            example[name] = value
        try:
            example["pixel_values"] = self._pixels(index)
        except UserError as error:
            if self.on_bad_image == "raise":
                raise
            if index not in self._named:
                self._named.add(index)
                print(f"warning: a row is skipped: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            example["pixel_values"] = self._blank_pixels
            example["labels"].fill_(IGNORE_INDEX)
            example[SKIPPED_ROW] = index
        return example

    def _pixels(self, index: int) -> PixelValues | None:
        """Return the pixels of a row's image, or None for a row of text only."""
        row = self.examples[index]
        if "image" not in row:
            return None
        is_inside = self.images.is_inside(row["image"])
        name = printable(row["image"] if is_inside else str(self.image_dir / row["image"]), _SHOWN_PATH)
        try:
            if not is_inside and leads_out(row["image"], self.image_dir):
                raise ValueError(f"it lies outside the image folder {self.image_dir}")
            image = read_rgb(self.images.open(row["image"]))
        except (FileNotFoundError, BadImageError, ValueError) as error:
            absent = isinstance(error, FileNotFoundError)
            problem = f"does not exist: {name}" if absent else f"cannot be read: {name} ({error})"
            raise UserError(f"{self.examples.row_name(index)} names an image that {problem}; {_REMEDY}") from error
        try:
            return self.image_transform(image)
        except UserError as error:
            raise UserError(f"{self.examples.row_name(index)}: {name}: {error}") from error

    @cached_property
    def _blank_pixels(self) -> PixelValues:
        """Zeros in the form of the transform's pixels."""
        return map_pixels(self.image_transform(Image.new("RGB", (_PROBE, _PROBE))), torch.zeros_like)

    def _encode(self, text: str) -> list[int]:
        """Return token ids; what is too long is cut when the whole row is joined."""
        return self.tokenizer(text, add_special_tokens=True, truncation=False, verbose=False).input_ids


class AlignDataset(_RowDataset):
    """Captions for the align stage: the question is dropped, and every token of the caption is labelled."""

    def __init__(
        self,
        chat_json: Path,
        image_dir: Path,
        image_transform: ImageTransform,
        tokenizer: PreTrainedTokenizerBase,
        on_bad_image: str = "raise",
    ) -> None:
        """Open the rows.

        Args:
            chat_json: Rows of one question and one answer, in a form that
                :func:`cobra.preprocessing.forms.training_rows.check_rows` reads.
            image_dir: Folder that the rows' image paths are relative to.
            image_transform: From a picture to pixels.
            tokenizer: Its `model_max_length` is where captions are cut, on the right.
            on_bad_image: `raise`, or `skip`: a row with a missing or unreadable image stays in its place with pixels
                of zero and without a label.

        Raises:
            UserError: The file or folder is missing, is not JSON, or a row is not of the format.
        """
        super().__init__(chat_json, image_dir, image_transform, tokenizer, on_bad_image)
        rows = self.examples
        for index in np.flatnonzero((rows.turns != 2) | ~rows.has_image)[:1].tolist():
            problem = "no image; the align stage trains the projector, which only images reach"
            if (turns := rows.turns[index]) != 2:
                problem = f"{turns} turns; the align stage takes rows of one question and one caption"
            raise UserError(f"{rows.row_name(index)} has {problem}")

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `pixel_values`, `input_ids` and `labels` (text,) int64 of a row; `skipped_row` where it is skipped."""
        turns = self.examples[index]["conversations"]
        caption = without_placeholder(turns[-1]["value"])
        ids = self._encode(caption + str(self.tokenizer.eos_token))
        return self._example(ids, list(ids), index)

    def get_modality_lengths(self, n_image_patches: int) -> list[tuple[bool, int]]:
        """Return (has an image, words of all turns and patches) of every row."""
        rows = self.examples
        lengths = rows.words_without_placeholder + n_image_patches * rows.has_image
        return list(zip(rows.has_image.tolist(), lengths.tolist(), strict=True))


class FinetuneDataset(_RowDataset):
    """Conversations for the finetune stages: the answers, with the token that ends each, are labelled.

    Attributes:
        left_out: Rows of the file that `truncation="drop"` leaves out.
        unlabelled: Rows that no label is left of when they are cut; they teach nothing.
    """

    def __init__(
        self,
        instruct_json: Path,
        image_dir: Path,
        image_transform: ImageTransform,
        tokenizer: PreTrainedTokenizerBase,
        prompt_builder_fn: Callable[..., PromptBuilder],
        on_bad_image: str = "raise",
        truncation: str = "right",
        answer: str = FULL,
    ) -> None:
        """Open the rows.

        Args:
            instruct_json: Rows in a form that :func:`cobra.preprocessing.forms.training_rows.check_rows` reads.
            image_dir: Folder that the rows' image paths are relative to.
            image_transform: From a picture to pixels.
            tokenizer: Its `model_max_length` is where rows are cut, on the right.
            prompt_builder_fn: Makes an empty conversation; called with `model_family`.
            on_bad_image: `raise`, or `skip`: a row with a missing or unreadable image stays in its place with pixels
                of zero and without a label.
            truncation: `right`, or `drop`: rows whose last CONCLUSION would be cut are left out, by token counts that
                are made once (:func:`cobra.preprocessing.datasets.token_lengths.token_lengths`).
            answer: Form of the answers that are trained on, a value of
                :data:`cobra.preprocessing.datasets.answer_forms.ANSWER_FORMS`. Rows are ordered, and left out, by their
                full answers, so that all forms have the same rows in the same order.

        Raises:
            UserError: The file or folder is missing, is not JSON, a row is not of the format or has no answer, or no
                row is left or none has a label, or no answer has the stages that `answer` is about.
        """
        super().__init__(instruct_json, image_dir, image_transform, tokenizer, on_bad_image, truncation)
        self.prompt_builder_fn = prompt_builder_fn
        self._conversations = Conversations(
            self.examples, answer, partial(is_cut, tokenizer=tokenizer, prompt_builder_fn=prompt_builder_fn)
        )
        # Place in the file of each row that is kept.
        self._places = np.arange(len(self.examples))
        self.left_out = 0
        if truncation == "drop":
            lengths = token_lengths(self.annotation_file, tokenizer, prompt_builder_fn)
            kept = lengths.kept(tokenizer.model_max_length, self.annotation_file)
            self.left_out = int((~kept).sum())
            self._places = np.flatnonzero(kept)
            self.examples = self.examples.select(self._places)
        self.unlabelled = count_unlabelled(self.examples, tokenizer, prompt_builder_fn)
        if self.unlabelled == len(self.examples):
            raise UserError(
                f"nothing can be learned from {self.annotation_file}: the first question of every row fills the "
                f"{tokenizer.model_max_length} tokens that a row is cut at. Raise --model.llm_max_length, or shorten "
                "the questions"
            )

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `pixel_values` (None for text only), `input_ids` and `labels` (text,) int64 of a row.

        A row that is skipped for its image has its number as `skipped_row`, too.
        """
        builder = self.prompt_builder_fn(model_family="cobra")
        input_ids: list[int] = []
        labels: list[int] = []
        for turn in self._conversations[int(self._places[index])]:
            # What stands beyond the cut is not tokenised: a row may have 400,000 turns.
            if len(input_ids) >= self.tokenizer.model_max_length:
                break
            ids = self._encode(builder.add_turn(turn["from"], turn["value"]))
            input_ids += ids
            labels += ids if turn["from"] == "gpt" else [IGNORE_INDEX] * len(ids)
        return self._example(input_ids, labels, index)

    def get_modality_lengths(self) -> list[tuple[bool, int]]:
        """Return (has an image, words of all turns) of every row; `<image>` counts as a word."""
        return list(zip(self.examples.has_image.tolist(), self.examples.words.tolist(), strict=True))

    def extract_reasoning_trace(self, index: int) -> list[ReasoningTrace]:
        """Return the stages of every answer of a row."""
        turns = self.examples[index]["conversations"]
        return [extract_reasoning_trace(turn["value"]) for turn in turns if turn["from"] == "gpt"]


def check_learnable(rows: Rows) -> None:
    """Raise a UserError where a row has no answer, no answer has a text, or rows ask about images and none has one."""
    for index in np.flatnonzero(rows.turns < 2)[:1].tolist():
        raise UserError(
            f"{rows.row_name(index)} has a question and no answer, so nothing can be learned from it; add a turn from "
            "'gpt', or take the row out"
        )
    if not rows.answers.any():
        raise UserError(f"every answer in {rows.annotation_file} is empty: nothing can be learned from it")
    asking = np.flatnonzero(rows.remarks & ASKS_ABOUT_IMAGE)
    if len(asking) and not rows.has_image.any():
        raise UserError(
            f"{rows.row_name(int(asking[0]))} has {PLACEHOLDER} in a question, and no row of the file has an image "
            f"under `image`; name the images' paths there, or take {PLACEHOLDER} out"
        )


def check_row_options(on_bad_image: str, truncation: str) -> None:
    """Raise a UserError where an option of a dataset has an unknown value."""
    check_known(on_bad_image, ON_BAD_IMAGE, "--dataset.on_bad_image")
    check_known(truncation, TRUNCATIONS, "--dataset.truncation")
