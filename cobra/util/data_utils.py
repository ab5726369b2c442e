"""Collate rows into batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cobra.util.errors import UserError

IGNORE_INDEX = -100
"""Label of tokens that no loss is taken of."""
SKIPPED_ROW = "skipped_row"
"""Key of a row's own number, in rows that are skipped for a bad image."""
SKIPPED_ROWS = "skipped_rows"
"""Key of those numbers in a batch."""


@dataclass
class PaddedCollatorForLanguageModeling:
    """Pads rows on the right and stacks them; a row has at most one image (:mod:`cobra.models.vlms.cobra`).

    Attributes:
        model_max_length: Longest text in tokens; longer rows are cut on the right.
        pad_token_id: Fills short rows.
        default_image_resolution: (3, height, width), the shape of the blank picture of a batch of text only.
        padding_side: `right`; the model reads from left to right and would take padding on the left for text.
        pixel_values_dtype: Dtype of blank pictures.
        row_fields: Keys of further numbers in the rows, which the batch then has too.
    """

    model_max_length: int
    pad_token_id: int
    default_image_resolution: tuple[int, int, int]
    padding_side: str = "right"
    pixel_values_dtype: torch.dtype = torch.float32
    row_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.padding_side != "right":
            raise UserError(
                f"padding_side is {self.padding_side!r}: only 'right' is possible in training, because a Mamba model "
                "reads padding on the left as text"
            )

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Each with `input_ids` and `labels` (text,) int64, and `pixel_values`: a tensor, a dict of them by
                tower, or None for a row of text only; and `skipped_row`, a row's number, where it is skipped.

        Returns:
            `input_ids`, `labels` (batch, text) int64; `attention_mask` of the same shape, bool; `multimodal_indices`
            (n,) int64, the rows with an image; `pixel_values` (batch, 3, height, width), by tower where there are
            several, with zeros in rows of text only. A batch of text only has one plain tensor of zeros. Where rows
            are skipped, `skipped_rows` (n,) int64 are their numbers; else the key is absent. Each of `row_fields` is
            (batch,) float32.
        """
        ids = [row["input_ids"] for row in rows]
        input_ids = pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id)
        labels = pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORE_INDEX)
        input_ids, labels = input_ids[:, : self.model_max_length], labels[:, : self.model_max_length]
        with_image = [index for index, row in enumerate(rows) if row["pixel_values"] is not None]
        batch = {
            "pixel_values": self._stack([row["pixel_values"] for row in rows], with_image),
            "input_ids": input_ids,
            "attention_mask": input_ids.ne(self.pad_token_id),
            "labels": labels,
            "multimodal_indices": torch.tensor(with_image, dtype=torch.long),
        }
        for name in self.row_fields:
            batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        skipped = [row[SKIPPED_ROW] for row in rows if SKIPPED_ROW in row]
        return {**batch, SKIPPED_ROWS: torch.tensor(skipped, dtype=torch.long)} if skipped else batch

    def _stack(self, pixels: list[Any], with_image: list[int]) -> Tensor | dict[str, Tensor]:
        if not with_image:
            return torch.zeros(len(pixels), *self.default_image_resolution, dtype=self.pixel_values_dtype)
        example = pixels[with_image[0]]
        if isinstance(example, dict):
            return {name: _fill([value and value[name] for value in pixels], example[name]) for name in example}
        return _fill(pixels, example)


def _fill(pixels: list[Tensor | None], example: Tensor) -> Tensor:
    """Stack pictures, with zeros in place of those that are None."""
    blank = torch.zeros_like(example)
    return torch.stack([blank if value is None else value for value in pixels])
