"""Logs of lmms-eval as measures of a study's arms: their direction, their metrics, and what cannot be compared."""

import json

import pytest

from cobra.study.exam import CONCLUSIONS, Score
from cobra.study.logs import read_logged_scores
from cobra.study.report import PAGE, RESULT, Findings, report
from cobra.util.errors import UserError


def log(folder, **metrics):
    """Write a log whose documents have these metrics' values; a document of None lacks the metric."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for doc_id, values in enumerate(zip(*metrics.values(), strict=True)):
        scores = {name: value for name, value in zip(metrics, values, strict=True) if value is not None}
        lines.append({"doc_id": doc_id, "target": "a", "filtered_resps": "a"} | scores)
    (folder / "20260101_samples_mine.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def read(tmp_path, first, second):
    flags = [f"full={log(tmp_path / 'a', **first)}", f"conclusion={log(tmp_path / 'b', **second)}"]
    return read_logged_scores(flags, ["full", "conclusion"])


def test_logs_of_lmms_eval_are_measures_of_the_arms(tmp_path):
    scores = read(tmp_path, {"acc": [1, 0, 1]}, {"acc": [0, 0, 1]})
    assert scores["full"][0].values == {"mine (acc)": [1, 0, 1]}
    assert scores["conclusion"][0].values == {"mine (acc)": [0, 0, 1]}
    place = tmp_path / "a"
    with pytest.raises(UserError, match="no arm is called best"):
        read_logged_scores([f"best={place}"], ["full"])
    with pytest.raises(UserError, match="NAME=PLACE was expected"):
        read_logged_scores([str(place)], ["full"])
    assert read_logged_scores([], ["full"]) == {}


def test_logs_of_one_arm_are_compared_with_nothing(tmp_path):
    flags = [f"full={log(tmp_path / name, acc=[1, 0])}" for name in "ab"]
    with pytest.raises(UserError, match="logs of full alone"):
        read_logged_scores(flags, ["full", "conclusion"])


def test_a_metric_whose_less_is_better_does_harm_where_it_grows(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "20260101_results.json").write_text(json.dumps({"higher_is_better": {"mine": {"wer": False}}}))
    errors = [[0.1, 0.2, 0.1, 0.2, 0.1, 0.1], [0.5, 0.4, 0.6, 0.5, 0.5, 0.4]]
    logged = read(tmp_path, {"wer": errors[1]}, {"wer": errors[0]})
    arms = {arm: [Score({CONCLUSIONS: [1.0, 0.0] * 3})] for arm in logged}
    for first, second, word in (("conclusion", "full", "did harm: +"), ("full", "conclusion", "helped: -")):
        turned = {"full": logged[second], "conclusion": logged[first]}
        sentence = report(Findings(arms, ["a"] * 6, {}, frozenset(arms), logged=turned), tmp_path / "out")[1]
        assert f"before the conclusion {word}" in sentence and "points of mine (wer, lower is better) from" in sentence
    result = json.loads((tmp_path / "out" / RESULT).read_text())
    assert [one["lower_is_better"] for one in result["comparisons"]] == [False, True]


def test_metrics_of_a_category_are_compared_and_those_without_numbers_are_named(tmp_path):
    scores = read(
        tmp_path,
        {"acc": [1, 0, 1], "shape": [None, 1, 0], "bleu": ["a", "b", "c"], "rare": [1, None, None]},
        {"acc": [0, 0, 1], "shape": [None, 0, 0], "bleu": ["a", "b", "c"], "rare": [0, None, None]},
    )
    assert scores["full"][0].values == {"mine (acc)": [1, 0, 1], "mine (shape)": [1, 0]}
    arms = {arm: [Score({CONCLUSIONS: [1.0, 0.0]})] for arm in scores}
    report(Findings(arms, ["a", "a"], {}, frozenset(arms), logged=scores), tmp_path)
    assert "| metrics left out | mine (rare), mine (bleu) |" in (tmp_path / PAGE).read_text()


@pytest.mark.parametrize("metrics", [{"bleu": ["a", "b"]}, {"acc": [1]}, {}])
def test_a_task_without_a_metric_of_two_documents_is_refused(tmp_path, metrics):
    metrics = metrics or {"acc": [None, None]}
    with pytest.raises(UserError, match="mine have no metric with a number for the same two or more documents"):
        read(tmp_path, metrics, metrics)
