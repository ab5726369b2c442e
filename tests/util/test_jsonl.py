"""Files of many records are read by content, in every encoding that a mark names; logs lose torn lines alone."""

import codecs
import json

import pytest

from cobra.util.errors import UserError
from cobra.util.files import read_json, read_text
from cobra.util.jsonl import append_lines, cut_torn_line, opens_list, read_lines, read_log, read_records, to_lines

VALUES = [{"id": 1, "text": "Gr\u00fc\u00dfe \u2028 \U0001f600"}, {"id": 2, "text": ""}]
LIST = json.dumps(VALUES, ensure_ascii=False)
LINES = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in VALUES)
ENCODINGS = {
    "plain": ("utf-8", b""),
    "utf-8": ("utf-8", codecs.BOM_UTF8),
    "utf-16-le": ("utf-16-le", codecs.BOM_UTF16_LE),
    "utf-16-be": ("utf-16-be", codecs.BOM_UTF16_BE),
    "utf-32-le": ("utf-32-le", codecs.BOM_UTF32_LE),
    "utf-32-be": ("utf-32-be", codecs.BOM_UTF32_BE),
}


@pytest.fixture(params=ENCODINGS)
def write(request, tmp_path):
    encoding, mark = ENCODINGS[request.param]

    def writer(text, name="rows.json"):
        path = tmp_path / name
        path.write_bytes(mark + text.encode(encoding))
        return path

    return writer


@pytest.mark.fault("F13")
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_list_and_lines_are_told_by_content(write, name):
    listed = write(f" \n{json.dumps(VALUES, ensure_ascii=False, indent=1)}", name)
    assert opens_list(listed)
    assert [(number, value) for number, value, _ in read_records(listed, "it", "")] == list(enumerate(VALUES))
    lines = write("\r\n" + LINES.replace("\n", "\r\n"), name)
    assert not opens_list(lines)
    found = list(read_records(lines, "it", ""))
    assert [(record.number, record.value) for record in found] == [(2, VALUES[0]), (3, VALUES[1])]
    assert [json.loads(record.json) for record in found] == VALUES
    assert [record.json for record in found] == LINES.encode().splitlines()


@pytest.mark.fault("F13")
def test_one_file_of_lines_is_a_list_where_lines_are_allowed(write):
    assert read_json(write(LINES), "it", lines=True) == VALUES
    assert read_json(write(LIST), "it", lines=True) == read_json(write(LIST), "it") == VALUES
    one = json.dumps(VALUES[0])
    assert read_json(write(one), "it", lines=True) == VALUES[0]
    assert read_json(write(one, "x.JSONL"), "it", lines=True) == VALUES[:1]
    assert read_json(write('{"a":\n1}'), "it", lines=True) == {"a": 1}
    with pytest.raises(UserError, match="line 2, column 1: a second value begins"):
        read_json(write(LINES), "it")


@pytest.mark.fault("F13")
def test_a_mark_is_no_part_of_a_text(write):
    assert read_text(write("Grüße\n"), "it") == "Grüße\n"


@pytest.mark.fault("F13")
def test_marks_of_joined_files_are_taken_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(codecs.BOM_UTF8 + line + b"\n" for line in LINES.encode().splitlines()))
    found = list(read_records(path, "it", ""))
    assert [record.value for record in found] == VALUES
    assert b"".join(record.json + b"\n" for record in found) == LINES.encode()


@pytest.mark.fault("F13")
def test_text_that_its_mark_does_not_tell_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(codecs.BOM_UTF16_LE + LINES.encode("utf-16-le") + b"x")
    with pytest.raises(UserError, match=r"rows.jsonl has the mark of UTF-16 and is not such text"):
        list(read_records(path, "it", ""))


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"The rows does not exist: .*none.jsonl. Make it."):
        list(read_records(tmp_path / "none.jsonl", "the rows", "Make it."))


def test_lines_are_read_one_by_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n" * 5 + "not JSON")
    records = read_records(path, "it", "")
    assert [next(records).number for _ in range(5)] == [1, 2, 3, 4, 5]
    with pytest.raises(UserError, match="line 6 of"):
        next(records)


def test_long_lines_come_in_pieces(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"abcdefg\nhi")
    assert list(read_lines(path, 3)) == [b"abc", b"def", b"g\n", b"hi"]


def test_a_log_gives_whole_lines_and_where_they_end(tmp_path):
    path = tmp_path / "log"
    lines = [b'{"a": 1}\n', b"\0\0\n", b'{"a"\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"[NaN, 2]\n", b'{"a": 3}']
    path.write_bytes(b"".join(lines))
    ends = [sum(map(len, lines[: count + 1])) for count in range(len(lines))]
    found = list(read_log(path))
    assert [end for end, _ in found] == ends
    assert [value is None for _, value in found] == [False, True, True, True, True, False, True]
    assert found[0][1] == {"a": 1} and found[5][1][1] == 2
    cut_torn_line(path)
    assert path.read_bytes() == b"".join(lines[:-1])
    cut_torn_line(path)
    assert path.read_bytes() == b"".join(lines[:-1])


def test_a_log_that_is_not_there_is_made(tmp_path):
    cut_torn_line(tmp_path / "log")
    assert list(read_log(tmp_path / "log")) == []


def test_lines_that_are_appended_are_read_back(tmp_path):
    path = tmp_path / "log"
    append_lines(path, [])
    assert not path.exists()
    append_lines(path, VALUES)
    append_lines(path, ["\ud800", 2**65, None])
    assert [value for _, value in read_log(path)] == [*VALUES, "\ud800", 2**65, None]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_lines(path, [VALUES[0], {"loss": float("nan")}])
    assert path.read_bytes() == before and before.isascii()


def test_lines_for_people_keep_their_letters():
    assert to_lines(VALUES, ensure_ascii=False) == LINES
    assert to_lines([float("inf")]) == "Infinity\n"


@pytest.mark.parametrize(
    "text", ["[]", " [ ] \n", "[1]", '[ {"a": [1, "],"]} ,\n\t{}\r\n, null, "\\ud800", -0.0, NaN, [[]] ]\n', "[1, 1]"]
)
def test_items_of_a_list_are_those_of_the_whole_and_bring_their_own_text(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    records = list(read_records(path, "the file", ""))
    assert repr([record.value for record in records]) == repr(json.loads(text))
    assert [repr(json.loads(record.json)) for record in records] == [repr(record.value) for record in records]
    assert [record.number for record in records] == list(range(len(records)))


@pytest.mark.parametrize(
    "text",
    [
        "[1 2]",
        "[1,]",
        "[1",
        "[",
        "[1]]",
        "[1] 2",
        '[{"a": 1}, {"a": }]',
        "[,1]",
        '["\x01"]',
        "[" * 100_000,
        "\u00a0[1]",
    ],
)
def test_a_list_that_is_not_json_is_told_as_the_whole_is(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError) as whole:
        read_json(path, "the file", "Mend it.")
    with pytest.raises(UserError) as items:
        list(read_records(path, "the file", "Mend it."))
    assert str(items.value) == str(whole.value)
