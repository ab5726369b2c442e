"""CIDEr-D against coco-caption's own numbers and its definition."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_metrics import ngrams_of, plain_cider, recorded

from cobra.evaluation.metrics.cider import CiderD, InverseDocumentFrequency
from cobra.evaluation.metrics.ptb_tokenizer import tokenize

TOKENS = st.lists(st.sampled_from("abcd"), max_size=8)
IMAGES = st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=3)), min_size=1, max_size=5)


def texts(images):
    hypotheses, references = zip(*images, strict=True)
    return list(map(" ".join, hypotheses)), [list(map(" ".join, own)) for own in references]


def score(images):
    hypotheses, references = ngrams_of(*zip(*images, strict=True))
    return CiderD(references).score(hypotheses)


SEEDED = """
import random
from cobra.evaluation.metrics.base import count_ngrams
from cobra.evaluation.metrics.cider import CiderD
words = [f"w{number}" for number in range(60)]
rng = random.Random(1)
captions = [[count_ngrams(rng.choices(words[:20], k=12)) for _ in range(6)] for _ in range(120)]
print([score.hex() for score in CiderD([own[1:] for own in captions]).score([own[0] for own in captions])])
"""


@pytest.mark.fault("E5")
def test_scores_are_the_same_to_the_last_bit_in_every_run():
    # Sets of strings are ordered by a hash that every process seeds anew.
    seeds = [os.environ | {"PYTHONHASHSEED": str(seed)} for seed in (1, 2, 3)]
    runs = [subprocess.run([sys.executable, "-c", SEEDED], env=seed, capture_output=True, check=True) for seed in seeds]
    assert len({run.stdout for run in runs}) == 1 and runs[0].stdout.count(b"0x1.") > 50


@pytest.mark.parametrize("name", ["captions.json", "odd_captions.json"])
def test_golden_cider(golden_dir, name):
    captions = recorded(golden_dir, name)
    images = captions["images"]
    hypotheses, references = ngrams_of(
        [tokenize(image["hypothesis"]) for image in images],
        [[tokenize(text) for text in image["references"]] for image in images],
    )
    scores = CiderD(references).score(hypotheses)
    np.testing.assert_allclose(scores, [image["cider"] for image in images], rtol=0, atol=1e-9)
    assert scores.mean() == pytest.approx(captions["corpus"]["cider"], abs=1e-9)


@given(IMAGES)
def test_the_definition(images):
    np.testing.assert_allclose(score(images), plain_cider(*texts(images)), rtol=0, atol=1e-9)


def test_a_small_case_by_hand():
    # "a" is in both images and tells nothing, "b" in one: unigrams agree fully, the bigram does not.
    scores = score([(["a", "b"], [["a", "b"]]), (["a"], [["a", "c"]])])
    assert scores[0] == pytest.approx(10 * 2 / 4) and scores[1] == 0


def test_a_caption_of_another_length_loses():
    image = (["a", "b", "c", "d", "e"], [["a", "b", "c", "d", "e"]])
    longer = (["a", "b", "c", "d", "e", "e", "e", "e"], [["a", "b", "c", "d", "e"]])
    other = ([], [["z"]])
    whole, lengthened = score([image, other])[0], score([longer, other])[0]
    assert whole == pytest.approx(10) and lengthened < whole * math.exp(-(3**2) / 72)


def test_one_image_alone_scores_nothing_and_warns_nothing(recwarn):
    assert score([(["a", "dog"], [["a", "dog"]])]).tolist() == [0] and not list(recwarn)


@given(IMAGES, st.integers(1, 3))
def test_an_idf_of_more_references_does_not_depend_on_the_sample(images, count):
    hypotheses, references = ngrams_of(*zip(*images, strict=True))
    idf = InverseDocumentFrequency(references)
    whole = CiderD(references).score(hypotheses)
    np.testing.assert_allclose(CiderD(references[:count], idf).score(hypotheses[:count]), whole[:count], rtol=1e-12)
    assert idf.images == len(images)


def test_an_idf_of_other_references():
    images = [(["a", "b", "c"], [["a", "c", "b"]]), (["d"], [["d", "a"], ["b"]])]
    others = [[["a", "b"]], [["a"], ["c"]], [["c", "a", "b"]]]
    hypotheses, references = ngrams_of(*zip(*images, strict=True))
    idf = InverseDocumentFrequency(ngrams_of([], others)[1])
    expected = plain_cider(*texts(images), [list(map(" ".join, own)) for own in others])
    np.testing.assert_allclose(CiderD(references, idf).score(hypotheses), expected, rtol=1e-12)


def test_images_and_references_must_be_there():
    with pytest.raises(ValueError, match="no reference"):
        CiderD([[]])
    with pytest.raises(ValueError, match="no references"):
        InverseDocumentFrequency([])
    with pytest.raises(ValueError):
        CiderD(ngrams_of([], [[["a"]]])[1]).score([])
