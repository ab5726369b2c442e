"""All metrics of one variant: names, agreement with pycocoevalcap from raw text, floors and ceilings."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_metrics import captioned, make_scorer, plain_bleu, plain_cider, plain_rouge_l, recorded

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_index import ImageNames
from cobra.evaluation.metrics.base import MeanMetric, value
from cobra.evaluation.metrics.caption_scorer import derangement
from cobra.evaluation.metrics.chair import Objects, chair, mentions
from cobra.evaluation.metrics.java_metrics import JavaMetrics
from cobra.evaluation.metrics.ptb_tokenizer import tokenize
from cobra.evaluation.metrics.similarity import SentenceSimilarity, Similarity
from cobra.evaluation.responses.protocol import Answer

IMAGES = [
    CaptionedImage(1, "a.png", ("A red square on a wall.", "There is a red square.")),
    CaptionedImage("two", "b.png", ("A blue circle.",)),
]
RAW = "<CONCLUSION> a red square on a wall </CONCLUSION>"
ANSWERS = [
    Answer(1, "Caption?", RAW, "a red square on a wall", "conclusion", False),
    Answer("two", "Caption?", "a blue circle", "a blue circle", "text", False, "analysis"),
]
TEXT_METRICS = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "length_ratio"]

# What people and systems write, with everything that has once moved a caption to another image.
TEXTS = st.text(
    st.sampled_from(" \u2028\u2029\x85\v\f\r\n\t\u00a0\U0001f600.,'-()aab") | st.characters(codec="utf-8"), max_size=25
)
WORDS = st.lists(st.sampled_from(["a dog", "two", "dogs", "run", "22 3/4", "it's", "(x)", "\u2028", "\U0001f436", "."]))
CAPTIONS = TEXTS | WORDS.map(" ".join)


def objects_of(categories):
    return Objects(categories, dict.fromkeys(categories, ImageNames()))


class Overlap(SentenceSimilarity):
    """An embedding similarity that is the share of common words."""

    def __init__(self):
        pass

    def embed_references(self, references):
        pass

    def compare(self, answers, references):
        shares = [
            [len(set(caption.split()) & set(text.split())) / 10 for text in own]
            for caption, own in zip(answers, references, strict=True)
        ]
        return Similarity(np.array([np.mean(own) for own in shares]), np.array([max(own) for own in shares]))


def as_texts(images):
    """Return pycocoevalcap's dicts of token strings."""
    tokens = {number: [image["hypothesis_tokens"]] for number, image in enumerate(images)}
    return {number: image["reference_tokens"] for number, image in enumerate(images)}, tokens


@pytest.mark.parametrize("name", ["captions.json", "odd_captions.json"])
def test_golden_scores_from_raw_text(golden_dir, name):
    captions = recorded(golden_dir, name)
    images = captions["images"]
    scorer = make_scorer(captioned([image["references"] for image in images]))
    metrics = scorer.score([image["hypothesis"] for image in images])
    for n in range(1, 5):
        assert value(metrics[f"bleu_{n}"]) == pytest.approx(captions["corpus"]["bleu"][n - 1], abs=1e-9)
    for key in ("rouge_l", "cider"):
        assert value(metrics[key]) == pytest.approx(captions["corpus"][key], abs=1e-6)
        np.testing.assert_allclose(metrics[key].per_image, [image[key] for image in images], rtol=0, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed")
@pytest.mark.parametrize("name", ["captions.json", "odd_captions.json"])
def test_golden_scores_are_those_of_pycocoevalcap_now(golden_dir, name):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    images = recorded(golden_dir, name)["images"][::3]
    metrics = make_scorer(captioned([image["references"] for image in images])).score(
        [image["hypothesis"] for image in images]
    )
    references, hypotheses = as_texts(images)
    bleu = Bleu(4).compute_score(references, hypotheses, verbose=0)[0]
    rouge, cider = (scorer.compute_score(references, hypotheses)[0] for scorer in (Rouge(), Cider()))
    expected = dict(zip(TEXT_METRICS, [*bleu, rouge, cider], strict=False))
    assert {key: round(100 * value(metrics[key]), 4) for key in expected} == {
        key: round(100 * score, 4) for key, score in expected.items()
    }


@given(st.lists(st.tuples(CAPTIONS, st.lists(CAPTIONS, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_any_texts_score_as_the_definitions_say(rows):
    captions, references = zip(*rows, strict=True)
    metrics = make_scorer(captioned(references)).score(captions)
    texts = [" ".join(tokenize(caption)) for caption in captions]
    others = [[" ".join(tokenize(text)) for text in own] for own in references]
    scores = [value(metrics[f"bleu_{n}"]) for n in range(1, 5)]
    np.testing.assert_allclose(scores, plain_bleu(texts, others), rtol=0, atol=1e-6)
    np.testing.assert_allclose(metrics["rouge_l"].per_image, plain_rouge_l(texts, others), rtol=0, atol=1e-9)
    np.testing.assert_allclose(metrics["cider"].per_image, plain_cider(texts, others), rtol=0, atol=1e-9)


def test_metrics_of_answers():
    metrics = make_scorer(IMAGES, Overlap()).score_answers(ANSWERS)
    scores = {name: value(metric) for name, metric in metrics.items()}
    assert all(metric.label for metric in metrics.values())
    assert scores["bleu_1"] == pytest.approx(1, abs=1e-6)
    raw = make_scorer(IMAGES).score([answer.raw for answer in ANSWERS])
    assert (scores["raw_bleu_4"], scores["raw_cider"]) == (value(raw["bleu_4"]), value(raw["cider"]))
    assert scores["raw_bleu_4"] < scores["bleu_4"] and scores["raw_cider"] < scores["cider"]
    assert (scores["length_ratio"], scores["valid_structure"], scores["conclusion_fallbacks"]) == (1, 0, 0.5)
    assert metrics["similarity_max"].per_image.tolist() == pytest.approx([0.4, 0.1])


def test_only_what_can_be_computed_is_there():
    assert list(make_scorer(IMAGES).score(["", "x"])) == TEXT_METRICS
    java = JavaMetrics({"meteor": lambda texts, _: MeanMetric([len(text) for text in texts])})
    objects = objects_of({1: frozenset({"dog"}), 2: frozenset(), "two": frozenset()})
    metrics = make_scorer(IMAGES, java, chair(objects)).score(["A dog.", "A cat"])
    assert set(metrics) == {*TEXT_METRICS, "meteor", "chair_i", "chair_s"}
    assert metrics["meteor"].per_image.tolist() == [5, 5] and value(metrics["chair_i"]) == 0.5


def test_an_idf_of_all_images_does_not_change_with_the_sample(golden_dir):
    rows = recorded(golden_dir, "captions.json")["images"]
    images, captions = captioned([row["references"] for row in rows]), [row["hypothesis"] for row in rows]
    whole = make_scorer(images).score(captions)["cider"].per_image
    sample = make_scorer(images[:50], idf_images=images).score(captions[:50])["cider"].per_image
    np.testing.assert_allclose(sample, whole[:50], rtol=1e-12)
    own = make_scorer(images[:50]).score(captions[:50])["cider"].per_image
    assert abs(own.mean() - sample.mean()) > 0.05


def test_floors_and_ceilings(golden_dir):
    rows = [row["references"] for row in recorded(golden_dir, "captions.json")["images"][:200]]
    images = captioned(rows)
    objects = objects_of({image.image_id: frozenset({"dog"}) for image in images})
    scorer = make_scorer(images, Overlap(), chair(objects))
    floors, again = scorer.floors(), scorer.floors()
    assert list(floors) == ["shuffled", "human"]
    for name, metrics in floors.items():
        assert list(metrics) == list(scorer.score(["x"] * len(images)))
        assert all(len(metric.per_image) == len(images) for metric in metrics.values())
        assert {key: value(metric) for key, metric in metrics.items()} == {
            key: value(metric) for key, metric in again[name].items()
        }
    shuffled, human = ({key: value(metric) for key, metric in metrics.items()} for metrics in floors.values())
    for key in ("bleu_4", "rouge_l", "cider", "similarity_mean"):
        assert shuffled[key] < 0.6 * human[key], key
    assert shuffled["chair_s"] > human["chair_s"] + 0.2
    # One human against the others is what the definitions say of these captions, with the idf of all references.
    expected = make_scorer(captioned([own[1:] for own in rows]), idf_images=images).score([own[0] for own in rows])
    assert human["cider"] == value(expected["cider"]) and human["bleu_4"] == value(expected["bleu_4"])
    wrong = sum(bool(set(mentions(own[0])) - set().union(*map(mentions, own[1:])) - {"dog"}) for own in rows)
    assert human["chair_s"] == pytest.approx(wrong / len(rows))


def test_floors_where_references_are_few():
    floors = make_scorer(IMAGES, Overlap()).floors()
    assert len(floors["shuffled"]["cider"].per_image) == 2 and len(floors["human"]["cider"].per_image) == 1
    assert value(floors["shuffled"]["bleu_1"]) < 0.5
    assert list(make_scorer(IMAGES[1:]).floors()) == []
    assert list(make_scorer(IMAGES[:1]).floors()) == ["human"]


@given(st.integers(2, 60), st.integers(0, 9))
def test_a_derangement_leaves_nothing_in_its_place(count, seed):
    found = derangement(count, seed)
    assert sorted(found) == list(range(count)) and found == derangement(count, seed)
    assert all(place != index for place, index in enumerate(found))


@pytest.mark.fault("C4", "D9")
def test_what_is_not_scored_of_a_text_is_told_with_the_score():
    long = CaptionedImage(3, "c.png", ("A red square. " * 1000, "A square."))
    similarity = Overlap()
    similarity.compare = lambda answers, references: Similarity(np.zeros(3), np.zeros(3), 2, 256)
    metrics = make_scorer([*IMAGES, long], similarity).score(["a", "b" * 20_000, "c" * 10_001])
    told = metrics["length_ratio"].warning
    assert "first 10,000 characters are scored: 2 among the captions, 1 among the references" in told
    for name in ("similarity_mean", "similarity_max"):
        assert "first 256 tokens of a text." in metrics[name].warning and ": 2." in metrics[name].warning
    assert not any(metric.warning for metric in make_scorer(IMAGES).score(["a", "b"]).values())
