"""benchmark.py on logs of lmms-eval: its numbers, the statistics of all benchmarks, and a page for each task."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from cobra.commands import benchmark as script
from cobra.evaluation.metrics.base import MeanMetric
from cobra.evaluation.metrics.significance import compare_all
from cobra.util.cli import run

LOGS = Path(__file__).parent / "logs"


def call(capsys, *flags):
    """Run the script; return its exit code and what it printed."""
    with pytest.raises(SystemExit) as exit_info:
        run(script.main, script.BenchmarkConfig, [*map(str, flags)])
    printed = capsys.readouterr()
    return exit_info.value.code, printed.out + printed.err


@pytest.fixture
def scenes(tmp_path):
    """The logs of one task alone."""
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        for file in (LOGS / name).rglob("*"):
            if file.is_file() and "kinds" not in file.name:
                shutil.copy(file, tmp_path / name)
    return tmp_path


def test_two_models_on_one_task(scenes, capsys):
    out = scenes / "out"
    code, printed = call(capsys, "--lmms_eval_logs", scenes / "base", scenes / "tuned", "--output_dir", out)
    assert code == 0, printed
    metrics = json.loads((out / "metrics.json").read_text())
    values = {name: {key: one["value"] for key, one in row.items()} for name, row in metrics["variants"].items()}
    for name in ("base", "tuned"):
        results = json.loads(next((LOGS / name).rglob("*_results.json")).read_text())["results"]["scenes"]
        assert values[name] == {key: results[f"{key},none"] for key in ("exact_match", "conclusion", "words")}
    # The statistics are those of all benchmarks, on the same pairs.
    pairs = {
        name: {"exact_match": MeanMetric([json.loads(line)["exact_match"] for line in lines])}
        for name in ("base", "tuned")
        if (lines := next((LOGS / name).rglob("*_samples_scenes.jsonl")).read_text().splitlines())
    }
    [ours] = compare_all(pairs)
    theirs = next(one for one in metrics["comparisons"] if one["metric"] == "exact_match")
    assert (theirs["difference"]["value"], theirs["p_value"]) == (ours.difference.value, ours.p_value)
    assert (theirs["difference"]["low"], theirs["claimed"]) == (ours.difference.low, True)
    # Of 0 and 1 the exchanges are the sign test on the documents where the two differ.
    before, after = (pairs[name]["exact_match"].per_image for name in ("base", "tuned"))
    gained, lost = np.sum(after > before), np.sum(after < before)
    assert theirs["p_value"] == pytest.approx(binomtest(int(gained), int(gained + lost)).pvalue, abs=0.01)
    assert "exact_match rose from 6 to 56 %" in printed and "16 documents" in printed
    page = (out / "report.html").read_text()
    assert all(
        part in page for part in ("scenes of lmms-eval on 16 documents", "Which shape is cyan?", "lower is better")
    )
    answers = [json.loads(line) for line in (out / "answers" / "tuned.jsonl").read_text().splitlines()]
    assert answers[0]["raw"].startswith("<SUMMARY>") and (answers[0]["scored"], answers[0]["source"]) == (
        "triangle",
        "conclusion",
    )
    assert metrics["lmms_eval"]["logs"]["tuned"]["model_args"] == "pretrained=runs/cobra-tiny-cot"
    assert len(metrics["lmms_eval"]["logs"]["tuned"]["sha256"]) == 64


def test_each_of_several_tasks_has_a_folder(tmp_path, capsys):
    flags = ("--lmms_eval_logs", LOGS / "base", LOGS / "tuned", "--output_dir", tmp_path / "out")
    code, printed = call(capsys, *flags)
    assert code == 0, printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scenes", "scenes_kinds"]
    assert "left out, without a number for each document: bleu, bleu (filter 2)" in printed
    kinds = json.loads((tmp_path / "out" / "scenes_kinds" / "metrics.json").read_text())
    assert kinds["variants"]["tuned"]["shape"]["value"] == pytest.approx(8 / 13)
    assert kinds["variants"]["tuned"]["colour"]["value"] == pytest.approx(1 / 3)
    assert kinds["lmms_eval"]["metrics_left_out"] == ["bleu", "bleu (filter 2)"]
    # The same folder takes the same models again, and no others.
    assert call(capsys, *flags)[0] == 0
    code, printed = call(capsys, "--lmms_eval_logs", LOGS / "base", "--output_dir", tmp_path / "out")
    assert code == 2 and "results of another benchmark, with the variants tuned" in printed


def test_one_model_alone(scenes, capsys):
    code, printed = call(capsys, "--lmms_eval_logs", scenes / "tuned", "--output_dir", scenes / "out")
    assert code == 0 and "Tuned was scored on 16 documents" in printed
    assert json.loads((scenes / "out" / "metrics.json").read_text())["comparisons"] == []


def test_hostile_texts_stay_texts(scenes, capsys):
    hostile = "</script><script>window.hit = 1</script>\u202e{{ results }}"
    for name in ("base", "tuned"):
        file = next((scenes / name).glob("*.jsonl"))
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows[0] |= {"input": hostile, "filtered_resps": hostile, hostile: 1.0}
        file.write_text("".join(json.dumps(row | {hostile: 0.5}) + "\n" for row in rows))
    code, printed = call(capsys, "--lmms_eval_logs", scenes / "base", scenes / "tuned", "--output_dir", scenes / "out")
    page = (scenes / "out" / "report.html").read_text()
    assert code == 0 and "<script>window" not in page and "\u202e" not in page + printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "cobra-tiny"], "has no use for --checkpoint"),
        (["--task", "llava-cot", "--max_images", "3"], "has no use for --task, --max_images"),
    ],
)
def test_flags_of_models_are_refused(tmp_path, capsys, flags, message):
    code, printed = call(capsys, "--lmms_eval_logs", LOGS / "base", *flags, "--output_dir", tmp_path / "out")
    assert code == 2 and message in printed and not (tmp_path / "out").exists()


def test_a_task_without_numbers(scenes, capsys):
    for name in ("base", "tuned"):
        file = next((scenes / name).glob("*.jsonl"))
        known = ("doc_id", "target", "filtered_resps", "input")
        rows = [{key: json.loads(line)[key] for key in known} | {"bleu": ["a", "b"]} for line in file.open()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, printed = call(capsys, "--lmms_eval_logs", scenes / "base", scenes / "tuned", "--output_dir", scenes / "out")
    assert code == 2 and "scenes have no metric with a number for each document: bleu" in printed
