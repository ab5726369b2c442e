"""Choosing tokens from scores: filters, the repetition penalty, and draws that belong to a row whatever its batch.

A token is drawn with one number from [0, 1) by inverting the cumulated probabilities. Every row takes its numbers from
a stream of its own, seeded by its seed alone, so that a sampled answer depends on its prompt, the options and that seed
(up to rounding), and neither on its neighbours in the batch nor on when they end.
"""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from cobra.util.errors import UserError

# Tokens among which the most probable share is looked for before all are sorted: finding them in 50,280 costs a
# twentieth of sorting these, and all but the flattest distributions have nine tenths of their probability in them.
_BEST = 256


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Set all but the k best scores of each row (batch, vocabulary) to -inf; k = 0 keeps all."""
    if k <= 0 or k >= scores.shape[-1]:
        return scores
    return scores.masked_fill(scores < scores.topk(k).values[..., -1:], -torch.inf)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Keep the smallest set of best scores whose probability reaches p, at least one; others become -inf.

    Nucleus sampling (arXiv 1904.09751). Scores are (batch, vocabulary).
    """
    if p >= 1.0:
        return scores
    total = scores.logsumexp(-1, keepdim=True)
    best, order = scores.topk(min(_BEST, scores.shape[-1]))
    before = _probability_before(best, total)
    if best.shape[-1] < scores.shape[-1] and bool((before[..., -1] < p).any()):
        best, order = scores.sort(descending=True)
        before = _probability_before(best, total)
    # A token is kept when the better ones together do not reach p yet.
    keep = before < p
    keep[..., 0] = True
    return scores.masked_fill(~torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, keep), -torch.inf)


def _probability_before(best: Tensor, total: Tensor) -> Tensor:
    probabilities = (best - total).exp()
    return probabilities.cumsum(-1) - probabilities


def keep_min_p(scores: Tensor, p: float) -> Tensor:
    """Keep the tokens that are at least p times as probable as the best one; others become -inf.

    Min-p sampling (arXiv 2407.01082). Scores are (batch, vocabulary); p = 0 keeps all.
    """
    if p <= 0.0:
        return scores
    floor = scores.amax(-1, keepdim=True) + math.log(p)
    return scores.masked_fill(scores < floor, -torch.inf)


def penalise_repetition(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Push down tokens already seen (arXiv 1909.05858): positive scores are divided, negative ones multiplied.

    Args:
        scores: (batch, vocabulary).
        seen: Bool of the same shape.
        penalty: 1.0 changes nothing.
    """
    return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


def row_seeds(seeds: Sequence[int] | None, rows: int, generator: torch.Generator | None) -> list[str]:
    """Return the seed of every row.

    Args:
        seeds: One for each row. None: a number is taken from the generator, and a row's seed is made of it and of its
            place.
        rows: Their count.
        generator: None is torch's own; not touched where there are seeds.

    Raises:
        UserError: There are more or fewer seeds than rows.
    """
    if seeds is None:
        base = draw_seed(generator)
        return [f"{base}/{row}" for row in range(rows)]
    if len(seeds) != rows:
        raise UserError(f"there are {len(seeds)} seeds for {rows} prompts: give one for every prompt")
    return [str(seed) for seed in seeds]


def draw_seed(generator: torch.Generator | None) -> int:
    """Take a whole number from a generator; None is torch's own."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def next_numbers(streams: Sequence[random.Random], device: torch.device) -> Tensor:
    """Take the next number of every stream: (rows,) fp64 (fp32 on mps) in [0, 1)."""
    return torch.tensor([stream.random() for stream in streams], dtype=_exact(device)).to(device)


def draw(scores: Tensor, numbers: Tensor) -> Tensor:
    """Draw a token (batch,) int64 of every row with probabilities softmax(scores), by inversion.

    Args:
        scores: (batch, vocabulary); -inf is never drawn.
        numbers: (batch,) in [0, 1): the share of the probability, in the order of the vocabulary, to go past.
    """
    # The sum is not exactly 1: a number beyond the last token's share would draw one that was filtered out.
    cumulated = scores.softmax(-1, dtype=_exact(scores.device)).cumsum(-1)
    goals = numbers.to(cumulated.dtype).unsqueeze(-1) * cumulated[..., -1:]
    return torch.searchsorted(cumulated, goals, right=True).squeeze(-1).clamp(max=scores.shape[-1] - 1)


def _exact(device: torch.device) -> torch.dtype:
    """Fp64 where the device has it: of 50,280 small shares summed in fp32 the last digits would decide."""
    return torch.float32 if device.type == "mps" else torch.float64
