"""Time of scoring captions without Java, against pycocoevalcap in the same run.

5,000 images with five references each are made up from the golden set's 600. Scored are BLEU, ROUGE-L and CIDEr-D:
from the raw text (pycocoevalcap's tokeniser needs Java) and from tokens (its scorers do not). Intervals and p-values of
four variants, which the peer has none of, are stated apart.
"""

import importlib.util
import json
import random
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Row, finish, median_seconds

from cobra.evaluation.metrics.base import MeanMetric, count_ngrams, value
from cobra.evaluation.metrics.bleu import BleuReferences, bleu_metrics
from cobra.evaluation.metrics.cider import CiderD
from cobra.evaluation.metrics.ptb_tokenizer import tokenize
from cobra.evaluation.metrics.rouge import rouge_l
from cobra.evaluation.metrics.significance import REPLICATES, compare_all, estimate_all
from cobra.util import cli

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "captions.json"
REFERENCES = 5
VARIANTS = 4
NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")

Texts = list[str]
Tokens = list[list[str]]


@dataclass
class CaptionMetricsBenchmark:
    """Measure how fast captions are scored, and compare the scores."""

    images: int = 5000
    """Images to make up."""
    repeats: int = 3
    """Timed rounds."""


def make_captions(count: int) -> tuple[list[Texts], list[Texts]]:
    """Make up images from the golden ones.

    Returns:
        Captions of each variant, and the references of each image. An image has the five human captions of a golden
        one, of which two words are those of any other image; a variant's caption is one more of that kind.
    """
    rng = random.Random(7)
    known = [
        [row["hypothesis"], *row["references"]] for row in json.loads(GOLDEN.read_text(encoding="utf-8"))["images"]
    ]
    words = [word for own in known for text in own for word in text.split()]

    def changed(text: str) -> str:
        parts = text.split()
        for _ in range(2):
            parts[rng.randrange(len(parts))] = rng.choice(words)
        # pycocoevalcap reads on from an initial at a caption's end to the next caption.
        return " ".join(parts).rstrip(".")

    images = [known[index % len(known)] for index in range(count)]
    references = [[changed(own[place % len(own)]) for place in range(REFERENCES)] for own in images]
    return [[changed(rng.choice(own)) for own in images] for _ in range(VARIANTS)], references


def score_tokens(captions: Tokens, references: Sequence[Tokens]) -> dict[str, Any]:
    """Return our metrics of tokens, by name."""
    ngrams = [[count_ngrams(tokens) for tokens in own] for own in references]
    own_ngrams = [count_ngrams(tokens) for tokens in captions]
    metrics = bleu_metrics(BleuReferences(ngrams).count(own_ngrams))
    others = [MeanMetric(rouge_l(captions, references)), MeanMetric(CiderD(ngrams).score(own_ngrams))]
    return dict(zip(NAMES, [*metrics.values(), *others], strict=True))


def score_text(captions: Texts, references: Sequence[Texts]) -> dict[str, Any]:
    """Return our metrics of raw text, by name."""
    return score_tokens([tokenize(text) for text in captions], [[tokenize(text) for text in own] for own in references])


def peer_tokens(captions: Mapping[int, Texts], references: Mapping[int, Texts]) -> dict[str, float]:
    """Return the scores of pycocoevalcap's classes for token strings, by name."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(references, captions, verbose=0)
    others = [scorer.compute_score(references, captions)[0] for scorer in (Rouge(), Cider())]
    return {name: float(score) for name, score in zip(NAMES, [*bleu, *others], strict=True)}


def peer_text(captions: Texts, references: Sequence[Texts]) -> dict[str, float]:
    """Return pycocoevalcap's scores of raw text, tokenised by its Java program."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    cut = tokenizer.tokenize({index: [{"caption": text}] for index, text in enumerate(captions)})
    return peer_tokens(
        cut, tokenizer.tokenize({index: [{"caption": text} for text in own] for index, own in enumerate(references)})
    )


def largest_difference(ours: Mapping[str, Any], theirs: Mapping[str, float]) -> float:
    """Return the largest difference between scores, x100."""
    return max(100 * abs(value(ours[name]) - theirs[name]) for name in NAMES)


def peer_figures(captions: Texts, references: Sequence[Texts], repeats: int) -> list[Row]:
    """Compare with pycocoevalcap as far as it runs here."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        print("pycocoevalcap is not compared with: pip install 'cobra-vlm[java]'", file=sys.stderr)
        return []
    tokens, others = [tokenize(text) for text in captions], [[tokenize(text) for text in own] for own in references]
    texts = {index: [" ".join(own)] for index, own in enumerate(tokens)}
    other_texts = {index: [" ".join(text) for text in own] for index, own in enumerate(others)}
    functions = {
        "ours": lambda: score_tokens(tokens, others),
        "peer": lambda: peer_tokens(texts, other_texts),
        "our text": lambda: score_text(captions, references),
    }
    has_java = shutil.which("java") is not None
    if has_java:
        functions["peer text"] = lambda: peer_text(captions, references)
    seconds = median_seconds(functions, repeats)
    difference = largest_difference(functions["ours"](), functions["peer"]())
    rows = [
        Row("tokens to scores, time of pycocoevalcap's scorers (no Java)", seconds["peer"], "s"),
        Row("tokens to scores, ours against them", seconds["ours"] / seconds["peer"], "x", "<= 1"),
        Row("tokens to scores, largest difference x100", difference, "", "<= 0.00005"),
    ]
    if not has_java:
        name = "text to scores, ours against pycocoevalcap's scorers alone, as there is no Java for its tokeniser"
        return [*rows, Row(name, seconds["our text"] / seconds["peer"], "x", "<= 1")]
    difference = largest_difference(functions["our text"](), functions["peer text"]())
    return [
        *rows,
        Row("text to scores, time of pycocoevalcap with Java", seconds["peer text"], "s"),
        Row("text to scores, ours against it", seconds["our text"] / seconds["peer text"], "x", "<= 1"),
        Row("text to scores, largest difference x100", difference, "", "<= 0.00005"),
    ]


def main(config: CaptionMetricsBenchmark) -> None:
    """Measure, and print the rows."""
    captions, references = make_captions(config.images)
    variants = {f"variant {index}": score_text(own, references) for index, own in enumerate(captions)}
    seconds = median_seconds(
        {
            "text": lambda: score_text(captions[0], references),
            "statistics": lambda: (estimate_all(variants), compare_all(variants)),
        },
        config.repeats,
    )
    size = f"{config.images:,} images x {REFERENCES} references"
    statistics = f"intervals and p-values, {REPLICATES:,} replicates, {VARIANTS} variants, {len(NAMES)} metrics"
    rows = [Row(f"{size}, text to scores without Java", seconds["text"], "s")]
    rows += peer_figures(captions[0], references, config.repeats)
    finish("caption_metrics", [*rows, Row(statistics, seconds["statistics"], "s")])


if __name__ == "__main__":
    cli.run(main, CaptionMetricsBenchmark)
