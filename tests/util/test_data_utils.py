"""Collated batches: padding, images, and rows without images."""

import pytest
import torch

from cobra.util.data_utils import IGNORE_INDEX, PaddedCollatorForLanguageModeling
from cobra.util.errors import UserError

PAD = 1
RESOLUTION = (3, 4, 4)


def row(ids, pixel_values=None, **extra):
    ids = torch.tensor(ids, dtype=torch.long)
    return {"pixel_values": pixel_values, "input_ids": ids, "labels": ids.clone(), **extra}


def collator(max_length=8, **options):
    return PaddedCollatorForLanguageModeling(max_length, PAD, RESOLUTION, **options)


def test_pads_on_the_right_with_ignored_labels():
    batch = collator()([row([5, 6, 7]), row([8])])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch["attention_mask"].tolist() == [[True, True, True], [True, False, False]]
    assert batch["attention_mask"].dtype == torch.bool
    assert batch["input_ids"].dtype == batch["labels"].dtype == batch["multimodal_indices"].dtype == torch.long


def test_long_rows_are_cut_on_the_right():
    batch = collator(max_length=2)([row([5, 6, 7]), row([8])])
    assert batch["input_ids"].tolist() == [[5, 6], [8, PAD]]
    assert batch["labels"].tolist() == [[5, 6], [8, IGNORE_INDEX]]
    assert batch["attention_mask"].tolist() == [[True, True], [True, False]]


def test_a_single_tower_gives_a_tensor_with_zeros_for_text_rows():
    pixels = torch.ones(RESOLUTION)
    batch = collator()([row([5]), row([6], pixels), row([7], 2 * pixels)])
    assert batch["multimodal_indices"].tolist() == [1, 2]
    assert batch["pixel_values"].shape == (3, *RESOLUTION)
    assert batch["pixel_values"].flatten(1).mean(1).tolist() == [0, 1, 2]


def test_fused_towers_give_a_dict_whose_towers_may_differ_in_size():
    pixels = {"dino": torch.ones(3, 4, 4), "siglip": torch.full((3, 6, 6), 2.0)}
    batch = collator()([row([5], pixels), row([6])])
    assert list(batch["pixel_values"]) == ["dino", "siglip"]
    assert batch["pixel_values"]["siglip"].shape == (2, 3, 6, 6)
    assert batch["pixel_values"]["dino"].flatten(1).mean(1).tolist() == [1, 0]
    assert batch["pixel_values"]["siglip"].flatten(1).mean(1).tolist() == [2, 0]


def test_text_only_gives_one_plain_blank_of_the_dtype_asked_for():
    batch = collator(pixel_values_dtype=torch.bfloat16)([row([5]), row([6])])
    assert batch["multimodal_indices"].tolist() == []
    assert batch["multimodal_indices"].dtype == torch.long
    assert batch["pixel_values"].shape == (2, *RESOLUTION)
    assert batch["pixel_values"].dtype == torch.bfloat16
    assert not batch["pixel_values"].any()


def test_further_keys_of_rows_are_left_out():
    batch = collator()([row([5], index=3)])
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels", "multimodal_indices"}


def test_padding_on_the_left_is_refused_with_the_reason():
    with pytest.raises(UserError, match=r"'left'.*'right'.*padding on the left"):
        collator(padding_side="left")


def test_numbers_of_skipped_rows_are_there_only_where_there_are_some():
    batch = collator()([row([5], skipped_row=7), row([6]), row([8], skipped_row=3)])
    assert batch["skipped_rows"].tolist() == [7, 3]
    assert "skipped_rows" not in collator()([row([5])])
