"""The table and the files of a benchmark."""

import io
import json

import pytest
from rich.console import Console

from cobra.evaluation.coco import CaptionedImage
from cobra.evaluation.protocol import Answer
from cobra.evaluation.report import VariantResult, prepare_output, print_results, print_samples, write_results
from cobra.evaluation.scoring import CaptionScorer
from cobra.util.errors import UserError

IMAGES = [
    CaptionedImage(1, "a.png", ("A red square on a wall.", "There is a red square.")),
    CaptionedImage("two", "b.png", ("A blue circle.",)),
]
RAW = "<CONCLUSION> a red square on a wall </CONCLUSION>"
ANSWERS = [
    Answer(1, "Caption?", RAW, "a red square on a wall", "conclusion", False),
    Answer("two", "Caption?", "a blue circle", "a blue circle", "text", False, "analysis"),
]


def result():
    scored = [answer.scored for answer in ANSWERS]
    metrics = CaptionScorer(IMAGES, None).score_answers(ANSWERS)
    return VariantResult(scored, {name: float(metric.corpus()) for name, metric in metrics.items()}, ANSWERS)


def screen(function, *arguments):
    console = Console(file=io.StringIO(), width=120)
    function(console, *arguments)
    return console.file.getvalue()


def test_the_table_states_n_and_scores_times_100():
    file_result = VariantResult(["x", "y"], {"bleu_1": 0.1234})
    text = screen(print_results, IMAGES, {"finetuned+scratchpad": result(), "predictions": file_result})
    rows = [line.strip("\u2502 ").split("\u2502") for line in text.splitlines() if line.startswith("\u2502")]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert "2 images" in text and "+-26.2" in text and "+scratchpad" in text
    assert cells["BLEU-1"] == ["100.0", "12.3"] and cells["without CONCLUSION"] == ["50.0", "-"]
    assert not any("similarity" in label for label in cells)


def test_four_variants_fit_a_narrow_screen():
    names = ["baseline", "baseline+scratchpad", "finetuned", "finetuned+scratchpad"]
    console = Console(file=io.StringIO(), width=80)
    print_results(console, IMAGES, dict.fromkeys(names, result()))
    assert "\u2026" not in console.file.getvalue() and "four valid stages" in console.file.getvalue()


def test_samples_are_taken_literally():
    captions = ["[bold]not markup[/bold] \x1b[2J\x07", "x" * 1000]
    text = screen(print_samples, IMAGES, {"predictions": VariantResult(captions, {})})
    assert "[bold]not markup[/bold]" in text and "\x1b" not in text and "\x07" not in text
    assert len(text) < 900 and "A blue circle." in text


def test_files_in_the_forms_that_others_read(tmp_path):
    prepare_output(tmp_path, ["finetuned"])
    write_results(tmp_path, IMAGES, {"finetuned": result()}, {"prompt_sha256": "abc"})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["n"], metrics["prompt_sha256"]) == (2, "abc")
    assert metrics["variants"]["finetuned"]["bleu_4"]["value"] == result().metrics["bleu_4"]
    assert json.loads((tmp_path / "predictions" / "finetuned.json").read_text()) == [
        {"image_id": 1, "caption": "a red square on a wall"},
        {"image_id": "two", "caption": "a blue circle"},
    ]
    lines = [json.loads(line) for line in (tmp_path / "answers" / "finetuned.jsonl").read_text().splitlines()]
    assert [(line["image_id"], line["raw"], line["analysis"]) for line in lines] == [
        (1, RAW, None),
        ("two", "a blue circle", "analysis"),
    ]


def test_files_change_together_or_not_at_all(tmp_path):
    write_results(tmp_path, IMAGES, {"finetuned": result()}, {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    broken = VariantResult(["\ud83d", "y"], {"bleu_1": 0.5}, ANSWERS)
    with pytest.raises(UnicodeEncodeError):
        write_results(tmp_path, IMAGES, {"baseline": result(), "finetuned": broken}, {})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output_dir .*file cannot be written to"):
        prepare_output(tmp_path / "file", ["baseline"])
    with pytest.raises(UserError, match="cannot be written to"):
        prepare_output(tmp_path / "file" / "below", ["baseline"])


def test_variants_of_another_benchmark_are_not_mixed_in(tmp_path):
    write_results(tmp_path, IMAGES, {"finetuned": result()}, {})
    prepare_output(tmp_path, ["baseline", "finetuned"])
    with pytest.raises(UserError, match="with the variants finetuned, which"):
        prepare_output(tmp_path, ["baseline"])
