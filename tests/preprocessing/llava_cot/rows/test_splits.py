"""Drawing rows and holding them out: seeded, in proportion, split by image."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobra.preprocessing.llava_cot.rows.scan import Scan
from cobra.preprocessing.llava_cot.rows.splits import draw_rows, hold_out, holdout_size, proportional
from cobra.util.errors import UserError


def scan_of(sources: list[int], images: list[int], seed: int = 0) -> Scan:
    count = len(sources)
    lines = np.arange(1, count + 1)
    return Scan(
        lines,
        np.array(sources, np.int32),
        np.array(images, np.int32),
        np.random.default_rng(seed).permutation(count).astype(np.uint64),
        lines,
        np.zeros(count, bool),
        [f"s{number}" for number in range(max(sources, default=-1) + 1)],
        [f"{number}.png" for number in range(max(images, default=-1) + 1)],
    )


@given(st.lists(st.integers(0, 10**6), max_size=12), st.integers(0, 10**7))
def test_shares_add_up_and_are_in_proportion(counts, total):
    counts = np.array(counts, np.int64)
    shares = proportional(counts, total)
    assert shares.sum() == min(total, counts.sum())
    assert (shares <= counts).all() and (shares >= 0).all()
    exact = counts * min(total, counts.sum()) / max(counts.sum(), 1)
    assert (np.abs(shares - exact) < 1 + 1e-6).all()


rows = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 8)), min_size=1, max_size=60)


@settings(deadline=None)
@given(rows, st.integers(1, 70), st.sets(st.integers(-1, 8)), st.integers(0, 3))
def test_drawn_rows_are_usable_and_as_many_as_there_can_be(pairs, count, bad_images, seed):
    sources, images = zip(*pairs, strict=True)
    scan = scan_of(list(sources), list(images), seed)
    asked: list[int] = []

    def check(batch):
        asked.extend(batch.tolist())
        return ~np.isin(scan.images[batch], list(bad_images))

    candidates = np.arange(len(pairs))
    drawn = draw_rows(scan, candidates, count, check)
    assert (np.diff(drawn) > 0).all()
    assert len(asked) == len(set(asked)), "a row was checked twice"
    usable = Counter(source for source, image in pairs if image not in bad_images)
    quota = proportional(np.bincount(scan.sources, minlength=len(scan.source_names)), count)
    assert Counter(scan.sources[drawn].tolist()) == Counter(
        {source: min(int(quota[source]), usable[source]) for source in range(len(quota))}
    )


def test_only_as_many_rows_are_checked_as_are_drawn():
    scan = scan_of([0] * 1000, list(range(1000)))
    asked: list[int] = []
    draw_rows(scan, np.arange(1000), 10, lambda batch: asked.extend(batch.tolist()) or np.ones(len(batch), bool))
    assert len(asked) == 10


@settings(deadline=None)
@given(rows, st.integers(0, 40), st.integers(0, 3))
def test_no_group_is_in_both_parts(pairs, count, seed):
    sources, groups = (np.array(column) for column in zip(*pairs, strict=True))
    scan = scan_of(sources.tolist(), [0] * len(pairs), seed)
    # Text-only rows are groups of their own.
    groups = np.where(groups < 0, -1 - np.arange(len(pairs)), groups)
    held_out = hold_out(scan, np.arange(len(pairs)), groups, count)
    assert not set(groups[held_out].tolist()) & set(groups[~held_out].tolist())
    assert held_out.sum() <= count
    open_places = count - held_out.sum()
    if open_places and not held_out.all():
        smallest = min(Counter(groups[~held_out].tolist()).values())
        assert smallest > open_places, "another group would have fitted"


def test_held_out_rows_follow_the_sources_and_the_seed():
    sources = [0] * 600 + [1] * 300 + [2] * 100
    rows = np.arange(1000)
    first = hold_out(scan_of(sources, [0] * 1000, seed=1), rows, rows, 100)
    assert np.bincount(np.array(sources)[first]).tolist() == [60, 30, 10]
    assert (first == hold_out(scan_of(sources, [0] * 1000, seed=1), rows, rows, 100)).all()
    assert (first != hold_out(scan_of(sources, [0] * 1000, seed=2), rows, rows, 100)).any()


@pytest.mark.parametrize(
    ("requested", "there", "expected"),
    [(None, 99_000, 1000), (None, 20_000, 1000), (None, 19_999, 200), (None, 12, 0), (0, 5, 0), (4, 5, 4)],
)
def test_size_of_the_holdout(requested, there, expected):
    assert holdout_size(requested, there) == expected


def test_holdout_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match="--holdout 5 leaves nothing of 5 usable rows"):
        holdout_size(5, 5)
