"""What is counted of the rows, and how it is written and shown."""

import io
import json
import random

import pytest
from rich.console import Console
from small_publication import ANSWER, turns

from cobra.preprocessing.archives import Refusal
from cobra.preprocessing.datasets.rows import Defect
from cobra.preprocessing.llava_cot.archive.unpack import Unpacked
from cobra.preprocessing.llava_cot.report.counts import Report
from cobra.preprocessing.llava_cot.report.token_counts import MAX_SOURCES, OTHER
from cobra.preprocessing.llava_cot.rows.raw_row import Row
from cobra.util.files import write_json

FULL = ANSWER.format("red", "red", "A")


def row(number, image="coco/train2017/{:012d}.jpg", answers=(FULL,), dropped=False):
    texts = [text for answer in answers for text in (f"Question {number}?", answer)]
    return Row(number, None if image is None else image.format(number), turns(*texts), dropped)


def rejected(line=1, row_id: object = "id", reason="reason"):
    return {"line": line, "id": row_id, "reason": reason}


def printed(report, width=120):
    stream = io.StringIO()
    report.show(Console(file=stream, width=width))
    return stream.getvalue()


def test_rows_are_counted_where_they_went():
    report = Report(rows_read=9)
    report.count_row(row(1), "coco")
    report.count_row(row(2, "vg/VG_100K/{}.jpg", [FULL, "B"], dropped=True), "vg")
    report.count_row(row(3, None, [FULL.removesuffix("</CONCLUSION>")]), "(text only)", held_out=True)
    report.count_row(row(4), "coco", held_out=True)
    report.count_left_out("sqa")
    report.count_rejected(Defect.DUPLICATE, "coco", rejected())
    report.count_rejected(Defect.DUPLICATE, "coco", rejected())
    report.count_rejected(Defect.NO_ANSWER, "coco", rejected())
    report.count_rejected(Defect.MALFORMED, "(malformed line)", rejected())
    saved = report.to_json()
    assert (saved["rows_read"], saved["rows_written"], saved["rows_held_out"], saved["dropped_turns"]) == (9, 2, 2, 1)
    assert saved["written_by_source"] == {"coco": 1, "vg": 1}
    assert saved["held_out_by_source"] == {"(text only)": 1, "coco": 1}
    assert saved["rejected_by_source"] == {"(malformed line)": 1, "coco": 3}
    assert saved["rejected"] == {"duplicate": 2, "malformed line": 1, "no answer": 1}
    assert saved["left_out"] == {"sqa": 1}
    # Answers of training and held-out rows together, COCO's images of training rows only.
    assert saved["turns"] == {"1": 3, "2": 1}
    assert (saved["answers"], saved["valid_answers"], saved["untagged_answers"]) == (5, 3, 1)
    assert saved["form_problems"] == {"unclosed stage": 1}
    assert saved["coco_ids"] == {"train2017": 1, "val2017": 0} and report.coco.ids()["train2017"] == [1]
    assert saved["visual_genome_rows"] == 1
    assert saved["tokens"] is None and saved["tokens_missing"] and saved["archive"] is None
    # 2 of the 7 rows that are no duplicates.
    assert report.rejected_share == pytest.approx(2 / 7)


def test_rejected_share_of_nothing_and_of_duplicates_only_is_zero():
    report = Report()
    assert report.rejected_share == 0
    report.rows_read = 1
    report.count_rejected(Defect.DUPLICATE, "coco", rejected())
    assert report.rejected_share == 0


def test_sources_of_rows_are_kept_in_their_order():
    report = Report()
    for number, (source, held_out) in enumerate([("b", False), ("a", False), ("b", True), ("b", False)]):
        report.count_row(row(number), source, held_out)
    names = report.sources.names
    assert [names[index] for index in report.sources.of_rows(False)] == ["b", "a", "b"]
    assert [names[index] for index in report.sources.of_rows(True)] == ["b"]


def test_number_and_length_of_source_names_is_bounded():
    report = Report()
    for number in range(MAX_SOURCES + 50):
        report.count_rejected(Defect.NO_ANSWER, f"source {number}", rejected())
    report.count_rejected(Defect.NO_ANSWER, "source 0", rejected())
    assert len(report.rejected_by_source) == MAX_SOURCES + 1
    assert report.rejected_by_source[OTHER] == 50 and report.rejected_by_source["source 0"] == 2
    assert "more" in printed(report) and len(printed(report).splitlines()) < 100
    long = Report()
    long.count_rejected(Defect.NO_ANSWER, "x" * 10**6, rejected())
    assert len(next(iter(long.rejected_by_source))) < 100


def test_hostile_names_are_written_and_printed_as_text(tmp_path):
    report = Report(archive=Unpacked("", 0, 0, 0, [Refusal("a[/red]\x1b[2J\u202e", "reason [/bold]")]))
    for source in ("[/red]", "[bold]b[/bold]", "\ud800", "\u202eturned", "bell\x07\x1b[2J"):
        report.count_rejected(Defect.BAD_IMAGE_PATH, source, rejected(row_id="\ud800", reason="\udfff"))
    write_json(tmp_path / "report.json", report.to_json())
    names = set(json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["rejected_by_source"])
    assert names == {"[/red]", "[bold]b[/bold]", "\\ud800", "\\u202eturned", "bell\\u0007\\u001b[2J"}
    text = printed(report)
    assert "[/red]" in text and "[bold]b[/bold]" in text
    assert "\x1b" not in text and "\u202e" not in text and "\x07" not in text


def test_tables_name_what_is_odd_and_the_licence_once():
    report = Report(rows_read=3, duplicate_ids=4, missing_images=5, unreadable_images=6)
    report.count_row(row(1), "coco")
    report.count_rejected(Defect.NO_ANSWER, "sqa", rejected())
    text = printed(report)
    for expected in ("training", "held out", "left out", "no answer 1", "same id 4", "missing 5; unreadable 6"):
        assert expected in text, expected
    assert "COCO train2017 1" in text and "val2017" not in text
    assert "not known, they were not counted" in text and "prepare_llava_cot.py" in text
    assert text.count("apache-2.0") == 1


def numbered(numbers, source):
    report = Report()
    for number in numbers:
        report.count_row(row(number), source)
    return [sample.row_id for sample in report.samples.of_source(source)]


def test_samples_depend_on_their_sources_rows_alone_and_not_on_the_order():
    first = numbered(range(100), "coco")
    assert len(set(first)) == 2 and first != ["0", "1"]
    shuffled = list(range(100))
    random.Random(3).shuffle(shuffled)
    assert numbered(shuffled, "coco") == first
    report = Report()
    for number in range(100):
        report.count_row(row(number), "coco")
        report.count_row(row(number + 1000, "sqa/{}.png"), "sqa")
        report.count_row(row(number + 2000), "coco", held_out=True)
    assert [sample.row_id for sample in report.samples.of_source("coco")] == first


def test_samples_are_cut_and_say_what_is_wrong():
    report = Report()
    answers = ["no tags " * 10_000, FULL.replace("<CAPTION> A red square. </CAPTION>", ""), FULL, FULL, FULL]
    report.count_row(row(1, answers=answers), "coco")
    [sample] = report.samples.of_source("coco")
    assert (len(sample.answers), sample.more, sample.row_id) == (3, 2, "1")
    untagged, faulty, whole = sample.answers
    assert untagged.stages == untagged.faults == [] and len(untagged.text) < 2000 and untagged.text.endswith("...")
    assert [stage for stage, _ in faulty.stages] == ["summary", "reasoning", "conclusion"]
    assert faulty.faults == ["without CAPTION"] and not whole.faults
    assert whole.stages[3] == ("conclusion", "A")


def test_few_rejected_rows_of_each_defect_are_kept():
    report = Report()
    for line in range(1, 10):
        report.count_rejected(Defect.NO_ANSWER, "coco", rejected(line, None, "x" * 10**5))
        report.count_rejected(Defect.BAD_TURN, "coco", rejected(line, 10**300, "y"))
    kept = report.samples.rejected
    assert [found.line for found in kept["no answer"]] == [1, 2, 3, 4, 5] and kept["no answer"][0].row_id == ""
    assert all(len(found.reason) < 250 and len(found.row_id) < 250 for rows in kept.values() for found in rows)


def test_equal_rows_give_equal_json_whatever_was_unpacked_now():
    made = []
    for new in (0, 7):
        report = Report(archive=Unpacked("images/", 7, new, 1, [Refusal(f"m{n}", "r") for n in range(150)]))
        report.count_row(row(1), "coco")
        made.append(json.dumps(report.to_json()))
    assert made[0] == made[1]
    archive = json.loads(made[0])["archive"]
    assert archive["refused_members"] == 150 and len(archive["refused"]) == 100
