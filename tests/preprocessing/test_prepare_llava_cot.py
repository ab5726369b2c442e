"""LLaVA-CoT-100k in its published form, made small, broken in known ways, and prepared."""

import io
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from small_publication import ANSWER, NAMES, Publication, annotation, picture, rejected, turns, write_parts

from cobra.conf.datasets import LLaVa_CoT_100k_Config
from cobra.preprocessing.datasets.rows import Defect, RowError
from cobra.preprocessing.llava_cot import PrepareConfig, prepare
from cobra.preprocessing.llava_cot import convert as converting
from cobra.preprocessing.llava_cot.archive import extract_worker as extracting
from cobra.preprocessing.llava_cot.archive import unpack as unpacking
from cobra.preprocessing.llava_cot.archive.joined_parts import JoinedParts, find_archive
from cobra.preprocessing.llava_cot.archive.unpack import find_prefix
from cobra.preprocessing.llava_cot.rows import image_checks as images
from cobra.preprocessing.llava_cot.rows import raw_row as rows
from cobra.preprocessing.llava_cot.rows.image_checks import ImageChecker
from cobra.preprocessing.llava_cot.rows.raw_row import check_row, parse_line, read_lines, sample_images
from cobra.preprocessing.llava_cot.rows.scan import scan_rows
from cobra.util.errors import UserError

SCRIPT = Path(__file__).parents[2] / "fine_tune" / "prepare_llava_cot.py"


@pytest.mark.parametrize("prefix", ["", "images/", "image_files/", "./", "a/b/images/"])
def test_parts_with_any_top_folder_become_rows_that_the_config_names(tmp_path, prefix):
    made = Publication()
    folder = made.write(tmp_path, prefix)
    report = prepare(PrepareConfig(tmp_path, download=False))
    assert report.rows_written == report.rows_read == 12
    assert report.archive.prefix == prefix.removeprefix("./")
    json_path, image_dir = (tmp_path / path for path in LLaVa_CoT_100k_Config().finetune_stage_components)
    output = json.loads(json_path.read_text())
    assert output == [json.loads(line) for line in made.lines]
    for row in output:
        assert (image_dir / row["image"]).read_bytes() == made.images[row["image"]]
    assert not (folder / "image.zip").exists(), "the joined archive was written"
    assert (folder / "train.jsonl").read_bytes().startswith(made.lines[0]), "a member replaced the rows"
    assert rejected(folder) == {}
    assert not list(folder.rglob("*.part")) and not list(folder.rglob("*.tmp"))


def test_whole_zip_without_parts(tmp_path):
    made = Publication()
    folder = made.write_rows(tmp_path)
    (folder / "image.zip").write_bytes(made.zip_bytes("images/"))
    assert prepare(PrepareConfig(tmp_path, download=False)).rows_written == 12


@pytest.mark.parametrize("below", ["", "images", "image_files", "images/images"])
def test_images_that_are_unpacked_already_are_used_where_they_lie(tmp_path, below):
    made = Publication()
    folder = made.write_unpacked(tmp_path, below)
    report = prepare(PrepareConfig(tmp_path, download=False))
    assert report.rows_written == 12 and report.archive is None
    assert all((folder / row["image"]).is_file() for row in annotation(folder))
    assert set(report.written_by_source) == {"sqa", "chartqa", "coco", "geoqa+"}


def test_archive_beside_unpacked_images_completes_them_in_their_folder(tmp_path):
    made = Publication()
    folder = made.write_unpacked(tmp_path, "images")
    lost = folder / "images" / NAMES[0].format(4)
    lost.unlink()
    (folder / "images" / NAMES[1].format(1)).write_bytes(b"cut short")
    write_parts(folder, made.zip_bytes(), 3)
    report = prepare(PrepareConfig(tmp_path, download=False))
    assert report.rows_written == 12 and report.archive.new == 2
    assert lost.is_file() and not (folder / "sqa").exists()


@pytest.mark.fault("C1")
def test_every_known_defect_is_counted_and_named(tmp_path):
    made = Publication()
    image = NAMES[0].format(0)
    good = turns("Q?", ANSWER.format("red", "red", "A"))
    made.images["sqa/train/900/image.png"] = picture("x.png", "red")[:300]
    made.images["sqa/train/901/image.png"] = b"not an image"
    expected = {}

    def add(defect, row=None, raw=None):
        expected[made.add(row, raw)] = defect

    add(Defect.MALFORMED, raw=b'{"id": 1, "image"')
    add(Defect.MALFORMED, raw=b'{"id": 1, "conversations": "\xff"}')
    add(Defect.MALFORMED, raw=b"[1, 2]")
    add(Defect.MALFORMED, raw=b"[" * 100_000)
    add(Defect.MALFORMED, {"id": 1, "image": image, "conversations": turns("Q?", "lone \ud800 surrogate")})
    add(Defect.MALFORMED, raw=json.dumps({"id": float("nan"), "image": image, "conversations": good}).encode())
    add(Defect.NO_CONVERSATIONS, {"id": 2, "image": image})
    add(Defect.NO_CONVERSATIONS, {"id": 2, "image": image, "conversations": []})
    add(Defect.NO_CONVERSATIONS, {"id": 2, "image": image, "conversations": "text"})
    add(Defect.BAD_TURN, {"id": 3, "image": image, "conversations": [*turns("Q?"), {"from": "gpt"}]})
    add(Defect.ROLE_ORDER, {"id": 4, "image": image, "conversations": list(reversed(good))})
    add(Defect.ROLE_ORDER, {"id": 4, "image": image, "conversations": [good[0], good[0], good[1]]})
    add(Defect.NO_ANSWER, {"id": 5, "image": image, "conversations": turns("only a question?")})
    add(Defect.NO_ANSWER, {"id": 5, "image": image, "conversations": turns("Q?", " \n")})
    too_long = ["x" * 256, "sqa/" + "\u00e9" * 128, "sqa/" + "x/" * 2500 + "1.png"]
    for path in (
        7,
        ["a.png", "b.png"],
        {"path": "a.png"},
        "../../outside.png",
        "/etc/passwd",
        "sqa/../../x.png",
        "sqa/\x00.png",
        *too_long,
    ):
        add(Defect.BAD_IMAGE_PATH, {"id": 6, "image": path, "conversations": good})
    add(Defect.MISSING_IMAGE, {"id": 7, "image": "sqa/train/999/image.png", "conversations": good})
    add(Defect.MISSING_IMAGE, {"id": 8, "image": "sqa/train/999/image.png", "conversations": good})
    add(Defect.UNREADABLE_IMAGE, {"id": "truncated", "image": "sqa/train/900/image.png", "conversations": good})
    add(Defect.UNREADABLE_IMAGE, {"id": "text", "image": "sqa/train/901/image.png", "conversations": good})
    expected[made.add(None, made.lines[2])] = Defect.DUPLICATE
    folder = made.write(tmp_path, "images/")
    report = prepare(PrepareConfig(tmp_path, download=False))
    found = rejected(folder)
    assert {line: entry["reason"].split(":")[0] for line, entry in found.items()} == expected
    assert found[max(found)]["id"] == 2 and "of line 3" in found[max(found)]["reason"]
    assert "900/image.png" in next(entry["reason"] for entry in found.values() if entry["id"] == "truncated")
    assert report.rows_written == 12 and report.rows_read == 12 + len(expected)
    assert sum(report.rejected.values()) == len(expected)
    assert report.rejected["malformed line"] == 6 and report.rejected["bad image path"] == 10
    assert (report.missing_images, report.unreadable_images) == (1, 2)
    saved = json.loads((folder / "report.json").read_text())
    assert saved["rejected"] == dict(sorted(report.rejected.items()))
    assert saved["rejected_by_source"]["sqa"] == report.rejected_by_source["sqa"] > 0


def test_rows_that_are_odd_but_usable_are_kept_as_they_are(tmp_path):
    made = Publication(4)
    image = NAMES[0].format(0)
    answer = ANSWER.format("red", "red", "A")
    dangling = turns("<image>\nQ?", answer, "And then?", "raw answer", "dangling?")
    made.add({"id": 0, "image": image, "width": 3, "conversations": dangling})
    made.add({"id": 0, "image": "./" + image, "conversations": turns("same id?", "\u00e9 <CONCLUSION> A")})
    made.add({"image": image, "conversations": turns("no id?", answer)})
    made.add({"id": "text", "conversations": turns("no image?", "no")})
    made.lines.insert(0, b"\xef\xbb\xbf  ")
    folder = made.write(tmp_path)
    report = prepare(PrepareConfig(tmp_path, download=False))
    output = annotation(folder)
    assert rejected(folder).keys() == {1}
    assert report.rows_written == 8 and report.dropped_turns == 1
    assert output[4] == {"id": 0, "image": image, "conversations": dangling[:-1]}
    assert output[5]["image"] == image and output[5]["conversations"][1]["value"] == "\u00e9 <CONCLUSION> A"
    assert output[6]["id"] == "line-8"
    assert output[7] == {"id": "text", "conversations": turns("no image?", "no")}
    assert report.turns == {1: 7, 2: 1}
    assert report.written_by_source["(text only)"] == 1


def test_report_counts_stages(tmp_path):
    made = Publication(4)
    image = NAMES[0].format(0)
    for number, answer in enumerate(
        [
            "B",
            "<CONCLUSION> B </CONCLUSION>",
            ANSWER.format("a", "a", "B").removesuffix("</CONCLUSION>"),
            "<CAPTION> c </CAPTION><SUMMARY> s </SUMMARY><REASONING> r </REASONING><CONCLUSION> B </CONCLUSION>",
        ]
    ):
        made.add({"id": number, "image": image, "conversations": turns("Q?", answer)})
    folder = made.write(tmp_path)
    report = prepare(PrepareConfig(tmp_path, download=False))
    assert (report.answers, report.valid_answers, report.untagged_answers) == (8, 4, 1)
    assert report.missing_stages == {"summary": 1, "caption": 1, "reasoning": 1}
    assert report.form_problems == {"unclosed stage": 1, "stage out of order": 1}
    saved = json.loads((folder / "report.json").read_text())
    assert saved["missing_stages"] == {"caption": 1, "reasoning": 1, "summary": 1}
    assert saved["archive"]["images"] == 4 and saved["turns"] == {"1": 8}
    stream = io.StringIO()
    report.show(Console(file=stream, width=100))
    text = stream.getvalue()
    assert "geoqa+" in text and "50.0%" in text and text.count("apache-2.0") == 1


def test_rerun_skips_what_is_done_and_gives_the_same(tmp_path, monkeypatch):
    made = Publication()
    made.add({"id": 1, "image": "sqa/none.png", "conversations": turns("Q?", "A")})
    made.images["sqa/bad.png"] = b"bad"
    made.add({"id": 1, "image": "sqa/bad.png", "conversations": turns("Q?", "A")})
    folder = made.write(tmp_path, "images/")
    prepare(PrepareConfig(tmp_path, download=False))
    outputs = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(images, "_check_image", lambda *args: pytest.fail("decoded again"))
    monkeypatch.setattr(extracting, "write_member", lambda *args: pytest.fail("unpacked again"))
    report = prepare(PrepareConfig(tmp_path, download=False))
    assert report.archive.new == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == outputs


def test_changed_image_is_decoded_again(tmp_path):
    made = Publication()
    folder = made.write_unpacked(tmp_path, "")
    prepare(PrepareConfig(tmp_path, download=False))
    (folder / NAMES[0].format(0)).write_bytes(b"broken by now")
    assert prepare(PrepareConfig(tmp_path, download=False)).unreadable_images == 1


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_interrupts_lose_nothing_that_is_done(tmp_path, monkeypatch, stop):
    made = Publication()
    undisturbed = made.write(tmp_path / "other", "images/")
    prepare(PrepareConfig(tmp_path / "other", download=False))
    folder = made.write(tmp_path, "images/")
    written, decoded = [], []
    write_member, decode = extracting.write_member, images._check_image

    def counted_write(source, target, size, advance):
        if len(written) == stop:
            written.append(None)
            raise KeyboardInterrupt
        write_member(source, target, size, advance)
        written.append(target)

    def counted_decode(row_images, path, mode):
        if len(decoded) == stop:
            decoded.append(None)
            raise KeyboardInterrupt
        decoded.append(path)
        return decode(row_images, path, mode)

    monkeypatch.setattr(extracting, "write_member", counted_write)
    monkeypatch.setattr(images, "_check_image", counted_decode)
    monkeypatch.setattr(images, "_CHUNK", 1)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare(PrepareConfig(tmp_path, download=False, num_workers=1))
        assert not (folder / "llava_cot_100k.json").exists()
    prepare(PrepareConfig(tmp_path, download=False, num_workers=1))
    assert len(written) == len(decoded) == len(made.images) + 1, "work was done twice"
    for name in ("llava_cot_100k.json", "rejected.jsonl", "report.json"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()


def test_torn_record_of_checked_images_costs_one_image(tmp_path, monkeypatch):
    made = Publication()
    folder = made.write_unpacked(tmp_path, "")
    prepare(PrepareConfig(tmp_path, download=False))
    record = folder / ".prepare" / "images.jsonl"
    record.write_bytes(record.read_bytes()[:-10])
    decode, decoded = images._check_image, []
    monkeypatch.setattr(
        images, "_check_image", lambda rows, path, mode: decoded.append(path) or decode(rows, path, mode)
    )
    prepare(PrepareConfig(tmp_path, download=False))
    assert len(decoded) == 1
    prepare(PrepareConfig(tmp_path, download=False))
    assert len(decoded) == 1


def test_nothing_usable_writes_no_annotation_and_exits_with_1(tmp_path):
    made = Publication(0)
    made.images[NAMES[0].format(0)] = b"broken"
    made.add({"id": 1, "image": NAMES[0].format(0), "conversations": turns("Q?", "A")})
    folder = made.write(tmp_path, parts=2)
    done = run_script(tmp_path)
    assert done.returncode == 1, done.stderr
    assert "no row is usable" in done.stdout
    assert not (folder / "llava_cot_100k.json").exists() and rejected(folder).keys() == {1}


def run_script(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), "--dataset_root", str(root), "--download", "false"]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_script_prepares_and_prints_the_licence_once(tmp_path):
    Publication().write(tmp_path)
    done = run_script(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ready: 12 rows in" in done.stdout and done.stdout.count("apache-2.0") == 1


def test_absent_files_are_named_with_the_command(tmp_path):
    fetch = f"python fine_tune/prepare_llava_cot.py --dataset_root {tmp_path}"
    done = run_script(tmp_path)
    assert done.returncode == 2 and "train.jsonl does not exist" in done.stderr and fetch in done.stderr
    made = Publication()
    folder = made.write_rows(tmp_path)
    with pytest.raises(UserError, match="image.zip.part-aa") as error:
        prepare(PrepareConfig(tmp_path, download=False))
    assert fetch in str(error.value)
    write_parts(folder, made.zip_bytes(), 5)
    (folder / "image.zip.part-ac").unlink()
    with pytest.raises(UserError, match="up to image.zip.part-ae, but image.zip.part-ac is missing"):
        prepare(PrepareConfig(tmp_path, download=False))
    (folder / "image.zip.part-ac.download").touch()
    with pytest.raises(UserError, match="image.zip.part-ac.download, which is no part"):
        prepare(PrepareConfig(tmp_path, download=False))


def test_parts_that_are_cut_short_are_named(tmp_path):
    folder = Publication().write(tmp_path)
    middle, last = folder / "image.zip.part-ac", folder / "image.zip.part-ae"
    content = middle.read_bytes()
    middle.write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"100 bytes are missing.*not image\.zip\.part-ac"):
        prepare(PrepareConfig(tmp_path, download=False))
    middle.write_bytes(content + b"x" * 7)
    with pytest.raises(UserError, match=r"7 bytes are too many.*not image\.zip\.part-ac"):
        prepare(PrepareConfig(tmp_path, download=False))
    middle.write_bytes(content)
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(UserError, match="the last part is cut short, or parts after it are missing"):
        prepare(PrepareConfig(tmp_path, download=False))


def test_damaged_member_is_named_with_its_part_and_costs_its_row_only(tmp_path):
    made = Publication()
    folder = made.write(tmp_path, "images/")
    victim = made.images[NAMES[3].format(7)]
    for path in sorted(folder.glob("image.zip.part-*")):
        content = bytearray(path.read_bytes())
        at = content.find(victim[40:140])
        if at >= 0:
            content[at + 50] ^= 255
            path.write_bytes(content)
            break
    else:
        # The pictures hold noise, so deflate stores them; the victim may lie across two parts.
        pytest.fail("no part holds the victim")
    report = prepare(PrepareConfig(tmp_path, download=False))
    assert [refusal.member for refusal in report.archive.damaged] == ["images/" + NAMES[3].format(7)]
    assert path.name in report.archive.damaged[0].reason
    assert report.rows_written == 11 and report.rejected == {"missing image": 1}


def test_hostile_members_are_left_out_and_named(tmp_path):
    made = Publication()
    folder = made.write_rows(tmp_path)
    buffer = io.BytesIO(made.zip_bytes("images/"))
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("images/../../../../evil.png", b"x")
        file.writestr("/evil.png", b"x")
        link = zipfile.ZipInfo("images/link.png")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    (folder / "image.zip").write_bytes(buffer.getvalue())
    report = prepare(PrepareConfig(tmp_path, download=False))
    assert len(report.archive.refused) == 3 and report.rows_written == 12
    assert not list(tmp_path.rglob("evil*")) and not list(tmp_path.rglob("link.png"))
    stream = io.StringIO()
    report.show(Console(file=stream, width=200))
    assert stream.getvalue().count("refused:") == 3


def test_archive_that_does_not_fit_the_rows_or_the_disk(tmp_path, monkeypatch):
    made = Publication()
    folder = made.write_rows(tmp_path)
    other = Publication(0)
    other.images["elsewhere/1.png"] = picture("1.png", "red")
    write_parts(folder, other.zip_bytes(), 2)
    with pytest.raises(UserError, match="none of the rows' images .* is in the archive"):
        prepare(PrepareConfig(tmp_path, download=False))
    write_parts(folder, made.zip_bytes(), 2)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="GB more"):
        prepare(PrepareConfig(tmp_path, download=False))
    assert not (folder / "sqa").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b'[\n {"id": 1},\n {"id": 2}\n]', "3 of its 4 lines are none, first line 1: malformed line: not JSON"),
        (b'[{"id": 1}, {"id": 2}]', "line 1: malformed line: a JSON list"),
        (b"\n\x89PNG\r\n", "line 2: malformed line: not UTF-8"),
    ],
)
def test_file_that_is_not_json_lines_is_an_error_with_its_line(tmp_path, content, reason):
    folder = tmp_path / "download" / "llava-cot-100k"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=f"is not JSON lines, .*{reason}"):
        prepare(PrepareConfig(tmp_path, download=False))
    assert sorted(path.name for path in folder.iterdir()) == [".prepare", "train.jsonl"]


def test_overlong_lines_are_passed_over_in_constant_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 100)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"{}\n" + b"y" * 1000 + b"\n" + b"z" * 100 + b"\n\n" + b"w" * 101)
    lines = list(read_lines(path))
    assert [(number, line) for number, _, line in lines] == [(1, b"{}"), (2, None), (3, b"z" * 100), (5, None)]
    assert sum(read for _, read, _ in lines) == path.stat().st_size - 1
    with pytest.raises(RowError, match="longer than"):
        parse_line(None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
wild_turns = st.lists(
    st.fixed_dictionaries(
        {}, optional={"from": st.sampled_from(["human", "gpt"]) | json_values, "value": st.text() | json_values}
    )
    | json_values,
    max_size=4,
)
wild_rows = st.fixed_dictionaries(
    {}, optional={"id": json_values, "image": st.text() | json_values, "conversations": wild_turns | json_values}
)


@settings(deadline=None)
@given(wild_rows)
def test_any_row_is_usable_or_rejected(value):
    try:
        row = check_row(value, 1)
    except RowError:
        return
    assert row.turns and len(row.turns) % 2 == 0
    assert [turn["from"] for turn in row.turns] == ["human", "gpt"] * (len(row.turns) // 2)
    assert all(answer.strip() for answer in row.answers)
    assert row.image is None or ".." not in row.image.split("/")


@settings(deadline=None)
@given(st.binary())
def test_any_line_is_parsed_or_rejected(line):
    try:
        assert isinstance(parse_line(line), dict)
    except RowError:
        pass


def test_sample_comes_from_the_whole_file(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"image": f"a/{number}.png"}) + "\n" for number in range(2000)))
    sample = sample_images(path, count=100)
    assert len(set(sample)) == 100
    numbers = sorted(int(image[2:-4]) for image in sample)
    assert numbers[0] < 200 and numbers[-1] > 1800
    assert sample == sample_images(path, count=100)


def test_prefix_is_that_of_most_rows():
    members = {f"images/a/{number}.png" for number in range(9)} | {"a/0.png", "x/images/a/1.png"}
    assert find_prefix(members, [f"a/{number}.png" for number in range(9)]) == "images/"
    assert find_prefix(members, ["b/0.png"]) is None
    # The first rows' images are missing, those of the others are there.
    assert find_prefix(members, [f"missing/{number}.png" for number in range(60)] + ["a/5.png"]) == "images/"


def test_only_formats_with_a_decoder_in_pillow_are_opened(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    checker = ImageChecker(tmp_path, tmp_path / "record.jsonl")
    for _ in range(2):
        checker.check(["x.png"])
        with pytest.raises(RowError, match="unreadable image: x.png: it is a PDF, PostScript"):
            checker.require_usable("x.png")
    assert checker.counts() == {Defect.UNREADABLE_IMAGE: 1}


cuts = st.lists(st.integers(0, 3000), max_size=8)
moves = st.lists(
    st.tuples(st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]), st.integers(-3500, 3500), st.integers(-1, 700))
)


@settings(deadline=None)
@given(cuts, moves, st.booleans())
def test_joined_parts_read_and_seek_like_one_file(tmp_path_factory, cuts, moves, buffered):
    content = random.Random(0).randbytes(3000)
    folder = tmp_path_factory.mktemp("parts")
    bounds = [0, *sorted(cuts), len(content)]
    paths = [folder / str(index) for index in range(len(bounds) - 1)]
    for path, start, end in zip(paths, bounds, bounds[1:], strict=False):
        path.write_bytes(content[start:end])
    expected = io.BytesIO(content)
    raw = JoinedParts(paths)
    with io.BufferedReader(raw, 64) if buffered else raw as joined:
        for whence, offset, count in moves:
            base = {os.SEEK_SET: 0, os.SEEK_CUR: expected.tell(), os.SEEK_END: len(content)}[whence]
            if base + offset >= 0:
                assert joined.seek(offset, whence) == expected.seek(base + offset)
            else:
                with pytest.raises((ValueError, OSError)):
                    joined.seek(offset, whence)
                joined.seek(expected.tell())
            got = joined.read(count)
            # A raw read may stop at the end of a part.
            assert got == expected.read(len(got)) and (
                not buffered or count < 0 or len(got) == count or not expected.read(1)
            )
            assert got or count == 0 or not expected.read(1)
            expected.seek(joined.tell())


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_zip64_is_read_across_any_cuts(tmp_path_factory, data):
    made = Publication(4)
    content = made.zip_bytes("images/")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), min_size=1, max_size=10)))
    folder = tmp_path_factory.mktemp("parts")
    for index, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(content)], strict=True)):
        (folder / f"image.zip.part-a{chr(97 + index)}").write_bytes(content[start:end])
    with zipfile.ZipFile(io.BufferedReader(JoinedParts(find_archive(folder)))) as file:
        assert file.testzip() is None
        assert {name: file.read("images/" + name) for name in made.images} == made.images


def test_part_that_shrinks_while_read_is_an_error(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100)
    with JoinedParts([tmp_path / "a"]) as joined:
        (tmp_path / "a").write_bytes(b"")
        with pytest.raises(OSError, match="has become shorter"):
            joined.read(10)


def test_memory_does_not_hold_the_rows(tmp_path):
    import tracemalloc

    made = Publication(1)
    image = NAMES[0].format(0)
    for number in range(3000):
        made.add(
            {"id": number, "image": image, "conversations": turns("Q?" * 500, ANSWER.format("a", "a", "B" * 1000))}
        )
    folder = made.write(tmp_path, parts=1)
    checker = ImageChecker(folder, folder / "record.jsonl")
    unpacking.unpack_images(folder, folder, [image])
    report = converting.Report()
    outputs = converting.Outputs(folder / "o.json", folder / "h.json", folder / "r.jsonl")
    tracemalloc.start()
    scan = scan_rows(folder / "train.jsonl", 7)
    fates = converting.decide_fates(scan, checker, "", PrepareConfig(holdout=0))
    converting.convert_rows(folder / "train.jsonl", outputs, scan, fates, checker, "", report)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.rows_written == 3001
    assert (folder / "o.json").stat().st_size > 6_000_000 and peak < 2_000_000


@pytest.mark.fault("F16")
def test_special_tokens_are_taken_out_and_counted(tmp_path):
    made = Publication(4)
    image = NAMES[0].format(0)
    faults = json.loads((Path(__file__).parents[1] / "faults" / "special-tokens" / "rows.json").read_text())
    for place, row in enumerate(faults):
        made.add({**row, "id": f"odd{place}", "image": image})
    made.add({"id": "nothing left", "image": image, "conversations": turns("Q?", "<|endoftext|>")})
    folder = made.write(tmp_path)
    report = prepare(PrepareConfig(tmp_path, download=False, holdout=0))
    rows = json.loads((folder / "llava_cot_100k.json").read_text())
    written = [[turn["value"] for turn in row["conversations"]] for row in rows if str(row["id"]).startswith("odd")]
    assert len(written) == len(faults) > 0
    assert all(texts == ["Hi there <|assistant|>", "A red square. And a blue one."] for texts in written)
    assert (report.special_tokens, report.other_markers) == (len(faults), len(faults))
    assert report.rejected == {"no answer": 1}
    console = Console(file=io.StringIO(), width=120)
    report.show(console)
    shown = console.file.getvalue()
    assert "without <|endoftext|> or <|padding|> in its texts 4" in " ".join(shown.split())
    assert "with what other tools mark turns with, as </s> 4" in " ".join(shown.split())
