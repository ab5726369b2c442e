"""Answers by validation: right and wrong ones, shares by source, and a bounded number of them."""

import pytest
from made_run import COT, ROWS, write_answers

from cobra.training.page.answers import ALL, MOST_VALIDATIONS, AnswerHistory, is_right


def history_of(run_dir):
    history = AnswerHistory(run_dir / "samples.jsonl")
    history.read_on()
    return history


@pytest.mark.parametrize(
    ("answer", "reference", "verdict"),
    [
        (COT.format("Red."), COT.format("red"), True),
        (COT.format("B"), COT.format("red"), False),
        (COT.format("A"), COT.format("red"), True),
        # A model that never learned the stages may be right; one that breaks off in them is not.
        ("red", COT.format("red"), True),
        ("<SUMMARY> red", COT.format("red"), False),
        ("", COT.format("red"), False),
        # Rows without stages have short answers, or descriptions that cannot be compared.
        ("Red", "red", True),
        ("blue", "red", False),
        ("A red square.", "A red square stands on a white ground, alone.", None),
        ("red", "<SUMMARY> without an end", None),
        ("red", "", None),
    ],
)
def test_right_and_wrong(answer, reference, verdict):
    assert is_right(answer, reference, "Which colour?\nA. red\nB. blue") is verdict


def test_rows_have_their_answers_and_sources_their_shares(tmp_path):
    write_answers(tmp_path, 10, ["A blot", "Yes.", "A picture."])
    write_answers(tmp_path, 20, [COT.format("a blot"), "No", "<CAPTION> c"])
    history = history_of(tmp_path)
    assert history.steps == [10, 20] and history.asked == 3 and list(history.right()) == [(1, 2), (2, 2)]
    first, second, third = history.rows(48)
    assert [(one.step, one.text, one.is_right) for one in second.answers] == [(10, "Yes.", False), (20, "No", True)]
    assert first.line["question"] == "What is it?" and third.answers[1].is_right is None
    assert history.counts == {ALL: 2, "coco": 1, "(text only)": 1}
    assert [point.last for point in history.shares[ALL].points] == [0.5, 1.0]
    assert [point.last for point in history.shares["(text only)"].points] == [0.0, 1.0]
    assert len(history.rows(1)) == 1


def test_it_is_read_as_it_grows(tmp_path):
    history = history_of(tmp_path)
    assert history.steps == [] and history.rows(9) == [] and history.asked == 0
    write_answers(tmp_path, 10, ["A", "B", "C"])
    history.read_on()
    write_answers(tmp_path, 20, ["D", "E", "F"])
    history.read_on()
    assert [answer.text for answer in history.rows(1)[0].answers] == ["A", "D"]


def test_of_many_validations_some_are_kept_the_first_and_the_newest_always(tmp_path):
    history = history_of(tmp_path)
    for step in range(1, 1001):
        write_answers(tmp_path, step, ["A", "B", "C"])
        history.read_on()
        assert len(history.validations) <= MOST_VALIDATIONS + 1
        assert history.steps[0] == 1 and history.steps[-1] == step
    assert MOST_VALIDATIONS / 2 < len(history.validations) and history.steps == history_of(tmp_path).steps
    gaps = {later - earlier for earlier, later in zip(history.steps[:-1], history.steps[1:-1], strict=False)}
    assert len(gaps) == 1


def test_of_many_rows_fewer_validations_are_kept(tmp_path):
    rows = [(number, number, None, "?", "red") for number in range(300)]
    for step in range(1, 10):
        write_answers(tmp_path, step, ["red"] * 300, rows)
    assert len(history_of(tmp_path).validations) <= 3


def test_a_start_that_asks_about_other_rows_shows_those(tmp_path):
    write_answers(tmp_path, 1, ["first", "second"], ROWS[:2])
    write_answers(tmp_path, 2, ["third", "fourth"], ROWS[1:])
    rows = history_of(tmp_path).rows(9)
    assert [[answer.text for answer in row.answers] for row in rows] == [["second", "third"], ["fourth"]]


def test_lines_of_another_form_are_left_out(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"step": 1}\n{"step": "x", "row": 1, "answer": "", "question": ""}\n')
    write_answers(tmp_path, 2, ["A", "B", "C"])
    assert history_of(tmp_path).steps == [2]
