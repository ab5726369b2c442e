"""`cobra-vlm check`: what it counts is what is in the data, and it fits a screen."""

import json
import shlex
from collections import Counter

import pytest
from example_rows import PAIR, TEXT_PAIR
from PIL import Image

from cobra.check.config import CheckConfig
from cobra.check.overlap import EvaluationOverlap
from cobra.check.pictures import Pictures
from cobra.check.report import CheckReport
from cobra.check.sift import Sifted
from cobra.check.texts import Lengths, Texts
from cobra.commands import check
from cobra.doctor.finding import print_findings
from cobra.preprocessing.datasets.other_forms import Form
from cobra.preprocessing.datasets.rows import Defect
from cobra.training.config import PretrainConfig
from cobra.util.cli import parse
from cobra.util.errors import UserError

STAGES = (
    "<SUMMARY> a </SUMMARY>\n\n<CAPTION> b </CAPTION>\n\n<REASONING> c </REASONING>\n\n<CONCLUSION> {} </CONCLUSION>"
)


def asked(answer, **row):
    return row | {"conversations": [PAIR[0] if "image" in row else TEXT_PAIR[0], {"from": "gpt", "value": answer}]}


@pytest.fixture
def my(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.new("RGB", (48 + number, 40), (number * 60, 0, 0)).save(images / f"{number}.png")
    (images / "same.png").write_bytes((images / "0.png").read_bytes())
    Image.new("L", (30, 90)).save(images / "grey.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(images / "turned.jpg", exif=exif)
    rows = [
        asked(STAGES.format("d"), id=0, image="0.png"),
        asked(STAGES.format("d"), id=1, image="same.png"),
        asked(STAGES.format("d").replace("</REASONING>", ""), id=2, image="grey.jpg"),
        asked("A cat.<|endoftext|>", id=3, image="1.png"),
        asked("A cat.", id=4, image="turned.jpg"),
        asked(STAGES.format("d " * 3000), id=5, image="2.png"),
        asked("Yes.", id=6),
        {"id": 7, "image": "2.png", "conversations": PAIR * 2},
    ]
    write(tmp_path, rows)
    return tmp_path


def write(folder, rows, name="rows.json"):
    (folder / name).write_text(json.dumps(rows))


def run(capsys, *arguments):
    code = check.main(parse(CheckConfig, list(map(str, arguments)), "data"))
    return code, capsys.readouterr().out


def report(capsys, *arguments):
    code, out = run(capsys, *arguments, "--json")
    return code, json.loads(out)


def test_what_is_in_good_data_is_counted(my, capsys):
    code, found = report(capsys, my)
    assert code == 0 and found["problems"] == 0
    assert (found["sifted"]["read"], found["sifted"]["taken"], found["with_image"]) == (8, 8, 7)
    texts = found["texts"]
    assert texts["turns"] == {"1": 7, "2": 1}
    assert (texts["answers"], texts["four_stages"], texts["some_stages"], texts["repeated"]) == (9, 3, 1, 1)
    pictures = found["pictures"]
    assert (pictures["files"], pictures["formats"]) == (6, {"PNG": 4, "JPEG": 2})
    assert (pictures["modes"], pictures["turned"], pictures["same_bytes"]) == ({"RGB": 5, "L": 1}, 1, 1)
    assert (pictures["smallest"], pictures["largest"]) == ([30, 90], [64, 48])
    lengths = found["lengths"]
    assert (lengths["tokenizer"], lengths["limit"], lengths["longer"]) == ("cobra-tiny", 2048, 1)
    assert lengths["conclusion_cut"] == 1 and lengths["unlabelled"] == 0 and lengths["longest"] > 2048
    assert any("hold <|endoftext|>" in remark for remark in found["remarks"])


def test_it_fits_a_screen_and_ends_with_the_command_that_trains(my, capsys):
    code, out = run(capsys, my)
    lines = out.splitlines()
    assert code == 0 and len(lines) <= 40 and lines[-1] == "no problem was found"
    [command] = [line.partition("-> ")[2] for line in lines if "--dataset.finetune_stage_components" in line]
    words = shlex.split(command)
    assert words[:2] == ["cobra-vlm", "train"] or words[0] == "python"
    config = parse(PretrainConfig, words[2:])
    assert config.dataset.components("finetune") == (my / "rows.json", my / "images")
    assert config.dataset.truncation == "drop" and config.model.finetune_global_batch_size == 4


def test_the_steps_are_those_of_the_plan(my, capsys):
    _, found = report(capsys, my, "--model", "cobra-tiny")
    forecast = found["forecast"]
    # Seven rows are left, six of them with an image: a batch is of one kind, and the last ones are filled.
    assert (forecast["rows"], forecast["batch"], forecast["steps_an_epoch"]) == (7, 4, 3)
    assert forecast["steps"] == 3 * forecast["epochs"]


def test_every_bad_row_and_image_is_named_and_writing_leaves_them_out(my, capsys):
    (my / "images" / "1.png").write_bytes(b"no picture")
    (my / "images" / "2.png").unlink()
    rows = json.loads((my / "rows.json").read_text())
    rows += [{"id": "empty", "conversations": []}, 5, {"id": "half", "conversations": TEXT_PAIR[:1]}]
    write(my, rows)
    code, out = run(capsys, my)
    assert code == 1 and "PROBLEM refused: 3 of 11 would be refused" in out
    assert "(id 'empty')" in out and "a question and no answer" in out and "row 9 of" in out
    assert "2 files of 3 rows missing, outside the folder or not to be read" in out
    assert "unreadable image: 1.png: it is" in out and "missing image: 2.png" in out
    assert "cobra-check-" not in out and f"//g' {my / 'rows.json'}" in out
    assert "cobra-vlm train" not in out and "scripts/pretrain.py" not in out
    code, out = run(capsys, my, "--write", my / "good.json")
    assert code == 0 and "3 of 11 are left out" in out and "note    images: 2 files" in out
    assert [row["id"] for row in json.loads((my / "good.json").read_text())] == [0, 1, 2, 4, 6]
    with pytest.raises(UserError, match="good.json is there already"):
        run(capsys, my, "--write", my / "good.json")


def test_the_worst_data_fit_a_screen(my, capsys):
    sifted = Sifted(100, 50, 10, Counter(dict.fromkeys(Defect, 5)), [f"row {number}" for number in range(30)])
    pictures = Pictures(my, 9, {f"{number}.png": "missing" for number in range(9)}, smallest=(1, 1), largest=(9, 9))
    pictures.turned = pictures.same_bytes = 1
    lengths = Lengths("cobra-tiny", 10, 20, 30, 40, 9, 9, 9)
    found = CheckReport(my, Form.TABLE, "cobra+3b", sifted, "a command", remarks=["a remark"] * 17, pictures=pictures)
    found.texts, found.lengths = Texts(Counter({1: 9, 2: 3}), 12, 1, 1, repeated=1), lengths
    found.overlaps, found.refusal = [EvaluationOverlap(my, 2, 1, 1)] * 2, "nothing can be learned"
    print_findings(found.findings())
    assert len(capsys.readouterr().out.splitlines()) <= 40


def test_rows_that_teach_nothing_are_a_problem(my, capsys):
    write(my, [asked(" ", image="0.png")])
    code, out = run(capsys, my)
    assert code == 1 and "nothing can be learned" in out


def test_rows_that_an_evaluation_has_are_counted(my, capsys):
    for name in ("000000000009.jpg", "000000000012.jpg"):
        (my / "images" / "val2017").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(my / "images" / "val2017" / name)
    write(my, [asked("a", image="val2017/000000000009.jpg"), asked("b", image="0.png")])
    names = ("000000000009.jpg", "000000000012.jpg")
    captions = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"image_id": number, "caption": "c"} for number in range(2)],
    }
    write(my, captions, "captions.json")
    write(my, [asked("b", image="same.png"), asked("x", image="1.png")], "holdout.json")
    code, found = report(
        capsys, my / "rows.json", "--coco_annotations", my / "captions.json", "--holdout", my / "holdout.json"
    )
    coco, holdout = found["overlaps"]
    assert code == 0
    assert (coco["images"], coco["seen_images"]) == (2, 1)
    # The same picture under another name, with the same question and answer.
    assert (holdout["images"], holdout["seen_images"], holdout["seen_rows"]) == (2, 1, 1)


def test_data_that_are_not_there_or_not_clear_are_refused(my, tmp_path_factory, capsys):
    empty = tmp_path_factory.mktemp("empty")
    for path, words in ((my / "none", "do not exist"), (empty, "holds neither rows nor images")):
        with pytest.raises(UserError, match=words):
            run(capsys, path)
    write(empty, [], "a.json")
    write(empty, [], "b.jsonl")
    with pytest.raises(UserError, match=r"several files .*a.json, b.jsonl\): name one"):
        run(capsys, empty)
    with pytest.raises(UserError, match="a.json is empty"):
        run(capsys, empty / "a.json")
    with pytest.raises(UserError, match="did you mean|Did you mean"):
        run(capsys, my, "--model", "cobra-tinny")
