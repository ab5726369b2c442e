"""Parity: questions that are always the same, and answers that differ are found, placed and told with their logits."""

from dataclasses import replace

import pytest
import torch

import cobra
from cobra.export.parity import Answer, answers_of, batches, parity_questions, prove_answers

COUNT = 8


@pytest.fixture(scope="module")
def vlm():
    return cobra.load("cobra-tiny", device="cpu")


@pytest.fixture(scope="module")
def right(vlm):
    return answers_of(vlm, parity_questions(COUNT))


def test_questions_are_the_same_every_time_and_of_many_lengths():
    first, again = parity_questions(64), parity_questions(64)
    assert [each.text for each in first] == [each.text for each in again]
    assert parity_questions(COUNT) == first[:COUNT]
    assert all(
        a.picture is None or a.picture.tobytes() == b.picture.tobytes() for a, b in zip(first, again, strict=True)
    )
    assert sum(each.picture is None for each in first) == 8
    assert len({each.picture.tobytes() for each in first if each.picture}) == 14
    assert len({len(each.text) for each in first}) > 16


def test_batches_are_of_one_kind():
    questions = parity_questions(40)
    parts = batches(questions)
    assert sorted(sum(parts, [])) == list(range(40))
    assert all(len({questions[number].picture is None for number in part}) == 1 for part in parts)


def test_equal_answers_pass(vlm, right):
    parity = prove_answers(vlm, lambda questions: right, COUNT)
    assert parity["passed"] and parity["equal"] == parity["questions"] == COUNT and parity["left_out"] == 0
    assert parity["first_difference"] is None and parity["largest_difference_of_first_logits"] == 0


def test_a_different_token_is_placed_with_both_logits(vlm, right):
    wrong = [replace(each) for each in right]
    ids = list(right[5].ids)
    ids[3] = (ids[3] + 1) % 700
    wrong[5] = Answer(ids, right[5].first + 0.5, [float(place) for place in range(len(ids))])
    parity = prove_answers(vlm, lambda questions: wrong, COUNT)
    assert not parity["passed"] and parity["equal"] == COUNT - 1 and parity["ties"] == 0
    found = parity["first_difference"]
    assert (found["question"], found["position"]) == (5, 3)
    assert found["tokens"] == {"here": [right[5].ids[3]], "there": [ids[3]]}
    assert found["logits_here"]["here"] > found["logits_here"]["there"]
    assert found["logit_there"] == 3.0
    assert parity["largest_difference_of_first_logits"] == pytest.approx(0.5)
    assert prove_answers(vlm, lambda questions: wrong, COUNT, share=0.8)["passed"]


def test_answers_cut_short_are_different(vlm, right):
    parity = prove_answers(vlm, lambda questions: [Answer(each.ids[:-1]) for each in right], COUNT)
    assert parity["equal"] == 0 and not parity["passed"]
    assert parity["first_difference"]["tokens"]["there"] == []


def test_a_question_that_cannot_be_asked_is_left_out_and_none_at_all_is_no_proof(vlm, right):
    parity = prove_answers(vlm, lambda questions: [None, *right[1:]], COUNT)
    assert parity["passed"] and parity["left_out"] == 1 and parity["questions"] == COUNT - 1
    assert not prove_answers(vlm, lambda questions: [None] * COUNT, COUNT)["passed"]


def test_a_tie_counts_apart(vlm, right, monkeypatch):
    ids = list(right[0].ids)
    ids[0] = int(right[0].first.topk(2).indices[1])
    gap = float(torch.diff(right[0].first.topk(2).values).abs())
    monkeypatch.setattr("cobra.export.parity.TIE", 1.1 * gap)
    parity = prove_answers(vlm, lambda questions: [Answer(ids), *right[1:]], COUNT)
    assert parity["passed"] and parity["equal"] == COUNT - 1 and parity["ties"] == 1
