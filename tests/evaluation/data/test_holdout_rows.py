"""Held-out rows that can be scored."""

import pytest
from holdout_examples import CHOICE, ROWS, row, tagged, write

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.holdout_rows import read_holdout
from cobra.util.errors import UserError


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
