"""N-grams of a caption, n = 1 to 4, that BLEU and CIDEr count."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

ORDER = 4

Counts = Counter[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Ngrams:
    """A caption as BLEU and CIDEr see it."""

    length: int
    """Tokens."""
    counts: Counts
    """How often each n-gram occurs; its length is n."""


def count_ngrams(tokens: Sequence[str]) -> Ngrams:
    """Count the n-grams of a caption.

    A token may hold a no-break space (`22 3/4`, telephone numbers, tags): coco-caption's BLEU and CIDEr, though not its
    ROUGE-L, take that for two tokens, and so does this.
    """
    words = " ".join(tokens).split()
    starts = [words[n:] for n in range(ORDER)]
    return Ngrams(len(words), Counter(chain.from_iterable(zip(*starts[: n + 1], strict=False) for n in range(ORDER))))
