"""Conclusions on held-out rows."""

import json

import pytest
from holdout_examples import CHOICE, ROWS, STAGES, tagged, write

from cobra.evaluation.data.holdout_rows import read_holdout
from cobra.evaluation.metrics.conclusion_accuracy import KindScore, score_conclusions
from cobra.reasoning.matching import Match
from cobra.reasoning.trace import given_conclusion

GIVEN = {
    tagged("B"): ("B", "conclusion"),
    f"{STAGES}<CONCLUSION> B": ("B", "conclusion"),
    "<CONCLUSION>B</CONCLUSION>": ("B", "conclusion"),
    " The answer is B. \n": ("The answer is B.", "text"),
    STAGES: ("", "nothing"),
    tagged(""): ("", "nothing"),
    "": ("", "text"),
}


@pytest.mark.parametrize(("answer", "expected"), GIVEN.items(), ids=map(repr, GIVEN))
def test_what_is_taken_for_the_conclusion(answer, expected):
    assert given_conclusion(answer) == expected


def test_verdicts_accuracy_and_sources(tmp_path):
    rows = read_holdout(write(tmp_path, ROWS)).rows
    answers = [tagged("blue"), "The answer is B.", tagged("1e3"), STAGES]
    score = score_conclusions(rows, answers)
    assert [verdict.match for verdict in score.verdicts] == [Match.LETTER, None, Match.NUMBER, None]
    assert score.correct.tolist() == [1, 0, 1, 0] and score.accuracy == 0.5
    assert list(score.sources) == ["sqa", "(no folder)", "chartqa"]
    assert score.sources["sqa"] == KindScore(n=2, correct=1, majority=1)
    found = json.loads(json.dumps(score.to_dict()))
    assert found["rules"] == {"exact": 0, "option letter": 1, "number": 1, "yes or no": 0}
    assert found["found"] == {"conclusion": 2, "text": 1, "nothing": 1}
    assert found["sources"]["chartqa"] == {"n": 1, "accuracy": 1.0, "majority_accuracy": 1.0, "p_value": 1.0}
    assert json.loads(json.dumps(score.verdicts[0].to_dict())) == {
        "number": 0,
        "row_id": "7",
        "image": "sqa/train/7/image.png",
        "question": CHOICE,
        "conclusion": "B",
        "source": "sqa",
        "kind": None,
        "given": "blue",
        "found": "conclusion",
        "match": "option letter",
    }


def test_perfect_and_empty_answers(tmp_path):
    rows = read_holdout(write(tmp_path, ROWS)).rows
    assert score_conclusions(rows, [tagged(row.conclusion) for row in rows]).accuracy == 1
    assert score_conclusions(rows, [""] * len(rows)).accuracy == 0
    with pytest.raises(ValueError):
        score_conclusions(rows, [])


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (KindScore(n=10, correct=8, majority=5), (45 + 10 + 1) / 2**10),
        (KindScore(n=5, correct=0, majority=2), 1),
        (KindScore(n=7, correct=7, majority=7), 1),
        (KindScore(n=3, correct=3, majority=1), 3**-3),
    ],
)
def test_the_p_value_is_exact_and_one_sided(score, expected):
    assert score.p_value == pytest.approx(expected, rel=1e-12)
