"""SplitModalitySampler: every epoch is complete, of one modality a batch, and shared out exactly."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.errors import UserError

LENGTHS = st.lists(st.tuples(st.booleans(), st.integers(0, 500)), min_size=1, max_size=70)


def sampler(lengths, batch, world=1, rank=0, seed=7, **options):
    return SplitModalitySampler(range(len(lengths)), lengths, batch, world, rank, seed, **options)


def shares(lengths, batch, world, epoch=0, **options):
    """The indices of every rank in an epoch."""
    lists = []
    for rank in range(world):
        one = sampler(lengths, batch, world, rank, **options)
        one.set_epoch(epoch)
        lists.append(list(one))
        assert len(one) == len(lists[-1])
    return lists


def batch_sets(batches):
    return [sorted(batch) for batch in batches]


@given(lengths=LENGTHS, size=st.integers(1, 12), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_row_is_in_the_epoch_and_every_batch_is_full_and_of_one_modality(lengths, size, seed, epoch):
    batches = sampler(lengths, size, seed=seed).global_batches(epoch)
    assert {row for batch in batches for row in batch} == set(range(len(lengths)))
    for batch in batches:
        assert len(batch) == size
        assert len({lengths[row][0] for row in batch}) == 1
    # Rows are repeated only to fill the last batch of each modality.
    for has_image in (True, False):
        rows = sum(kind == has_image for kind, _ in lengths)
        drawn = sum(lengths[batch[0]][0] == has_image for batch in batches) * size
        assert drawn == -(-rows // size) * size


@given(lengths=LENGTHS, share=st.integers(1, 4), epoch=st.integers(0, 2))
def test_ranks_partition_the_same_global_batches_whatever_their_number(lengths, share, epoch):
    size = 12 * share
    expected = batch_sets(sampler(lengths, size).global_batches(epoch))
    for world in (1, 2, 3, 4):
        lists = shares(lengths, size, world, epoch)
        part = size // world
        assert {len(indices) for indices in lists} == {len(expected) * part}
        joined = [
            sorted(row for indices in lists for row in indices[place * part : (place + 1) * part])
            for place in range(len(expected))
        ]
        assert joined == expected


@given(lengths=LENGTHS, world=st.sampled_from([2, 3, 4]))
def test_lengths_are_balanced_over_the_ranks(lengths, world):
    """Dealing the longest first keeps two ranks' sums within the longest row of their batch."""
    for batch in sampler(lengths, 12, world).global_batches(0):
        share = 12 // world
        parts = [batch[start : start + share] for start in range(0, 12, share)]
        sums = [sum(lengths[row][1] for row in part) for part in parts]
        assert max(sums) - min(sums) <= max(lengths[row][1] for row in batch)
        for part in parts:
            assert [lengths[row][1] for row in part] == sorted((lengths[row][1] for row in part), reverse=True)


def test_a_row_goes_to_the_rank_with_the_least_so_far():
    lengths = [(True, length) for length in (100, 50, 40, 30)]
    assert shares(lengths, 4, 2) == [[0, 3], [1, 2]]


@given(lengths=LENGTHS, size=st.integers(1, 12))
def test_the_batch_with_the_longest_row_comes_first(lengths, size):
    """An image counts for 576 patches, so that the most memory is needed in the first step."""
    first = sampler(lengths, size).global_batches(0)[0]
    counted = [length + 576 * has_image for has_image, length in lengths]
    assert max(counted) in [counted[row] for row in first]


@given(lengths=LENGTHS, size=st.integers(1, 12))
def test_drop_last_leaves_out_only_short_batches(lengths, size):
    images = sum(has_image for has_image, _ in lengths)
    full = images // size + (len(lengths) - images) // size
    if not full:
        with pytest.raises(UserError, match="drop_last"):
            sampler(lengths, size, drop_last=True)
        return
    one = sampler(lengths, size, drop_last=True)
    rows = [row for batch in one.global_batches(0) for row in batch]
    assert len(rows) == len(set(rows)) == full * size == len(one)


def test_order_depends_on_seed_and_epoch_alone():
    lengths = [(index % 5 != 0, index) for index in range(60)]
    one = sampler(lengths, 8)
    first = list(one)
    torch.manual_seed(123)
    assert list(one) == first
    one.set_epoch(1)
    assert list(one) != first
    assert list(sampler(lengths, 8, seed=8)) == list(one), "seed + epoch is what seeds the order, as in Cobra"
    assert [row for batch in one.global_batches(0) for row in batch] == first


@pytest.mark.parametrize("world", [1, 2])
def test_a_modality_smaller_than_a_batch_is_cycled(world):
    """Three images fill a batch of eight as 3 + 3 + 2; Cobra crashes on fewer than half a batch."""
    lengths = [(index < 3, 5) for index in range(11)]
    batches = sampler(lengths, 8, world).global_batches(0)
    images = next(batch for batch in batches if batch[0] < 3)
    assert sorted(images.count(row) for row in range(3)) == [2, 3, 3]


def test_text_only_data_is_fine():
    assert sorted(sampler([(False, 3)] * 6, 3)) == list(range(6))


def test_without_torch_distributed_there_is_one_process():
    one = SplitModalitySampler(None, [(True, 3)] * 4, 2)
    assert (one.num_replicas, one.rank) == (1, 0)


def test_replicas_and_rank_come_from_torch_distributed(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 3)
    one = SplitModalitySampler(None, [(True, 3)] * 4, 8)
    assert (one.num_replicas, one.rank, len(one)) == (4, 3, 2)


@pytest.mark.parametrize(
    ("lengths", "size", "world", "rank", "expected"),
    [
        ([], 4, 1, 0, "no rows"),
        ([(True, 1)], 128, 3, 0, "128 .*3 processes: use 126 or 129"),
        ([(True, 1)], 2, 4, 0, "use 4"),
        ([(True, 1)], 0, 1, 0, "use 1"),
        ([(True, 1)], 4, 2, 2, "rank 2"),
    ],
)
def test_what_cannot_work_says_what_would(lengths, size, world, rank, expected):
    with pytest.raises(UserError, match=expected):
        SplitModalitySampler(None, lengths, size, world, rank)


def test_a_hundred_thousand_rows_are_ordered_in_seconds():
    lengths = [(index % 20 != 0, index * 7919 % 900) for index in range(100_000)]
    start = time.perf_counter()
    assert len(sampler(lengths, 128, 8).global_batches(0)) == -(-95_000 // 128) + -(-5_000 // 128)
    # 0.3 s on an idle core; a quadratic step would take minutes.
    assert time.perf_counter() - start < 20
