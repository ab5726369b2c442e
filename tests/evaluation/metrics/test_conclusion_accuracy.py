"""Conclusions on held-out rows."""

import json
import math

import pytest
from scipy.stats import binomtest

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.metrics.conclusion_accuracy import (
    KindScore,
    binomial_tail,
    given_conclusion,
    read_holdout,
    score_conclusions,
)
from cobra.reasoning.matching import Match
from cobra.util.errors import UserError

STAGES = "<SUMMARY> s </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n"
CHOICE = "Which? A. red B. blue"


def tagged(conclusion):
    return f"{STAGES}<CONCLUSION> {conclusion} </CONCLUSION>"


def row(row_id, image, *texts):
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": row_id, **({} if image is None else {"image": image}), "conversations": turns}


ROWS = [
    row("7", "sqa/train/7/image.png", f"<image>\n{CHOICE}", tagged("B")),
    row(7, "images/sqa/train/8/image.png", CHOICE, tagged("A"), "And why?", "no tags"),
    row(3, None, "How many?", tagged("1")),
    row(4, "./chartqa/1.png", "How much?", f"{STAGES}<CONCLUSION> 1,000"),
    row(5, "coco/train2017/000000000009.jpg", "What?", "no tags at all"),
    row(6, "6.png", "Is it?", tagged("Yes")),
    row(8, "coco/train2017/000000000009.jpg", "A question without an answer"),
    row(9, "coco/train2017/000000000009.jpg", "What?", tagged("")),
]


def write(folder, rows, name="holdout.json"):
    path = folder / name
    lines = "\n".join(json.dumps(row) for row in rows)
    path.write_text(lines if name.endswith(".jsonl") else json.dumps(rows))
    return path


def test_rows_are_read_with_their_first_question_and_conclusion(tmp_path):
    found = read_holdout(write(tmp_path, ROWS))
    assert [(row.number, row.row_id, row.question, row.conclusion, row.source) for row in found.rows] == [
        (0, "7", CHOICE, "B", "sqa"),
        (1, 7, CHOICE, "A", "sqa"),
        (3, 4, "How much?", "1,000", "chartqa"),
        (5, 6, "Is it?", "Yes", "(no folder)"),
    ]
    assert (found.without_conclusion, found.without_image) == (3, 1)
    assert found.rows[1].captioned == CaptionedImage(1, "images/sqa/train/8/image.png", ("A",), CHOICE)
    lines = read_holdout(write(tmp_path, ROWS, "holdout.jsonl"))
    assert [row.conclusion for row in lines.rows] == [row.conclusion for row in found.rows]


BROKEN = {
    "nothing to score": (ROWS[2:3] + ROWS[4:5], "no row to score: 1 have no CONCLUSION .* 1 no image"),
    "outside": ([row(1, "../a.png", "?", tagged("1"))], r"row 0 \(id 1\).*leads out of its folder"),
    "captions": ({"images": [], "annotations": []}, "has no conversations; expected"),
    "other rows": ([{"image_id": 1, "caption": "a"}], "row 0 .* has no conversations"),
    "empty": ([], "is empty"),
}


@pytest.mark.parametrize(("rows", "message"), BROKEN.values(), ids=BROKEN)
def test_other_files_are_refused(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read_holdout(write(tmp_path, rows))


def test_a_file_that_is_not_there(tmp_path):
    for name in ("none.json", "none.jsonl"):
        with pytest.raises(UserError, match=rf"do not exist: .*{name}.*prepare_llava_cot\.py .*--holdout"):
            read_holdout(tmp_path / name)


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
    ("k", "n", "p"),
    [(0, 5, 0.3), (5, 5, 0.3), (60, 100, 0.5), (300, 350, 0.4), (3, 7, 0.0), (7, 7, 1.0), (15100, 30000, 0.5)],
)
def test_the_binomial_tail_equals_scipys(k, n, p):
    assert math.isclose(binomial_tail(k, n, p), binomtest(k, n, p, alternative="greater").pvalue, rel_tol=1e-9)
