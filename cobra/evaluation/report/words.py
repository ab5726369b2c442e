"""Words by which screen and page speak of a task: what is asked about, and what is scored."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """Nouns and a verb of a task; those of a task that gives none are general."""

    title: str = "Answers about"
    """Beginning of the title; a number of images or questions follows."""
    verb: str = "was asked about"
    """Deed of a model, with images or questions as its object."""
    asked: str = "image"
    """One of what models are asked about."""
    answer: str = "answer"
    """One of what is scored."""
    reference: str = "reference"
    """Adjective of what is compared with, and its name beside the variants."""

    def count(self, n: int) -> str:
        """Return `1 image`, `5,000 images`."""
        return f"{n:,} {self.asked}{'s' * (n != 1)}"

    def heading(self, n: int) -> str:
        """Return `Captions of 60 images`."""
        return f"{self.title} {self.count(n)}"


CAPTION_WORDS = Words("Captions of", "captioned", "image", "caption", "human")
CONCLUSION_WORDS = Words("Conclusions on", "answered", "question", "conclusion", "right")


def join(parts: Sequence[str], last: str = "and") -> str:
    """Return `a`, `a and b` or `a, b and c`."""
    return f" {last} ".join([", ".join(parts[:-1])] * (len(parts) > 1) + [*parts[-1:]])
