import io
import json
import zipfile
from collections import Counter
from pathlib import PurePosixPath

import pytest
from PIL import Image

from cobra.demo.captions import canonical_caption
from cobra.demo.datasets import write_caption_rows, write_coco_captions, write_llava_cot, write_question_rows
from cobra.demo.questions import CAPTION_PROMPTS, KINDS
from cobra.evaluation.data.caption_set import read_caption_set
from cobra.preprocessing.llava_cot import PrepareConfig, prepare
from cobra.reasoning.trace import extract_reasoning_trace

ROWS = 150


@pytest.fixture(scope="module")
def cot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "download" / "llava-cot-100k"
    return folder, write_llava_cot(folder, ROWS, seed=1)


def joined_zip(summary):
    return zipfile.ZipFile(io.BytesIO(b"".join(part.read_bytes() for part in summary.parts)))


def read_rows(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def test_the_parts_join_to_a_zip_whose_members_the_rows_name(cot):
    folder, summary = cot
    assert [part.name for part in summary.parts] == ["image.zip.part-aa", "image.zip.part-ab", "image.zip.part-ac"]
    members = joined_zip(summary)
    rows = read_rows(folder)
    assert len(rows) == summary.rows == ROWS + summary.defects["duplicate row"]
    assert len(members.namelist()) == summary.images == len(set(members.namelist()))
    named = {row["image"] for row in rows}
    assert len(named - set(members.namelist())) == summary.defects["missing image"]
    assert set(members.namelist()) <= named
    # Each part alone is no zip: cuts lie within members.
    assert not any(zipfile.is_zipfile(part) for part in summary.parts[:2])


def test_image_bytes_are_of_the_format_that_their_name_says(cot):
    _, summary = cot
    members = joined_zip(summary)
    broken = 0
    for name in members.namelist():
        try:
            with Image.open(io.BytesIO(members.read(name))) as image:
                image.load()
                assert image.format == {".png": "PNG", ".jpg": "JPEG"}[PurePosixPath(name).suffix]
                assert image.size == (48, 48)
        except OSError:
            broken += 1
    assert broken == summary.defects["unreadable image"]


def test_rows_have_the_known_defects_as_often_as_the_summary_says(cot):
    folder, summary = cot
    rows = read_rows(folder)
    unique = list({json.dumps(row): row for row in rows}.values())
    assert len(rows) - len(unique) == summary.defects["duplicate row"]
    assert sum(len(row["conversations"]) % 2 for row in unique) == summary.defects["dangling turn"]
    answers = [turn["value"] for row in unique for turn in row["conversations"] if turn["from"] == "gpt"]
    traces = [extract_reasoning_trace(answer) for answer in answers]
    assert sum(trace.summary is None for trace in traces) == summary.defects["untagged answer"]
    assert (
        sum("</CONCLUSION>" not in answer and "<CONCLUSION>" in answer for answer in answers)
        == (summary.defects["unclosed conclusion"])
    )
    assert sum("<image>" in row["conversations"][0]["value"] for row in unique) == summary.defects["surviving <image>"]
    assert {type(row["id"]) for row in unique} == {int, str}


def test_prepare_reads_the_published_form_and_reports_its_defects(cot):
    folder, summary = cot
    report = prepare(PrepareConfig(folder.parents[1], download=False))
    rows = json.loads((folder / "llava_cot_100k.json").read_text())
    assert len(rows) == report.rows_written
    rejected = summary.defects["missing image"] + summary.defects["unreadable image"]
    assert report.rows_written <= summary.rows - rejected
    assert report.rows_written >= summary.rows - sum(summary.defects.values())
    for row in rows:
        assert (folder / row["image"]).is_file()
        assert len(row["conversations"]) % 2 == 0


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_llava_cot(tmp_path / name, 60, seed=3)
    write_llava_cot(tmp_path / "c", 60, seed=4)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["image.zip.part-aa", "image.zip.part-ab", "image.zip.part-ac", "train.jsonl"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "train.jsonl").read_bytes() != (tmp_path / "c" / "train.jsonl").read_bytes()


def test_coco_captions_are_read_by_the_benchmark_and_apart_from_training_ids(tmp_path, cot):
    annotations, images = write_coco_captions(tmp_path, 12, seed=2)
    read = read_caption_set(annotations).images
    assert len(read) == 12
    content = json.loads(annotations.read_text())
    assert all((images / entry["file_name"]).is_file() for entry in content["images"])
    assert Counter(entry["image_id"] for entry in content["annotations"]) == dict.fromkeys(range(1, 13), 5)
    trained = {int(PurePosixPath(row["image"]).stem) for row in read_rows(cot[0]) if row["image"].startswith("coco/")}
    assert trained and not trained & {entry["id"] for entry in content["images"]}


def test_caption_rows_hold_plain_canonical_captions(tmp_path):
    path, images = write_caption_rows(tmp_path, 30, seed=2, max_objects=1)
    rows = json.loads(path.read_text())
    assert len(rows) == 30
    for row in rows:
        question, answer = (turn["value"] for turn in row["conversations"])
        assert question in CAPTION_PROMPTS
        assert answer.startswith("A ") and " at the " in answer
        assert (images / row["image"]).is_file()


def test_a_share_of_caption_rows_asks_where_things_are(tmp_path):
    path, _ = write_caption_rows(tmp_path, 100, seed=2, places_share=0.6)
    questions = [row["conversations"][0]["value"] for row in json.loads(path.read_text())]
    assert 40 <= sum(question not in CAPTION_PROMPTS for question in questions) <= 80


def test_training_rows_ask_twice_as_often_for_relations_and_seldom_a_second_time(tmp_path):
    write_llava_cot(tmp_path, 700, seed=1)
    rows = read_rows(tmp_path)
    second = [row for row in rows if len(row["conversations"]) == 4]
    assert 1 <= len(second) <= 25
    compared = sum("I compare" in row["conversations"][1]["value"] for row in rows)
    assert 0.5 < compared / len(rows) < 0.7


def test_question_rows_hold_every_kind_equally_often(tmp_path):
    path, images = write_question_rows(tmp_path, 2 * len(KINDS), seed=2)
    rows = json.loads(path.read_text())
    assert Counter(row["kind"] for row in rows) == dict.fromkeys(KINDS, 2)
    for row in rows:
        trace = extract_reasoning_trace(row["conversations"][1]["value"])
        assert trace.is_valid
        assert bool(row["options"]) == (row["kind"] == "which")
        assert (images / row["image"]).is_file()


def test_evaluation_scenes_are_never_training_scenes(tmp_path, monkeypatch):
    seen = {"train": set(), "held-out": set()}

    def spy(scene):
        seen[scene.split].add(scene.content)
        return canonical_caption(scene)

    monkeypatch.setattr("cobra.demo.questions.canonical_caption", spy)
    monkeypatch.setattr("cobra.demo.datasets.canonical_caption", spy)
    write_llava_cot(tmp_path / "cot", 100, seed=1)
    write_caption_rows(tmp_path / "captions", 100, seed=1)
    assert len(seen["train"]) > 100 and not seen["held-out"]
    train = set(seen["train"])
    write_question_rows(tmp_path / "questions", 50, seed=1)
    assert seen["train"] == train and len(seen["held-out"]) > 30
