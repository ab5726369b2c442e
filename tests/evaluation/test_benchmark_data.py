"""benchmark.py on odd data: unreadable images, lacking predictions, training images, instances, other forms, rows."""

import json
import re
from pathlib import Path

import pytest
from html_page import HtmlPage
from test_benchmark import data, main, models, script  # noqa: F401 - fixtures

from cobra.evaluation.metrics import chair

SYNONYMS = Path(chair.__file__).with_name("coco_synonyms.json")
STAGES = "<SUMMARY> s </SUMMARY>\n<CAPTION> c </CAPTION>\n<REASONING> r </REASONING>\n<CONCLUSION> {} </CONCLUSION>"


def metrics_of(out) -> dict:
    return json.loads((out / "metrics.json").read_text())


def test_an_unreadable_image_is_scored_as_empty_and_counted(main, captions):  # noqa: F811
    path = captions.image_dir / "val" / "2.png"
    path.write_bytes(path.read_bytes()[:40])
    code, out, printed = main("--checkpoint", "stock", *data(captions))
    assert code == 0 and "2.png" in printed
    assert list(metrics_of(out)["unreadable"]) == ["98"]
    rows = {row["image_id"]: row["caption"] for row in json.loads((out / "predictions" / "baseline.json").read_text())}
    assert len(rows) == 6 and [image_id for image_id, caption in rows.items() if not caption] == [98]


def test_lacking_predictions_are_refused_or_left_out(main, captions):  # noqa: F811
    rows = json.loads(captions.predictions.read_text())
    captions.predictions.write_text(json.dumps(rows[1:]))
    flags = ("--predictions", captions.predictions, "--coco_annotations", captions.annotations)
    code, out, printed = main(*flags)
    assert code == 2 and "--allow_missing" in printed and not (out / "metrics.json").exists()
    code, out, printed = main(*flags, "--allow_missing", "true")
    assert code == 0 and "left out: 100" in printed
    assert metrics_of(out)["n"] == 5 and metrics_of(out)["predictions"]["missing"] == [100]


@pytest.fixture
def photos(captions):
    """The images under the names of photos of COCO, numbers 95 to 100."""
    content = json.loads(captions.annotations.read_text())
    for image in content["images"]:
        name = f"{image['id']:012d}.jpg"
        (captions.image_dir / image["file_name"]).rename(captions.image_dir / name)
        image["file_name"] = name
    captions.annotations.write_text(json.dumps(content))
    return captions


def test_overlap_is_reported_always_and_excluded_on_request(main, photos, tmp_path):  # noqa: F811
    rows = tmp_path / "coco_ids.json"
    rows.write_text(json.dumps({"train2017": [97, 99, 5], "val2017": []}))
    flags = ("--predictions", photos.predictions, "--coco_annotations", photos.annotations)
    code, out, printed = main(*flags)
    assert code == 0 and "Overlap with the training images: not known" in printed
    code, out, printed = main(*flags, "--exclude_ids", rows)
    assert code == 0 and "2 of 6 images (33.3%), which were left out" in printed
    found = metrics_of(out)
    assert found["n"] == 4 and found["overlap"]["image_ids"] == [99, 97] and found["overlap"]["excluded"]


def test_overlap_is_found_where_the_run_had_its_data(main, models, photos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "elsewhere" / "download" / "llava-cot-100k"
    folder.mkdir(parents=True)
    (folder / "coco_ids.json").write_text(json.dumps({"train2017": [97], "val2017": []}))
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "config.json").write_text(json.dumps({"dataset": {"dataset_root_dir": "elsewhere"}}))
    code, out, printed = main("--checkpoint", "tuned", *data(photos))
    assert code == 0 and "1 of 6 images (16.7%) (--exclude_ids leaves them out)" in printed
    assert metrics_of(out)["n"] == 6 and metrics_of(out)["overlap"]["image_ids"] == [97]


def test_objects_that_are_not_there(main, captions, tmp_path):  # noqa: F811
    instances = tmp_path / "instances.json"
    ids = [{"id": image.image_id} for image in captions.images]
    names = json.loads(SYNONYMS.read_text())["categories"]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    content = {"images": ids, "categories": categories, "annotations": []}
    instances.write_text(json.dumps(content))
    rows = [{"image_id": image.image_id, "caption": "A dog."} for image in captions.images]
    captions.predictions.write_text(json.dumps(rows))
    flags = ("--predictions", captions.predictions, "--coco_annotations", captions.annotations)
    code, out, _ = main(*flags, "--coco_instances", instances)
    assert code == 0 and metrics_of(out)["variants"]["predictions"]["chair_s"]["value"] == 1


def test_a_folder_with_its_captions_needs_no_image_dir(main, captions):  # noqa: F811
    named = {image.file_name: list(image.references) for image in captions.images}
    (captions.image_dir / "captions.json").write_text(json.dumps(named))
    code, out, _ = main("--checkpoint", "stock", "--coco_annotations", captions.image_dir)
    assert code == 0 and metrics_of(out)["annotations"]["form"] == "captions by file name"


@pytest.fixture
def holdout(captions):
    """Rows that ask for the colour; the answers of two are others than the model gives."""
    rows = []
    for number, image in enumerate(captions.images):
        colour = image.references[0].split()[1]
        truth = f"A {colour} square." if number < 4 else "Nothing at all."
        turns = [
            {"from": "human", "value": f"<image>\nWhich square is number {number}?"},
            {"from": "gpt", "value": STAGES.format(truth)},
        ]
        rows.append({"id": str(number), "image": image.file_name, "conversations": turns})
    path = captions.image_dir / "holdout.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.fault("E11")
def test_conclusions_of_held_out_rows(main, models, holdout):  # noqa: F811
    flags = ("--task", "llava-cot", "--llava_cot_annotations", holdout)
    code, out, printed = main("--checkpoint", "tuned", "--baseline_checkpoint", "stock", *flags)
    assert code == 0, printed
    found = metrics_of(out)
    accuracy = {name: row["conclusion_accuracy"]["value"] for name, row in found["variants"].items()}
    # With an analysis the model says where the square is.
    right = {"baseline": 4 / 6, "baseline+scratchpad": 0, "finetuned": 4 / 6, "finetuned+scratchpad": 0}
    assert accuracy == pytest.approx(right)
    assert found["conclusions"]["finetuned"]["found"] == {"conclusion": 6, "text": 0, "nothing": 0}
    # A table by source says nothing of one source.
    assert "Right conclusions by source" not in printed and "n:6" in found["signature"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert printed.count("Conclusions on 6 questions") == 1 and "Which square is number 1?" in printed
    shown = HtmlPage(re.sub("<(style|script|pre)[ >].*?</\\1>", "", page, flags=re.S)).words()
    for text in (printed, shown):
        assert not re.search("[Cc]aption|BLEU|CIDEr|human", text)
    assert shown.count("\u2713 right") > 0 and shown.count("\u2717 wrong") > 0
    verdicts = [json.loads(line) for line in (out / "verdicts" / "finetuned.jsonl").read_text().splitlines()]
    assert [verdict["match"] is None for verdict in verdicts] == [False] * 4 + [True] * 2
    answers = [json.loads(line) for line in (out / "answers" / "baseline.jsonl").read_text().splitlines()]
    assert [answer["prompt"] for answer in answers] == [f"Which square is number {number}?" for number in range(6)]
    assert (out / "report.html").is_file()


def test_other_questions_never_get_old_answers(main, models, holdout):  # noqa: F811
    flags = ("--checkpoint", "tuned", "--task", "llava-cot", "--llava_cot_annotations", holdout)
    assert main(*flags)[0] == 0
    asked = len(models["tuned"].calls)
    assert main(*flags)[0] == 0 and len(models["tuned"].calls) == asked
    holdout.write_text(holdout.read_text().replace("Which", "What"))
    assert main(*flags)[0] == 0 and len(models["tuned"].calls) == 2 * asked


def test_a_question_that_would_be_cut_is_refused(main, models, holdout):  # noqa: F811
    holdout.write_text(holdout.read_text().replace("number 3", "number 3 " * 300))
    flags = ("--task", "llava-cot", "--llava_cot_annotations", holdout)
    code, _, printed = main("--checkpoint", "tuned", *flags)
    assert code == 2 and "the question" in printed and "too long" in printed and models["tuned"].calls == []
