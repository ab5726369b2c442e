"""Answers about held-out rows are counted by form and conclusion, and kept, whatever the model has written."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobra.training.samples import SampledRow, SampleLog, structure

COT = "<SUMMARY> s </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n<CONCLUSION> {} </CONCLUSION>"
ROWS = [
    SampledRow(4, "four", "a/4.png", "What is it?", COT.format("A")),
    SampledRow(9, 9, None, "And this?", "plain"),
    SampledRow(11, None, "a/absent.png", "?", ""),
]


def lines(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]


def test_structure_counts_what_can_be_compared():
    answered = [
        (COT.format("A"), COT.format("A"), "?"),
        (COT.format("A"), COT.format("B"), "?"),
        (COT.format("A"), "A", "?"),
        ("A", COT.format("A"), "?"),
        ("<CONCLUSION>\nB ", COT.format("B"), "?"),
        (COT.format("a"), COT.format("A"), "?"),
    ]
    # The case of letters does not matter.
    assert structure(answered) == (6, 4, 4, 3)
    assert structure([]) == (0, 0, 0, 0)


@pytest.mark.fault("D3")
def test_an_options_words_are_right_where_the_question_lists_it():
    answered = (COT.format("red"), COT.format("A"))
    assert structure([(*answered, "Which colour?\nA. red\nB. blue")]) == (1, 1, 1, 1)
    assert structure([(*answered, "Which colour?")]) == (1, 1, 1, 0)


def test_lines_hold_every_answer(tmp_path):
    log = SampleLog(ROWS)
    log.write(tmp_path, 500, [COT.format("A"), "plain", ""])
    log.write(tmp_path, 1000, [COT.format("B"), "<CAPTION> c", "other"])
    written = lines(tmp_path)
    assert [(line["step"], line["row"], line["id"], line["image"]) for line in written] == [
        (step, row.row, row.row_id, row.image) for step in (500, 1000) for row in ROWS
    ]
    assert written[3]["answer"] == COT.format("B") and written[4]["reference"] == "plain"


def test_a_later_start_goes_on_behind_its_step(tmp_path):
    for step in range(100, 1500, 100):
        SampleLog(ROWS[:1]).write(tmp_path, step, [f"answer of {step}"])
    later = SampleLog(ROWS[:1])
    later.cut_back(tmp_path, 1200)
    later.write(tmp_path, 1250, ["answer of 1250"])
    assert [line["step"] for line in lines(tmp_path)] == [*range(100, 1300, 100), 1250]


def test_cutting_back_needs_no_file(tmp_path):
    SampleLog([]).cut_back(tmp_path, 0)
    assert not list(tmp_path.iterdir())


@settings(deadline=None, max_examples=20)
@given(text=st.text(st.characters(codec="utf-8")))
def test_any_answer_leaves_the_file_whole(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    SampleLog(ROWS).write(folder, 1, [text, text[::-1], COT.format(text)])
    assert [line["answer"] for line in lines(folder)] == [text, text[::-1], COT.format(text)]
