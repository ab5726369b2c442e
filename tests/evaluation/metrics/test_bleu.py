"""BLEU against coco-caption's own numbers and against nltk; the length ratio by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import corpus_bleu as nltk_corpus_bleu
from plain_metrics import captioned, count_bleu, plain_bleu, recorded

from cobra.evaluation.metrics.base import Captions, References, value
from cobra.evaluation.metrics.bleu import bleu_metrics, length_ratio
from cobra.evaluation.metrics.ptb_tokenizer import tokenize

TOKENS = st.lists(st.sampled_from("abcde"), max_size=9)
IMAGES = st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=6)


def per_image(counts):
    return np.stack([metric.per_image for metric in bleu_metrics(counts).values()], axis=-1)


def corpus_bleu(counts, weights=None):
    return np.stack([metric.corpus(weights) for metric in bleu_metrics(counts).values()], axis=-1)


@pytest.fixture(scope="module", params=["captions.json", "odd_captions.json"])
def captions(golden_dir, request):
    return recorded(golden_dir, request.param)


@pytest.fixture(scope="module")
def counts(captions):
    images = captions["images"]
    hypotheses = [tokenize(image["hypothesis"]) for image in images]
    references = [[tokenize(text) for text in image["references"]] for image in images]
    return count_bleu(hypotheses, references)


def test_golden_corpus_bleu(captions, counts):
    np.testing.assert_allclose(corpus_bleu(counts), captions["corpus"]["bleu"], rtol=0, atol=1e-12)


def test_golden_bleu_per_image(captions, counts):
    expected = [image["bleu"] for image in captions["images"]]
    np.testing.assert_allclose(per_image(counts), expected, rtol=0, atol=1e-11)


def test_golden_corpus_bleu_agrees_with_nltk(captions):
    images = [image for image in captions["images"] if len(image["hypothesis_tokens"].split()) >= 4]
    hypotheses = [image["hypothesis_tokens"].split() for image in images]
    references = [[tokens.split() for tokens in image["reference_tokens"]] for image in images]
    ours = corpus_bleu(count_bleu(hypotheses, references))
    for n in range(1, 5):
        theirs = nltk_corpus_bleu(references, hypotheses, weights=[1 / n] * n)
        assert ours[n - 1] == pytest.approx(theirs, abs=1e-6)


def test_counts_of_a_small_case_done_by_hand():
    counts = count_bleu([["a", "a", "b"]], [[["a", "b", "a", "c"], ["a", "b"]]])
    # "a a" is in neither reference, "a b" is; both references are one token off: the shorter counts.
    assert counts.tolist() == [[3, 1, 0, 0, 3, 2, 1, 0, 3, 2]]


def test_short_answers_are_punished():
    reference = ["a", "b", "c", "d", "e", "f"]
    whole, half = (corpus_bleu(count_bleu([reference[:n]], [[reference]])) for n in (6, 3))
    np.testing.assert_allclose(whole, 1, atol=1e-8)
    assert half[0] == pytest.approx(np.exp(1 - 6 / 3), abs=1e-6)


def test_empty_answers_score_nothing_and_warn_nothing(recwarn):
    counts = count_bleu([[], []], [[["a"]], [[]]])
    assert (corpus_bleu(counts) < 1e-5).all() and (per_image(counts) < 1e-5).all()
    assert list(recwarn) == []


def test_every_hypothesis_needs_references():
    with pytest.raises(ValueError, match="no reference"):
        count_bleu([["a"]], [[]])
    with pytest.raises(ValueError):
        count_bleu([["a"], ["b"]], [[["a"]]])


@given(IMAGES)
def test_one_image_is_a_corpus_of_one(images):
    counts = count_bleu(*zip(*images, strict=True))
    alone = per_image(counts)
    for row, image in enumerate(images):
        np.testing.assert_allclose(alone[row], corpus_bleu(count_bleu([image[0]], [image[1]])), rtol=1e-12)


@given(IMAGES, st.data())
def test_weights_are_repetitions(images, data):
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(images), max_size=len(images)))
    counts = count_bleu(*zip(*images, strict=True))
    repeated = [image for image, weight in zip(images, weights, strict=True) for _ in range(weight)]
    if repeated:
        expected = corpus_bleu(count_bleu(*zip(*repeated, strict=True)))
        np.testing.assert_allclose(corpus_bleu(counts, np.array([weights, weights])), [expected, expected], rtol=1e-12)


@given(IMAGES)
def test_the_definition(images):
    hypotheses, references = zip(*images, strict=True)
    expected = plain_bleu(list(map(" ".join, hypotheses)), [list(map(" ".join, own)) for own in references])
    np.testing.assert_allclose(corpus_bleu(count_bleu(hypotheses, references)), expected, rtol=1e-9)


def test_a_token_with_a_no_break_space_counts_as_two():
    counts = count_bleu([["22\u00a03/4", "inch"]], [[["22", "3/4", "inch"]]])
    assert counts[0, :4].tolist() == [3, 2, 1, 0] and counts[0, 8] == 3


def ratio(captions, references):
    return length_ratio(References(captioned(references)))(Captions(captions))["length_ratio"]


def test_a_length_ratio_by_hand():
    # The closest reference counts, of two the shorter.
    metric = ratio(["a a b", "a"], [["a b a c", "a b"], ["a b c", "a b"]])
    assert metric.per_image.tolist() == [1.5, 0.5] and value(metric) == 1


def test_nothing_written_against_nothing_is_zero():
    assert value(ratio([""], [[""]])) == 0
