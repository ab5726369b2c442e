"""ROUGE-L against coco-caption's own numbers and its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_metrics import plain_rouge_l, recorded

from cobra.evaluation.metrics.ptb_tokenizer import tokenize
from cobra.evaluation.metrics.rouge import rouge_l

TOKENS = st.lists(st.sampled_from("abcd"), max_size=9)
IMAGES = st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=5)


@pytest.mark.parametrize("name", ["captions.json", "odd_captions.json"])
def test_golden_rouge_l(golden_dir, name):
    captions = recorded(golden_dir, name)
    images = captions["images"]
    scores = rouge_l(
        [tokenize(image["hypothesis"]) for image in images],
        [[tokenize(text) for text in image["references"]] for image in images],
    )
    np.testing.assert_allclose(scores, [image["rouge_l"] for image in images], rtol=0, atol=1e-9)
    assert scores.mean() == pytest.approx(captions["corpus"]["rouge_l"], abs=1e-9)


def test_precision_and_recall_may_come_from_different_references():
    # Precision 1 with the long reference, recall 1 with the short one.
    assert rouge_l(["a b c".split()], [["a x b y c z".split(), ["b"]]])[0] == pytest.approx(1)
    assert rouge_l(["a b".split()], [["b a".split()]])[0] == pytest.approx(0.5)


def test_two_empty_captions_are_equal_and_one_has_nothing():
    assert rouge_l([[], [], ["a"]], [[["a"], []], [["a"]], [[]]]).tolist() == [1, 0, 0]


def test_every_hypothesis_needs_references():
    with pytest.raises(ValueError, match="no reference"):
        rouge_l([["a"]], [[]])
    with pytest.raises(ValueError):
        rouge_l([["a"]], [])


@given(IMAGES)
def test_the_bits_count_what_dynamic_programming_does(images):
    hypotheses, references = zip(*images, strict=True)
    expected = plain_rouge_l(map(" ".join, hypotheses), [list(map(" ".join, own)) for own in references])
    np.testing.assert_allclose(rouge_l(hypotheses, references), expected, rtol=1e-12)


def test_texts_longer_than_a_machine_word():
    rng = np.random.default_rng(0)
    first, second = (rng.choice(list("abcdef"), size).tolist() for size in (300, 200))
    expected = plain_rouge_l([" ".join(first)], [[" ".join(second)]])
    np.testing.assert_allclose(rouge_l([first], [[second]]), expected, rtol=1e-12)
