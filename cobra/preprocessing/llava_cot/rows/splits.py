"""Select the rows to keep, and hold some out: seeded, in proportion to the sources, and split by image.

Every draw takes the rows with the lowest of their numbers (`Scan.draws`), so it depends on seed and rows alone.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cobra.preprocessing.llava_cot.rows.scan import Scan
from cobra.util.errors import UserError

# Below this many rows a hundredth of them is held out, else HOLDOUT.
SMALL = 20_000
HOLDOUT = 1_000

Indices = NDArray[np.int64]


def proportional(counts: Indices, total: int) -> Indices:
    """Divide `total`, or all there are if they are fewer, in proportion to `counts` by the largest remainders."""
    available = int(counts.sum())
    total = min(total, available)
    shares, remainders = np.divmod(counts * total, max(available, 1))
    most = np.argsort(-remainders, kind="stable")[: total - int(shares.sum())]
    shares[most] += 1
    return shares


def draw_rows(scan: Scan, candidates: Indices, count: int, check: Callable[[Indices], NDArray[np.bool_]]) -> Indices:
    """Draw usable rows, of every source in proportion to its candidates.

    Args:
        scan: The rows.
        candidates: Rows to draw from.
        count: Rows to draw; fewer come where a source has not enough usable ones.
        check: Returns which of some rows are usable; called only with rows that are drawn.

    Returns:
        The drawn rows, ascending.
    """
    sources = scan.sources[candidates]
    left = proportional(np.bincount(sources, minlength=len(scan.source_names)), count)
    order = candidates[np.argsort(scan.draws[candidates], kind="stable")]
    queues = [order[scan.sources[order] == source] for source in range(len(scan.source_names))]
    taken: list[Indices] = [candidates[:0]]
    while True:
        drawn = [queue[:number] for queue, number in zip(queues, left, strict=True)]
        queues = [queue[number:] for queue, number in zip(queues, left, strict=True)]
        batch = np.concatenate([candidates[:0], *drawn])
        if not len(batch):
            return np.sort(np.concatenate(taken))
        usable = batch[check(batch)]
        left = left - np.bincount(scan.sources[usable], minlength=len(left))
        taken.append(usable)


def holdout_size(requested: int | None, rows: int) -> int:
    """Return how many of `rows` usable rows are held out: by default 1,000, of fewer than 20,000 rows 1 %.

    Raises:
        UserError: As many or more rows are requested than there are.
    """
    if requested is None:
        return HOLDOUT if rows >= SMALL else round(rows / 100)
    if requested and requested >= rows:
        raise UserError(f"--holdout {requested} leaves nothing of {rows} usable rows to train on: ask for fewer")
    return requested


def hold_out(scan: Scan, rows: Indices, groups: Indices, count: int) -> NDArray[np.bool_]:
    """Choose the held-out rows, of every source in proportion; rows of one group are held out together or not at all.

    Args:
        scan: All rows.
        rows: The usable ones.
        groups: (rows,) a number for each: rows with the same image have the same one.
        count: Rows to hold out; a few less come where groups do not add up to it.

    Returns:
        (rows,) which of `rows` are held out.
    """
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    # A group is drawn by the lowest number of its rows, and counts for the source of that row.
    order = np.argsort(scan.draws[rows], kind="stable")
    leaders = order[np.unique(members[order], return_index=True)[1]]
    sources = scan.sources[rows[leaders]]
    left = proportional(np.bincount(scan.sources[rows], minlength=len(scan.source_names)), count)
    by_draw = np.argsort(scan.draws[rows[leaders]], kind="stable")
    chosen = np.zeros(len(sizes), bool)
    for group in by_draw:
        if sizes[group] <= left[sources[group]]:
            chosen[group] = True
            left[sources[group]] -= sizes[group]
    # What the sizes of groups have left open is filled from any source.
    open_places = int(left.sum())
    for group in by_draw:
        if not chosen[group] and sizes[group] <= open_places:
            chosen[group] = True
            open_places -= int(sizes[group])
    return chosen[members]
