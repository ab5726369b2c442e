"""Answers on disk: what was whole comes back, whatever a kill, a full disk or other settings leave behind."""

import json
import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobra.evaluation.responses.protocol import Answer
from cobra.evaluation.responses.response_cache import AnswerFile, StoredAnswer
from cobra.util.errors import UserError

SETTINGS = {"checkpoint_sha256": "abc", "prompt": "Caption?"}
STORED = [
    StoredAnswer(Answer.from_text(1, "Caption?", "a dog\n\u2028<CONCLUSION> \u20ac </CONCLUSION>"), "11"),
    StoredAnswer(Answer.from_text("1", "Caption?", "a cat", "an analysis"), "22"),
    StoredAnswer(Answer.from_text("x/y.jpg", "", "", problem="not an image"), "33"),
]
BY_ID = {stored.answer.image_id: stored for stored in STORED}


def open_file(folder, rank=0, **changes):
    return AnswerFile(folder, SETTINGS | changes, rank)


def whole_file(folder):
    open_file(folder).append(STORED)
    return next(folder.glob("*.jsonl"))


def test_answers_come_back(tmp_path):
    file = open_file(tmp_path / "answers")
    assert file.read() == {} and not (tmp_path / "answers").exists()
    file.append(STORED[:1])
    file.append(STORED[1:])
    assert open_file(tmp_path / "answers").read() == file.read() == BY_ID
    lines = (tmp_path / "answers" / f"{file.key}.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == [1, "1", "x/y.jpg"]
    assert json.loads((tmp_path / "answers" / f"{file.key}.json").read_text()).items() >= SETTINGS.items()


def test_what_is_scored_is_found_anew(tmp_path):
    path = whole_file(tmp_path)
    assert "scored" not in path.read_text() and "conclusion" not in path.read_text()
    assert open_file(tmp_path).read()[1].answer.source == "conclusion"


def test_other_settings_never_meet(tmp_path):
    whole_file(tmp_path)
    for changes in ({"prompt": "caption?"}, {"checkpoint_sha256": ""}, {"dtype": "bfloat16"}):
        other = open_file(tmp_path, **changes)
        assert other.read() == {}
        other.append(STORED[:1])
    assert open_file(tmp_path).read() == BY_ID
    assert len(list(tmp_path.glob("*.jsonl"))) == 4


def test_all_processes_answers_are_read_and_each_writes_its_own(tmp_path):
    for rank, stored in enumerate(STORED):
        open_file(tmp_path, rank).append([stored])
    key = open_file(tmp_path).key
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == [
        f"{key}.jsonl",
        f"{key}.rank1.jsonl",
        f"{key}.rank2.jsonl",
    ]
    assert all(open_file(tmp_path, rank).read() == BY_ID for rank in (0, 1, 5))


def test_the_last_answer_about_an_image_counts(tmp_path):
    again = StoredAnswer(Answer.from_text(1, "Caption?", "a horse"), "44")
    file = open_file(tmp_path)
    file.append([*STORED, again])
    assert file.read() == BY_ID | {1: again}


@given(cut=st.integers(0, 700), tail=st.binary(max_size=20).filter(lambda tail: b"\n" not in tail))
@settings(deadline=None)
def test_a_torn_end_is_repaired(tmp_path_factory, cut, tail):
    folder = tmp_path_factory.mktemp("torn")
    path = whole_file(folder)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut] + tail)
    whole = content[: len(content) - cut].count(b"\n")
    file = open_file(folder)
    assert list(file.read().values()) == STORED[:whole]
    file.append(STORED[2:])
    assert path.read_bytes().endswith(b"\n") and path.read_bytes().count(b"\n") == whole + 1
    expected = [*STORED[:whole], STORED[2]]
    assert open_file(folder).read() == {stored.answer.image_id: stored for stored in expected}


def test_a_torn_end_of_another_process_is_left_to_it(tmp_path):
    open_file(tmp_path, 1).append(STORED)
    path = next(tmp_path.glob("*.rank1.jsonl"))
    path.write_bytes(path.read_bytes()[:-3])
    before = path.read_bytes()
    file = open_file(tmp_path)
    assert list(file.read()) == [1, "1"]
    file.append(STORED[2:])
    assert path.read_bytes() == before and open_file(tmp_path).read() == BY_ID


BAD_LINES = [
    b"\0\0\0",
    b"",
    b"[1]",
    b"{}",
    b"\xff",
    b"[" * 9999,
    b"1" * 9999,
    b'{"image_id": true, "image_sha256": "", "prompt": "", "raw": "", "analysis": null, "problem": null}',
    b'{"image_id": [1], "image_sha256": "", "prompt": "", "raw": "", "analysis": null, "problem": null}',
    b'{"image_id": 1, "image_sha256": "", "prompt": "", "raw": null, "analysis": null, "problem": null}',
    b'{"image_id": 1, "image_sha256": "", "prompt": "", "raw": "", "problem": null}',
    b'{"image_id": 1, "image_sha256": "", "prompt": "", "raw": "", "analysis": 3, "problem": null}',
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_line_that_is_none_is_passed_over(tmp_path, line):
    path = whole_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], line + b"\n", *lines[1:]]))
    assert open_file(tmp_path).read() == BY_ID


@pytest.mark.parametrize("room", [0, 1, 30])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, room):
    file = open_file(tmp_path)
    file.append(STORED)
    path = next(tmp_path.glob("*.jsonl"))
    content = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + room, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written to .*jsonl \((File too large|No space left).*are kept"):
            file.append(STORED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "answers").write_text("")
    with pytest.raises(UserError, match="answers cannot be written to .*File exists"):
        open_file(tmp_path / "answers").append(STORED)
