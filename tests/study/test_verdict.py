"""Words of a verdict claim what the numbers carry and no more; the page holds them all."""

import json
import re
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest

from cobra.study.exam import CAPTIONS, CONCLUSIONS, Score
from cobra.study.page import GIVEN, TRAINED
from cobra.study.report import FIGURE, PAGE, RESULT, Findings, compare, report
from cobra.study.verdict import pairs_of

QUESTIONS = 300
KINDS = ["count", "colour"] * (QUESTIONS // 2)


def models(share, seeds=3, base=0, counting=0.0):
    """Scores of an arm that is right with a probability, by so much more often where a question counts."""
    scores = []
    for seed in range(seeds):
        rng = np.random.default_rng(100 * base + seed)
        chances = share + counting * (np.arange(QUESTIONS) % 2 == 0)
        values = (rng.random(QUESTIONS) < chances).astype(float).tolist()
        scores.append(Score({CONCLUSIONS: values}, tokens=10.0 * (base + 1), seconds=0.5, valid=1.0, sha256="a"))
    return scores


def findings(scores, fixed=("start",), **values):
    return Findings(scores, KINDS, {"rows": "mine"}, frozenset(fixed), **values)


def test_pairs_show_one_cause_each():
    pairs = [pair[:2] for pair in pairs_of(["start", "full", "conclusion", "shuffled", "without:CAPTION"])]
    assert pairs == [
        ("start", "conclusion"), ("conclusion", "full"), ("shuffled", "full"), ("without:CAPTION", "full")
    ]  # fmt: skip
    assert [pair[:2] for pair in pairs_of(["start", "full", "shuffled"])] == [("start", "full"), ("shuffled", "full")]
    assert [pair[:2] for pair in pairs_of(["a", "b", "c"])] == [("a", "b"), ("a", "c")]
    assert pairs_of(["start", "conclusion", "shuffled"])[1:] == [
        ("conclusion", "shuffled", "taking shuffled in place of conclusion")
    ]
    assert [pair[:2] for pair in pairs_of(["start", "shuffled", "untagged"])] == [
        ("start", "shuffled"), ("shuffled", "untagged")
    ]  # fmt: skip


def test_every_arm_that_is_trained_is_compared():
    for size in range(2, 6):
        for arms in combinations(["start", "full", "conclusion", "shuffled", "untagged", "without:CAPTION"], size):
            assert {arm for pair in pairs_of(arms) for arm in pair[:2]} == set(arms)


def test_an_effect_is_claimed_with_its_kinds_and_what_it_costs(tmp_path):
    scores = {"start": models(0.1, 1), "full": models(0.5, base=1, counting=0.4), "conclusion": models(0.5, base=2)}
    data, reasoning, limits = report(findings(scores), tmp_path)
    assert "training on these rows (conclusions alone) helped" in data.lower()
    assert reasoning.startswith("Reasoning before the conclusion helped: +") and "in count (+" in reasoning
    assert "An answer of conclusion takes 30 tokens and 0.500 s, one of full 20 tokens and 0.500 s." in reasoning
    assert limits.startswith("These are 300 questions and 3 models an arm")
    page = (tmp_path / PAGE).read_text()
    assert all(sentence in page for sentence in (data, reasoning, limits)) and "| count | +" in page
    result = json.loads((tmp_path / RESULT).read_text())
    assert result["verdict"] == [data, reasoning, limits]
    assert [len(result["arms"][arm]) for arm in scores] == [1, 3, 3]
    assert result["comparisons"][1]["effect"]["difference"] == pytest.approx(0.2, abs=0.05)


def test_no_effect_is_said_with_the_smallest_that_would_have_been_seen(tmp_path):
    scores = {"start": models(0.5, 1), "full": models(0.5, base=1), "conclusion": models(0.5, base=2)}
    _, reasoning, _ = report(findings(scores), tmp_path)
    assert (
        reasoning.startswith("No effect of reasoning")
        and "would have been seen with a probability of 80 %" in reasoning
    )


def test_arms_that_answer_alike_give_no_certainty(tmp_path):
    few = {"start": [Score({CONCLUSIONS: [0.0] * 6})]}
    few |= {arm: [Score({CONCLUSIONS: [1.0] * 6})] * 2 for arm in ("full", "conclusion")}
    data, reasoning, _ = report(Findings(few, ["count"] * 6, {}, frozenset({"start"})), tmp_path)
    alike = (
        "(the same for each of the 6 questions; with 95 % confidence at most 39.3 % of such questions differ from "
        "that, p = "
    )
    assert "helped: +100.0 points" in data and f"{alike}0.031)" in data
    assert reasoning == (
        "No effect of reasoning before the conclusion can be claimed: +0.0 points of right conclusions from "
        f"conclusion to full {alike}1)."
    )
    page = (tmp_path / PAGE).read_text()
    assert "nan" not in page and "| conclusion | full | right conclusions | +0.0 | - | 1 | - | 0.0 | 0.0 |" in page


def test_one_seed_says_nothing_and_harm_is_called_harm(tmp_path):
    single = {"start": models(0.5, 1), "full": models(0.9, 1, base=1), "conclusion": models(0.2, 1, base=2)}
    assert report(findings(single), tmp_path)[1].startswith("Nothing can be said of reasoning")
    worse = {"start": models(0.5, 1), "full": models(0.2, base=1), "conclusion": models(0.6, base=2)}
    assert "did harm: -" in report(findings(worse), tmp_path)[1]


def test_two_single_models_are_compared_as_themselves(tmp_path):
    scores = {"mine": models(0.3, 1), "yours": models(0.6, 1, base=1)}
    sentence = report(findings(scores, fixed=("mine", "yours")), tmp_path)[0]
    assert sentence.startswith("Taking yours in place of mine helped")
    assert "what other seeds would have given is not known" in sentence


def test_the_page_of_models_that_were_there_says_nothing_of_their_training(tmp_path):
    scores = {"mine": models(0.3, 1), "yours": models(0.6, 1, base=1)}
    pages = []
    for origin in (TRAINED, GIVEN):
        report(findings(scores, fixed=("mine", "yours"), origin=origin), tmp_path)
        pages.append((tmp_path / PAGE).read_text())
    trained, given = pages
    assert trained.startswith("# Did the reasoning do it?\n") and given.startswith("# Models compared\n")
    assert "Every arm is trained from the same checkpoint" in trained and "is trained from" not in given
    assert set(re.findall(r"\]\((.*?)\)", trained + given)) == {FIGURE}, "others lead nowhere from a run's folder"


def test_failed_arms_and_other_measures_are_on_the_page(tmp_path):
    scores = {"start": models(0.5, 1), "full": models(0.5, base=1), "conclusion": models(0.5, base=2)}
    for arm in scores.values():
        for model in arm:
            model.values[CAPTIONS] = [1.5, 0.5]
    ended = "the training of the arm full ended with code 1; the end of x.log:\nstep 1\nOut of memory\n===\n"
    report(findings(scores, failed={"full-2": "no room", "full-3": ended}), tmp_path)
    page = (tmp_path / PAGE).read_text()
    assert "- full-2: no room\n" in page and f"{CAPTIONS}, %" in page
    assert f"- full-3: {ended.splitlines()[0]}\n\n      step 1\n      Out of memory\n      ===\n" in page
    measures = [comparison.measure for comparison in compare(scores, KINDS, frozenset({"start"}))]
    assert measures == [CONCLUSIONS, CONCLUSIONS, CAPTIONS, CAPTIONS]


def test_logs_of_an_arm_without_scores_and_single_seeds_still_give_strict_json(tmp_path):
    scores = {"start": models(0.5, 1), "full": models(0.5, base=1), "conclusion": models(0.5, base=2)}
    logged = {arm: [Score({"mine (acc)": [1.0, 0.0, 1.0]})] for arm in ("full", "shuffled")}
    sentences = report(findings(scores, logged=logged), tmp_path)
    assert not any("tokens" in sentence for sentence in sentences if "mine (acc)" in sentence)
    text = (tmp_path / RESULT).read_text()
    assert "NaN" not in text and json.loads(text)["comparisons"][-1]["effect"]["p_value"] is None


def test_the_figure_has_every_effect_on_the_first_measure(tmp_path):
    """Names of kinds come from rows of strangers."""
    kinds = ["<script>&", "colour" * 20] * (QUESTIONS // 2)
    scores = {"start": models(0.1, 1), "full": models(0.5, base=1, counting=0.4), "conclusion": models(0.5, base=2)}
    for arm in scores.values():
        for model in arm:
            model.values[CAPTIONS] = [900.0, 0.5]
    report(Findings(scores, kinds, {}, frozenset({"start"})), tmp_path)
    root = ElementTree.fromstring((tmp_path / FIGURE).read_text())
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert texts.count("<script>&") == 2 and not any(text.startswith("colour" * 6) for text in texts)
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    # Two comparisons, each as a whole and in two kinds.
    assert len(circles) == 6
    comparisons = compare(scores, kinds, frozenset({"start"}))[:2]
    effects = [effect for one in comparisons for effect in (one.effect, *one.kinds.values())]
    filled = [circle.get("fill") == circle.get("stroke") for circle in circles]
    assert filled == [effect.is_claimed for effect in effects] and True in filled and False in filled
    places = [float(circle.get("cx")) for circle in circles]
    differences = [effect.difference for effect in effects]
    assert np.argsort(places).tolist() == np.argsort(differences).tolist()


def test_kinds_that_differ_are_named_where_the_whole_shows_nothing(tmp_path):
    one = {"start": models(0.5, 1), "full": models(0.57, counting=-0.22, base=1), "conclusion": models(0.5, base=2)}
    reasoning = report(findings(one), tmp_path)[1]
    assert reasoning.startswith("No effect of reasoning") and "Single kinds do differ: count (-" in reasoning


def test_kinds_that_differ_in_both_directions_are_told_apart(tmp_path):
    opposed = models(0.75, counting=-0.5, base=1)
    scores = {"start": models(0.5, 1), "full": opposed, "conclusion": models(0.5, base=2)}
    reasoning = report(findings(scores), tmp_path)[1]
    assert reasoning.startswith("No effect of reasoning")
    assert re.search(r" It helped in colour \(\+[0-9.]+\), and did harm in count \(-[0-9.]+\)\.", reasoning)
