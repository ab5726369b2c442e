"""Choice of tokens: filters of scores, the repetition penalty, and draws that depend on a row alone, not on its batch.

A token is drawn with one number from [0, 1) by inverting the cumulated probabilities. Every row takes its numbers from
a stream of its own, seeded by its seed alone, so that a sampled answer depends on its prompt, the options and that seed
(up to rounding), and neither on its neighbours in the batch nor on when they end.
"""

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cobra.models.generation.options import GenerationOptions
from cobra.util.errors import UserError
from cobra.util.torch_utils import send

# Tokens of a row that the filters look at first: finding them among 50,280 costs a thirtieth of sorting these.
_BEST = 128
# Probabilities are summed in blocks of so many before they are cumulated.
_BLOCK = 256
# Parts of a row whose best scores are compared first: every padded vocabulary can be cut so.
_PARTS = 8
# Below this temperature the second best of two scores that differ has no share left, and fp32 would soon overflow.
_COLDEST = 1e-20
# Temperatures and penalties are taken as this at most, and penalties as its inverse at least: whatever the scores of a
# model are, the results stay within fp32, and no more of them changes what is chosen.
_LARGEST = 1e12


def best_tokens(scores: Tensor) -> Tensor:
    """Return the token with the best score (batch,) int64 of every row (batch, vocabulary), of several the first.

    As argmax does; but that looks at a score at a time, and the largest value is found many at a time: 16 rows of
    50,280 take 0.27 ms in place of 0.88.
    """
    if scores.shape[-1] % _PARTS:
        return scores.argmax(-1)
    parts = scores.unflatten(-1, (_PARTS, -1))
    part = parts.amax(-1).argmax(-1)
    inside = parts[torch.arange(len(parts), device=parts.device), part].argmax(-1)
    return part * parts.shape[-1] + inside


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Set all but the k best scores of each row (batch, vocabulary) to -inf; k = 0 keeps all."""
    if k <= 0 or k >= scores.shape[-1]:
        return scores
    return scores.masked_fill(scores < scores.topk(k).values[..., -1:], -torch.inf)


def keep_top_p(scores: Tensor, p: float, total: Tensor | None = None, descending: bool = False) -> Tensor:
    """Keep the fewest best scores whose probability reaches p, at least one (arXiv 1904.09751); others become -inf.

    Args:
        scores: (batch, vocabulary), or the best of them.
        p: 1.0 keeps all.
        total: Logarithm of the sum of the exponentials of all scores (batch, 1); None: these are all.
        descending: True where every row is in descending order; it is not looked at then.
    """
    if p >= 1.0:
        return scores
    if total is None:
        total = scores.logsumexp(-1, keepdim=True)
    ordered, order = scores, None
    if not descending and bool((scores[..., 1:] > scores[..., :-1]).any()):
        ordered, order = scores.sort(descending=True)
    probabilities = (ordered - total).exp()
    # A token is kept when the better ones together do not reach p yet.
    drop = (probabilities.cumsum(-1) - probabilities) >= p
    drop[..., 0] = False
    return scores.masked_fill(drop if order is None else drop.scatter(-1, order, drop), -torch.inf)


def keep_min_p(scores: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as probable as the best (arXiv 2407.01082); others become -inf; p = 0 keeps all."""
    if p <= 0.0:
        return scores
    floor = scores.amax(-1, keepdim=True) + math.log(p)
    return scores.masked_fill(scores < floor, -torch.inf)


def keep_likely(scores: Tensor, top_k: int, top_p: float, min_p: float) -> tuple[Tensor, Tensor]:
    """Filter (batch, vocabulary) by :func:`keep_top_k`, `keep_top_p`, then `keep_min_p`, looking at few tokens.

    Returns:
        Scores (batch, n), -inf where filtered, and the tokens (batch, n) that they are of, in ascending order: by it
        a draw depends on rounding less than by the order of the scores, in which tokens may change places.
    """
    total = None if top_k or top_p >= 1.0 else scores.logsumexp(-1, keepdim=True)
    vocabulary = scores.shape[-1]
    # One more than the k best, so that the first filter has something to drop. On a GPU all are looked at: to ask
    # whether these are enough is to wait for it.
    width = max(_BEST, top_k + 1) if scores.device.type == "cpu" else vocabulary
    while True:
        whole = width >= vocabulary
        best, tokens = scores.sort(descending=True) if whole else scores.topk(width)
        kept = keep_min_p(keep_top_p(keep_top_k(best, top_k), top_p, total, descending=True), min_p)
        # Every filter drops the worst of what there is: where it drops the last one here, it drops all that are worse.
        if whole or not kept[..., -1].isfinite().any():
            tokens, order = tokens.sort()
            return kept.gather(-1, order), tokens
        width *= 16


def penalise_repetition(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Push down tokens already seen (arXiv 1909.05858): positive scores are divided, negative ones multiplied.

    Scores are (batch, vocabulary), `seen` bool of that shape.
    """
    penalty = min(max(penalty, 1 / _LARGEST), _LARGEST)
    return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


def choose(scores: Tensor, options: GenerationOptions, seen: Tensor | None, numbers: Tensor | None = None) -> Tensor:
    """Return the next token of every row, whatever the scores of the others are.

    Args:
        scores: (batch, vocabulary), fp32. Of a row with infinite ones or NaN among them the best is taken, as argmax
            has it.
        options: How to choose. Filters come after the temperature, in the order top-k, top-p, min-p.
        seen: Tokens of prompt and answer (batch, vocabulary), bool; None where repetition is free.
        numbers: The rows' random numbers (batch,), see :func:`draw`; None takes them from the options' generator.

    Returns:
        (batch,) int64.
    """
    if seen is not None:
        scores = penalise_repetition(scores, seen, options.repetition_penalty)
    if not options.do_sample or options.temperature < _COLDEST:
        return best_tokens(scores)
    if numbers is None:
        device = scores.device if options.generator is None else options.generator.device
        numbers = torch.rand(len(scores), generator=options.generator, device=device).to(scores.device)
    scores = scores / min(options.temperature, _LARGEST)
    if not options.top_k and options.top_p == 1.0 and not options.min_p:
        return draw(scores, numbers)
    kept, tokens = keep_likely(scores, options.top_k, options.top_p, options.min_p)
    return tokens.gather(-1, draw(kept, numbers).unsqueeze(-1)).squeeze(-1)


def row_seeds(seeds: Sequence[int] | None, rows: int, generator: torch.Generator | None) -> list[str]:
    """Return the seed of every row: its own, or one of its place and a number from the generator (None is torch's).

    Raises:
        UserError: There are more or fewer seeds than rows.
    """
    if seeds is None:
        device = "cpu" if generator is None else generator.device
        base = int(torch.randint(2**62, (), generator=generator, device=device))
        return [f"{base}/{row}" for row in range(rows)]
    if len(seeds) != rows:
        raise UserError(f"there are {len(seeds)} seeds for {rows} prompts: give one for every prompt")
    return [str(seed) for seed in seeds]


def next_numbers(streams: Sequence[random.Random], device: torch.device) -> Tensor:
    """Take the next number of every stream: (rows,) fp64 (fp32 on mps) in [0, 1)."""
    dtype = _exact(device)
    # The largest of them are 1 when they are rounded to fp32.
    numbers = torch.tensor([stream.random() for stream in streams], dtype=dtype).clamp(max=1 - torch.finfo(dtype).eps)
    return send(numbers, device)


def draw(scores: Tensor, numbers: Tensor) -> Tensor:
    """Draw an entry (batch,) int64 of every row with probabilities softmax(scores), by inversion.

    Args:
        scores: (batch, n), fp32; -inf is never drawn. A row without probabilities, of an infinite score or NaN, gets
            what argmax has.
        numbers: (batch,) in [0, 1): the share of the probability, in the order of the entries, to go past.
    """
    # In two steps: to cumulate 50,280 numbers in fp64 takes eight times as long.
    probabilities = scores.softmax(-1)
    blocks = F.pad(probabilities, (0, -scores.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    sums = blocks.sum(-1, dtype=_exact(scores.device))
    block, share = _invert(sums, numbers)
    entry, _ = _invert(blocks[torch.arange(len(blocks), device=blocks.device), block].to(sums.dtype), share)
    drawn = block * _BLOCK + entry
    # The softmax of such a row is NaN throughout.
    lost = sums[:, 0].isnan()
    # Not on a GPU: to ask whether there are any is to wait for it.
    if scores.device.type == "cpu" and not lost.any():
        return drawn
    return torch.where(lost, scores.argmax(-1), drawn)


def _invert(weights: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the entry of each row in which a share of the weights (batch, n) ends, and the share of it that is left.

    Entries of weight 0 are never returned; the share is in [0, 1) too.
    """
    cumulated = weights.cumsum(-1)
    goals = numbers.to(cumulated.dtype).unsqueeze(-1) * cumulated[..., -1:]
    entry = torch.searchsorted(cumulated, goals, right=True).clamp(max=weights.shape[-1] - 1)
    weight = weights.gather(-1, entry)
    share = (goals - cumulated.gather(-1, entry) + weight) / weight
    # Rounding may leave a share just outside.
    return entry.squeeze(-1), share.squeeze(-1).clamp(0, 1 - torch.finfo(share.dtype).eps)


def _exact(device: torch.device) -> torch.dtype:
    """Fp64 where the device has it: of small shares summed in fp32 the last digits would decide."""
    return torch.float32 if device.type == "mps" else torch.float64
