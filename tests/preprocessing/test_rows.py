"""Rows mapped from a cache file: the same as json.load gives, shared, and never out of date."""

import copy
import errno
import fcntl
import json
import mmap
import multiprocessing
import os
import pickle
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cobra.preprocessing.datasets import arrow_rows
from cobra.preprocessing.datasets.arrow_rows import read_rows
from cobra.preprocessing.datasets.rows import NO_FOLDER, TEXT_ONLY, source_of
from cobra.util.errors import UserError
from cobra.util.files import sha256_file

PAIR = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
CACHE = ".rows.json.rows.arrow"


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def make_row(index, **extra):
    return {"id": index, **extra, "conversations": PAIR}


def write_rows(folder, rows, name="rows.json"):
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters())
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
turns = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5).map(
    lambda texts: [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
)
wild_rows = st.builds(
    lambda extra, row_id, turns, image, last: {
        **extra,
        **({} if row_id is None else {"id": row_id}),
        "conversations": turns,
        **({"image": image} if image else {}),
        **last,
    },
    extra=st.dictionaries(st.text().filter(lambda key: key not in ("image", "conversations")), values, max_size=3),
    row_id=values,
    turns=turns,
    image=st.text(max_size=9).map(str.strip),
    last=st.fixed_dictionaries({}, optional={"zz": values}),
)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@given(rows=st.lists(wild_rows, min_size=1, max_size=4))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_what_json_gives(tmp_path, name, rows):
    path = write_rows(tmp_path, rows, name)
    path.with_name(f".{name}.rows.arrow").unlink(missing_ok=True)
    found = list(read_rows(path))
    # As text: the order of keys counts, and 1 is neither 1.0 nor true.
    assert [json.dumps(row) for row in found] == [json.dumps(row) for row in rows]
    assert found == [json.loads(json.dumps(row)) for row in rows]
    assert read_rows(path).words.tolist() == [
        sum(len(turn["value"].split()) for turn in row["conversations"]) for row in rows
    ]


def test_rows_are_a_list_that_cannot_be_changed(tmp_path):
    # Over several record batches.
    expected = [make_row(index, image=f"{index}.png") if index % 3 else make_row(str(index)) for index in range(2500)]
    rows = read_rows(write_rows(tmp_path, expected))
    assert len(rows) == 2500
    assert rows == expected and rows != expected[1:] and rows != expected[::-1]
    for index in (0, 1, 1023, 1024, 2499, -1, -2500, np.int64(7)):
        assert rows[index] == expected[index]
    assert rows[2040:2060:3] == expected[2040:2060:3] and rows[-3:] == expected[-3:]
    assert "image" not in rows[0] and "image" in rows[1]
    for index in (2500, -2501):
        with pytest.raises(IndexError):
            rows[index]
    with pytest.raises(TypeError):
        rows[0] = {}
    rows[0]["id"] = "changed"
    assert rows[0] == expected[0]
    assert rows.has_image.tolist() == ["image" in row for row in expected]


def test_selected_rows_keep_their_numbers(tmp_path):
    rows = read_rows(write_rows(tmp_path, [make_row(index) for index in range(9)]))
    some = rows.select(np.array([1, 4, 8])).select(np.array([0, 2]))
    assert [row["id"] for row in some] == [1, 8]
    assert some.row_name(1) == f"row 8 (id 8) of {tmp_path / 'rows.json'}"
    assert copy.copy(some) == some


def test_words_with_and_without_placeholders(tmp_path):
    turns = [{"from": "human", "value": "<image> is a<image>b <image>"}, {"from": "gpt", "value": " x \n y"}]
    rows = read_rows(write_rows(tmp_path, [{"conversations": turns}]))
    assert (rows.words[0], rows.words_without_placeholder[0], rows.turns[0]) == (6, 4, 2)


@given(st.lists(st.lists(st.text("a \t\n\x1c\u2003\u00e9"), min_size=2, max_size=2), min_size=1, max_size=70))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_words_are_those_between_white_space_of_any_kind(tmp_path, texts):
    rows = [
        {
            "id": index,
            "conversations": [{"from": who, "value": text} for who, text in zip(("human", "gpt"), pair, strict=True)],
        }
        for index, pair in enumerate(texts)
    ]
    opened = read_rows(write_rows(tmp_path, rows))
    assert opened.words.tolist() == [sum(len(text.split()) for text in pair) for pair in texts]


def test_rows_are_built_and_opened_without_pandas(tmp_path):
    path = write_rows(tmp_path, [make_row(0, image="a.png"), make_row(1)])
    code = """
import sys
from pathlib import Path
import numpy as np
from cobra.preprocessing.datasets.arrow_rows import read_rows
for _ in range(2):
    rows = read_rows(Path(sys.argv[1]))
    assert rows.select(np.array([1, 0])).images() == [None, "a.png"] and rows.has_image.tolist() == [True, False]
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_opening_again_reads_no_row(tmp_path, monkeypatch):
    path = write_rows(tmp_path, [make_row(1)])
    read_rows(path)
    monkeypatch.setattr(arrow_rows, "check_rows", pytest.fail)
    assert read_rows(path)[0] == make_row(1)


def test_a_changed_file_is_read_again(tmp_path):
    path = write_rows(tmp_path, [make_row(1)])
    assert read_rows(path)[0]["id"] == 1
    before = path.stat().st_mtime_ns
    write_rows(tmp_path, [make_row(2)])
    os.utime(path, ns=(before, before + 1))
    assert read_rows(path)[0]["id"] == 2
    assert sorted(name.name for name in tmp_path.iterdir() if name.suffix != ".lock") == [CACHE, "rows.json"]


@pytest.mark.fault("A9")
def test_rows_that_changed_under_the_same_size_and_time_are_read_again(tmp_path):
    """As `rsync -t` and `cp -p` leave them."""
    path = write_rows(tmp_path, [make_row(1)])
    before = path.stat()
    first = read_rows(path)
    write_rows(tmp_path, [make_row(2)])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = read_rows(path)
    assert (first[0]["id"], second[0]["id"]) == (1, 2)
    assert second.sha256 == sha256_file(path) != first.sha256


@pytest.mark.fault("A9")
def test_the_same_rows_at_another_time_are_not_checked_again(tmp_path, monkeypatch):
    path = write_rows(tmp_path, [make_row(1)])
    read_rows(path)
    os.utime(path, ns=(1, 1))
    monkeypatch.setattr(arrow_rows, "check_rows", pytest.fail)
    assert read_rows(path) == [make_row(1)]


@pytest.mark.parametrize("damage", [b"", b"ARROW1\0\0", "cut", "text", "other version"])
def test_a_damaged_cache_is_made_again(tmp_path, damage, monkeypatch):
    path = write_rows(tmp_path, [make_row(index) for index in range(50)])
    if damage == "other version":
        monkeypatch.setattr(arrow_rows, "_FORMAT", "0")
    read_rows(path)
    monkeypatch.undo()
    cache = tmp_path / CACHE
    whole = cache.read_bytes()
    if damage != "other version":
        cache.write_bytes({"cut": whole[: len(whole) // 2], "text": b"x" * len(whole)}.get(damage, damage))
    assert read_rows(path) == [make_row(index) for index in range(50)]


def test_flipped_bytes_give_the_same_rows_or_an_error(tmp_path):
    """Never other rows, and never the end of the process."""
    expected = [make_row(index) for index in range(20)]
    path = write_rows(tmp_path, expected)
    read_rows(path)
    whole = (tmp_path / CACHE).read_bytes()
    draw = np.random.default_rng(0)
    refused = 0
    for place in draw.integers(len(whole), size=300).tolist():
        broken = bytearray(whole)
        broken[place] ^= 1 << int(draw.integers(8))
        (tmp_path / CACHE).write_bytes(broken)
        try:
            assert list(read_rows(path)) == expected
        except UserError as error:
            assert CACHE in str(error) and "delete it" in str(error)
            refused += 1
    assert refused > 20


def test_pickled_rows_are_small_and_map_the_same_file(tmp_path):
    rows = read_rows(write_rows(tmp_path, [make_row(index) for index in range(3000)]))
    assert len(pickle.dumps(rows)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(list, (rows,)) == list(rows)


def test_a_process_does_not_take_the_rows_of_another_state(tmp_path):
    path = write_rows(tmp_path, [make_row(1)])
    rows = read_rows(path)
    write_rows(tmp_path, [make_row(1), make_row(2)])
    read_rows(path)
    with pytest.raises(ValueError, match="another state"):
        copy.copy(rows)


@pytest.fixture
def nobody(tmp_path_factory, monkeypatch) -> Path:
    """The folder for temporary files of a user without a home and a name."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def _open_slowly(path, log):
    build = arrow_rows._build

    def slow(*arguments):
        with open(log, "a") as file:
            file.write("built\n")
        time.sleep(0.3)
        build(*arguments)

    arrow_rows._build = slow
    with open(log, "a") as file:
        file.write(f"{len(read_rows(Path(path)))}\n")


def test_of_several_processes_one_builds(tmp_path):
    path = write_rows(tmp_path, [make_row(index) for index in range(30)])
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_open_slowly, args=(path, tmp_path / "log")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted((tmp_path / "log").read_text().split()) == ["30"] * 4 + ["built"]


def test_a_folder_that_takes_no_files_has_its_cache_in_the_users_folder(tmp_path, monkeypatch, user_cache):
    path = write_rows(tmp_path, [make_row(1)])
    access = os.access
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != tmp_path and access(folder, mode))
    assert read_rows(path) == [make_row(1)]
    assert [found.name for found in tmp_path.iterdir()] == ["rows.json"]
    assert len(list((user_cache / "cobra").glob("*-rows.json.rows.arrow"))) == 1
    monkeypatch.setattr(arrow_rows, "check_rows", pytest.fail)
    assert read_rows(path) == [make_row(1)]


def refusing(number, place, call):
    """Return a call of the system that fails for files of one folder."""

    def refused(path, *rest, **options):
        if str(path).startswith(f"{place}/"):
            raise OSError(number, os.strerror(number), str(path))
        return call(path, *rest, **options)

    return refused


@pytest.mark.fault("F7")
@pytest.mark.parametrize("call", ["open", "rename"])
def test_a_folder_that_says_it_takes_files_and_does_not(tmp_path, monkeypatch, user_cache, call):
    """The place that errors would name is tried: a mount may refuse what `access` has promised."""
    path = write_rows(tmp_path, [make_row(1)])
    if call == "open":
        monkeypatch.setattr(tempfile._os, "open", refusing(errno.EROFS, tmp_path, os.open))
    else:
        monkeypatch.setattr(os, "replace", refusing(errno.ENOTSUP, tmp_path, os.replace))
    assert read_rows(path) == [make_row(1)]
    assert len(list((user_cache / "cobra").glob("*-rows.json.rows.arrow"))) == 1


@pytest.mark.fault("F7")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_mount_without_locks_has_its_cache(tmp_path, monkeypatch, number):
    path = write_rows(tmp_path, [make_row(1)])

    def refused(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    assert read_rows(path) == [make_row(1)]
    assert (tmp_path / CACHE).exists()


@pytest.mark.fault("F7")
def test_a_mount_that_maps_nothing_has_its_cache_read(tmp_path, monkeypatch):
    path = write_rows(tmp_path, [make_row(1)])

    def refused(*arguments, **options):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(mmap, "mmap", refused)
    monkeypatch.setattr(arrow_rows.pa, "memory_map", refused)
    assert list(read_rows(path)) == [make_row(1)]
    assert (tmp_path / CACHE).exists()


@pytest.mark.fault("F18")
def test_without_a_home_the_cache_lies_beside_the_rows(tmp_path, monkeypatch, nobody):
    path = write_rows(tmp_path, [make_row(1)])
    assert read_rows(path) == [make_row(1)]
    assert (tmp_path / CACHE).exists() and not list(nobody.iterdir())


@pytest.mark.fault("F18")
def test_without_a_home_and_beside_rows_that_cannot_be_written_beside_it_is_temporary(tmp_path, monkeypatch, nobody):
    (tmp_path / "data").mkdir()
    path = write_rows(tmp_path / "data", [make_row(1)])
    monkeypatch.setattr(tempfile._os, "open", refusing(errno.EROFS, tmp_path / "data", os.open))
    assert read_rows(path) == [make_row(1)]
    (folder,) = nobody.iterdir()
    assert folder.name == f"cobra-{os.getuid()}" and folder.stat().st_mode & 0o777 == 0o700
    assert len(list(folder.glob("*-rows.json.rows.arrow"))) == 1


def test_without_any_place_for_the_cache_the_error_says_what_to_set(tmp_path, monkeypatch):
    path = write_rows(tmp_path, [make_row(1)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        read_rows(path)


def test_a_full_disk_is_an_error_with_its_reason(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    path = write_rows(tmp_path, [make_row(1)])
    monkeypatch.setattr(arrow_rows.pyarrow.ipc, "new_file", full)
    with pytest.raises(UserError, match="No space left"):
        read_rows(path)
    assert not (tmp_path / CACHE).exists()


def test_lines_and_list_give_the_same_rows(tmp_path):
    rows = [make_row(1), make_row("a", image="a.png", source={"of": [1, None]})]
    assert read_rows(write_rows(tmp_path, rows, "rows.jsonl")) == read_rows(write_rows(tmp_path, rows)) == rows


def test_blank_lines_and_windows_line_ends_are_fine(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f"\n{json.dumps(make_row(1))}\r\n  \n{json.dumps(make_row(2))}".encode())
    rows = read_rows(path)
    assert [row["id"] for row in rows] == [1, 2]
    assert rows.row_name(1) == f"line 4 (id 2) of {path}"


GOOD_LINE = json.dumps(make_row(1)).encode()
BAD_LINES = {
    "cut": (GOOD_LINE[:-5], "line 3 of .*not valid JSON: column"),
    "no object": (b"[1]", "line 3 of .* is no object"),
    "bad row": (b'{"id": "bad"}', r"line 3 \(id 'bad'\) of .*no conversations"),
    "latin-1": (b'{"id": "\xe9"}', "line 3 of .*not UTF-8.*byte 8"),
    "deep": (b"[" * 100_000, "line 3 of .*deeply"),
    "long number": (b"9" * 10_000, "line 3 of .*cannot be read"),
    "two objects": (GOOD_LINE + GOOD_LINE, "line 3 of .*a second value begins"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_and_nothing_is_kept(tmp_path, case):
    line, expected = BAD_LINES[case]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([GOOD_LINE, b"", line, GOOD_LINE]))
    with pytest.raises(UserError, match=expected) as error:
        read_rows(path)
    assert str(path) in str(error.value)
    assert not list(tmp_path.glob("*.arrow")) and not list(tmp_path.glob(".*.arrow"))


def test_a_file_without_a_line_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match="rows.jsonl.*empty"):
        read_rows(tmp_path / "rows.jsonl")


FAULTS = Path(__file__).parents[1] / "faults"
FILES = (
    "bom/rows.json",
    "bom/rows.jsonl",
    "wrong-ending/rows.json",
    "wrong-ending/rows.jsonl",
    "wrong-ending/rows2.jsonl",
)


@pytest.mark.fault("F13")
@pytest.mark.parametrize("name", (*FILES, "wrong-ending/rows3.JSONL"))
def test_marks_and_wrong_endings_do_not_matter(tmp_path, name):
    path = tmp_path / Path(name).name
    shutil.copy(FAULTS / name, path)
    turns = [{"from": "human", "value": "What shapes are there?"}, {"from": "gpt", "value": "A red square."}]
    rows = read_rows(path)
    assert list(rows) == [{"id": f"r{number}", "conversations": turns, "image": "a.png"} for number in range(4)]
    assert rows.row_name(0).startswith("row 0" if (FAULTS / name).read_text("utf-8-sig").startswith("[") else "line 1")


@pytest.mark.fault("F13")
def test_rows_of_questions_and_answers_are_told_the_command_that_writes_rows(tmp_path):
    row = {"id": 1, "question": "?", "answer": "!"}
    with pytest.raises(UserError, match=r"row 0 \(id 1\) .* check \S+rows.json --write \S+llava_rows.json"):
        read_rows(write_rows(tmp_path, [row]))


SOURCES = {
    "sqa/train/1/image.png": "sqa",
    "./sqa/1.jpg": "sqa",
    "images/sqa/1.jpg": "sqa",
    "./images/sqa/1.jpg": "sqa",
    "image_files/geoqa+/images/1.png": "geoqa+",
    "images\\sqa\\1.jpg": "sqa",
    "C:\\images\\1.png": NO_FOLDER,
    "D:\\sqa\\1.png": "sqa",
    ".sqa/1.jpg": ".sqa",
    "..sqa/1.jpg": "..sqa",
    "/sqa//1.jpg": "sqa",
    "1.jpg": NO_FOLDER,
    "./1.jpg": NO_FOLDER,
    "images/1.jpg": NO_FOLDER,
    ".": NO_FOLDER,
    "": TEXT_ONLY,
    None: TEXT_ONLY,
}


@pytest.mark.fault("D4")
@pytest.mark.parametrize("image", SOURCES)
def test_the_source_is_the_first_folder_beneath_the_top(image):
    assert source_of({"image": image}) == SOURCES[image]
    assert source_of({}) == TEXT_ONLY
