"""The loss on held-out rows: a token-weighted mean, the same however the rows are spread, and no trace left."""

import pytest
import torch
from scratch import scratch_vlm

from cobra.training.validation import Validation, evaluation_mode
from cobra.util.data_utils import IGNORE_INDEX, PaddedCollatorForLanguageModeling
from cobra.util.distributed import World

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def vlm():
    return scratch_vlm()


@pytest.fixture(scope="module")
def rows(vlm):
    """Seven rows of uneven lengths, two of them of text only, one without a label."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number, length in enumerate((5, 9, 3, 12, 7, 4, 6)):
        ids = torch.randint(5, 700, (length,), generator=generator)
        labels = ids.clone()
        labels[: length // 2 if number != 5 else length] = IGNORE_INDEX
        towers = {name: torch.randn(3, 48, 48, generator=generator) for name in vlm.vision_backbone.tower_names}
        made.append({"input_ids": ids, "labels": labels, "pixel_values": None if number in (2, 4) else towers})
    return made


def validation(rows, size):
    collator = PaddedCollatorForLanguageModeling(2048, 1, (3, 48, 48))
    lengths = [(row["pixel_values"] is not None, len(row["input_ids"])) for row in rows]
    return Validation(rows, collator, lengths, size)


def loss(vlm, rows, size):
    with evaluation_mode(vlm):
        return validation(rows, size).loss(vlm, CPU, False)


@pytest.fixture(scope="module")
def by_hand(vlm, rows):
    """The sum of the losses and the count of the labels, row by row."""
    total, tokens = 0.0, 0
    collator = PaddedCollatorForLanguageModeling(2048, 1, (3, 48, 48))
    for row in rows:
        with torch.no_grad():
            total += vlm(**collator([row]), loss_reduction="sum").loss.item()
        labelled = row["labels"] != IGNORE_INDEX
        tokens += int(labelled.sum()) - (int(labelled[0]) if row["pixel_values"] is None else 0)
    return total, tokens


@pytest.mark.parametrize("size", [1, 2, 16])
def test_loss_is_the_mean_over_all_labelled_tokens(vlm, rows, by_hand, size):
    total, tokens = by_hand
    assert loss(vlm, rows, size) == pytest.approx(total / tokens, rel=1e-6)


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_have_as_many_passes_and_every_row_once(rows, processes):
    plan = validation(rows, 1)
    shares = [plan._passes(World(rank, processes, torch.device("cpu"))) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    for passes in zip(*shares, strict=True):
        # One modality at a time: a tower runs on all processes or on none.
        kinds = {rows[row]["pixel_values"] is None for own, _ in passes for row in own}
        assert len(kinds) == 1
    counted = [row for share in shares for own, counts in share if counts for row in own]
    assert sorted(counted) == list(range(7))


def test_rows_that_fill_up_do_not_count(rows):
    batch = validation(rows, 1)._batch(([0], False))
    assert (batch["labels"] == IGNORE_INDEX).all()


def test_model_is_left_as_it_was(vlm, rows):
    before = {name: value.clone() for name, value in vlm.state_dict().items()}
    vlm.train()
    loss(vlm, rows, 2)
    assert vlm.training and all(parameter.grad is None for parameter in vlm.parameters())
    assert all(torch.equal(before[name], value) for name, value in vlm.state_dict().items())


def test_no_label_at_all_is_no_loss(vlm, rows):
    assert loss(vlm, [rows[5]], 1) == 0.0
