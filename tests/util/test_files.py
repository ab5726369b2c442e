"""Files are whole or absent, and JSON that cannot be read says where."""

import hashlib
import json
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobra.util.errors import UserError
from cobra.util.files import atomic_path, kind_of_content, read_json, sha256_file, write_json, write_text


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(ValueError), atomic_path(tmp_path / "sub" / "file.txt") as temporary:
        temporary.write_text("half")
        raise ValueError
    assert list((tmp_path / "sub").iterdir()) == []


def test_parents_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "file.txt", "text")
    assert (tmp_path / "a" / "b" / "file.txt").read_text() == "text"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_an_ordinary_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "atomic.txt", "text")
        (tmp_path / "plain.txt").write_text("text")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("atomic.txt", "plain.txt")]
    assert modes[0] == modes[1] == 0o666 & ~umask


def test_writers_beside_each_other_do_not_meet(tmp_path):
    path = tmp_path / "file.txt"
    with atomic_path(path) as first, atomic_path(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)


@settings(max_examples=30)
@given(value=JSON)
def test_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "roundtrip.json"
    write_json(path, value)
    assert read_json(path, "the file") == value
    assert path.read_bytes().endswith(b"\n")


BROKEN = {
    "bracket": (b'{\n  "a": 1,\n  "b": [1, 2\n}', "line 4, column 1"),
    "empty": (b"", "column 1: nothing is there"),
    "bytes": (b'{"a": "\xff"}', "not UTF-8 text: invalid start byte at byte 7"),
    "latin-1": (b'{"a": "Gr\xfc\xdfe"}', "not UTF-8 text"),
    "UTF-16 without a mark": ('{"a": 1}'.encode("utf-16-le"), "UTF-16 without a byte order mark"),
    "UTF-16 cut short": ('\ufeff{"a": 1}'.encode("utf-16-le")[:-1], "not UTF-16 text: truncated data at byte"),
    "half": (b'{"a": [1, 2', "column 12: it ends in the middle of a value"),
    "comma in a list": (b"[\n  1,\n]", "line 3, column 1: a comma stands before the closing bracket"),
    "comma in an object": (b'{"a": 1,}', "a comma stands before the closing bracket"),
    "lines": (b'{"a": 1}\n{"a": 2}\n', "line 2, column 1: a second value begins"),
    "objects in a row": (b'{"a": 1}{"a": 2}', "column 9: a second value begins"),
    "deep": (b"[" * 200_000, "nested too deeply"),
    "long number": (b"[" + b"9" * 5000 + b"]", "4300"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_json_says_where_and_what_to_do(tmp_path, case):
    content, expected = BROKEN[case]
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path, "the annotation file", "Make it: python make.py")
    message = str(error.value)
    assert str(path) in message
    assert "(the annotation file)" in message
    assert expected in message
    assert message.endswith("Make it: python make.py")
    assert "\n" not in message


def test_an_absent_file_says_what_to_do(tmp_path):
    path = tmp_path / "rows.json"
    for problem in ("does not exist", "is a folder, and a file was expected"):
        with pytest.raises(UserError) as error:
            read_json(path, "the annotation file", "Make it: python make.py")
        assert str(error.value) == f"The annotation file {problem}: {path}. Make it: python make.py"
        path.mkdir(exist_ok=True)


@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.json"
    path.write_bytes(content)
    try:
        value = read_json(path, "the file")
    except UserError as error:
        assert str(path) in str(error)
    else:
        json.dumps(value)


def test_sha256(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        (b"\xef\xbb\xbf\n<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"PK\x03\x04", "a packed archive"),
        (b"model.py".ljust(257, b"\0") + b"ustar", "a packed archive"),
    ],
)
def test_known_kinds(beginning, kind):
    assert kind_of_content(beginning).startswith(kind)


def test_other_content_has_no_kind():
    assert kind_of_content(b"") == kind_of_content(b"\x80\x02}q\x00.") == ""
