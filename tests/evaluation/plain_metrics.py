"""BLEU, ROUGE-L and CIDEr-D written down from their definitions, slowly; and the recorded captions they are tested on.

All take token strings, one hypothesis and several references for each image, as pycocoevalcap's scorers do.
"""

import json
import math

import pytest

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.metrics.base import count_ngrams
from cobra.evaluation.metrics.bleu import BleuReferences, bleu, length_ratio
from cobra.evaluation.metrics.caption_scorer import CaptionScorer
from cobra.evaluation.metrics.cider import cider
from cobra.evaluation.metrics.rouge import rouge


def recorded(golden_dir, name):
    """Read a file of the golden set that other sets may lack."""
    path = golden_dir / name
    if not path.is_file():
        pytest.skip(f"this golden set has no {name}")
    return json.loads(path.read_text(encoding="utf-8"))


def captioned(references):
    """Make images of references."""
    return [CaptionedImage(number, f"{number}.jpg", tuple(own)) for number, own in enumerate(references)]


def make_scorer(images, *others, idf_images=None):
    """Make a scorer of the metrics that need nothing but the texts, and of others."""
    return CaptionScorer(images, [bleu, rouge, cider(idf_images or images), length_ratio, *others])


def ngrams_of(hypotheses, references):
    """Count the n-grams of token lists."""
    return [count_ngrams(own) for own in hypotheses], [[count_ngrams(one) for one in own] for own in references]


def count_bleu(hypotheses, references):
    """Return the counts of token lists."""
    counted, others = ngrams_of(hypotheses, references)
    return BleuReferences(others).count(counted)


def ngram_list(text, n):
    words = text.split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def plain_bleu(hypotheses, references):
    """Return BLEU-1 to BLEU-4 of the corpus."""
    length = sum(len(text.split()) for text in hypotheses)
    closest = 0
    for text, own in zip(hypotheses, references, strict=True):
        gaps = [(abs(len(reference.split()) - len(text.split())), len(reference.split())) for reference in own]
        closest += min(gaps)[1]
    scores, product = [], 1.0
    for n in range(1, 5):
        correct = guessed = 0
        for text, own in zip(hypotheses, references, strict=True):
            found = ngram_list(text, n)
            guessed += len(found)
            most = {gram: max(ngram_list(reference, n).count(gram) for reference in own) for gram in found}
            correct += sum(min(found.count(gram), most[gram]) for gram in most)
        product *= (correct + 1e-15) / (guessed + 1e-9)
        scores.append(product ** (1 / n))
    ratio = (length + 1e-15) / (closest + 1e-9)
    return [score * math.exp(1 - 1 / ratio) if ratio < 1 else score for score in scores]


def plain_rouge_l(hypotheses, references):
    """Return ROUGE-L of each image."""
    scores = []
    for text, own in zip(hypotheses, references, strict=True):
        words = text.split(" ")
        common = [longest_common(words, reference.split(" ")) for reference in own]
        precision = max(common) / len(words)
        recall = max(one / len(reference.split(" ")) for one, reference in zip(common, own, strict=True))
        scores.append((1 + 1.44) * precision * recall / (recall + 1.44 * precision) if precision else 0.0)
    return scores


def longest_common(first, second):
    """Return the length of the longest common subsequence, by dynamic programming."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for row, one in enumerate(first, 1):
        for column, other in enumerate(second, 1):
            longer = max(table[row - 1][column], table[row][column - 1])
            table[row][column] = table[row - 1][column - 1] + 1 if one == other else longer
    return table[-1][-1]


def plain_cider(hypotheses, references, idf_references=None):
    """Return CIDEr-D of each image."""
    known = idf_references or references

    def vector(text, n):
        grams = ngram_list(text, n)
        return {gram: grams.count(gram) * idf(gram) for gram in grams}

    def idf(gram):
        holders = sum(any(gram in ngram_list(reference, len(gram)) for reference in own) for own in known)
        return math.log(len(known)) - math.log(max(1, holders))

    scores = []
    for text, own in zip(hypotheses, references, strict=True):
        total = 0.0
        for reference in own:
            gap = len(ngram_list(text, 2)) - len(ngram_list(reference, 2))
            for n in range(1, 5):
                one, other = vector(text, n), vector(reference, n)
                norm = math.hypot(*one.values()) * math.hypot(*other.values())
                product = sum(min(one[gram], other[gram]) * other[gram] for gram in one.keys() & other.keys())
                total += product / norm * math.exp(-(gap**2) / 72) if norm else 0.0
        scores.append(10 * total / 4 / len(own))
    return scores
