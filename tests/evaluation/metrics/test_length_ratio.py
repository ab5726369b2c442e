"""Length ratio: the closest reference counts, of two the shorter."""

from plain_metrics import captioned

from cobra.evaluation.metrics.base import Captions, References, value
from cobra.evaluation.metrics.length_ratio import length_ratio


def ratio(captions, references):
    return length_ratio(References(captioned(references)))(Captions(captions))["length_ratio"]


def test_a_ratio_by_hand():
    metric = ratio(["a a b", "a"], [["a b a c", "a b"], ["a b c", "a b"]])
    assert metric.per_image.tolist() == [1.5, 0.5] and value(metric) == 1


def test_nothing_written_against_nothing_is_zero():
    assert value(ratio([""], [[""]])) == 0
