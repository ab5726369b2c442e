"""Files of lines with a step: whole lines only, whatever a kill or a full disk leaves behind."""

import json
import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobra.training.jsonl_log import StepLines
from cobra.util.errors import UserError

LINES = [{"step": step, "text": "\u20ac" * step} for step in (1, 2, 2, 5)]
WHOLE = b"".join(json.dumps(line).encode() + b"\n" for line in LINES)


def open_lines(path, last_step=100):
    return StepLines(path, "step", last_step)


def test_lines_come_back_as_they_were_appended(tmp_path):
    lines = open_lines(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == b"" and list(lines.read()) == []
    lines.append(LINES[:3])
    lines.append(LINES[3:])
    assert (tmp_path / "a.jsonl").read_bytes() == WHOLE
    assert list(lines.read()) == LINES


@pytest.mark.parametrize(("last_step", "kept"), [(0, 0), (1, 1), (2, 3), (4, 3), (5, 4), (9, 4)])
def test_lines_beyond_a_step_are_cut(tmp_path, last_step, kept):
    (tmp_path / "a.jsonl").write_bytes(WHOLE)
    lines = open_lines(tmp_path / "a.jsonl", last_step)
    assert list(lines.read()) == LINES[:kept]
    lines.append([{"step": 7}])
    assert list(lines.read()) == [*LINES[:kept], {"step": 7}]


@given(end=st.integers(0, len(WHOLE)), tail=st.binary(max_size=20).filter(lambda tail: b"\n" not in tail))
@settings(deadline=None)
def test_a_torn_end_is_cut(tmp_path_factory, end, tail):
    path = tmp_path_factory.getbasetemp() / "torn.jsonl"
    path.write_bytes(WHOLE[:end] + tail)
    lines = open_lines(path)
    whole = WHOLE[:end].count(b"\n")
    # A tail may happen to end the line that was torn.
    assert list(lines.read()) == LINES[:whole]
    lines.append([{"step": 9}])
    assert list(lines.read()) == [*LINES[:whole], {"step": 9}]


@pytest.mark.parametrize(
    "line", [b"\0\0\0\n", b"[1]\n", b'{"steps": 3}\n', b'{"step": "3"}\n', b"\xff\n", b"[" * 9999 + b"\n"]
)
def test_a_line_that_is_none_ends_the_file(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(WHOLE + line + WHOLE)
    assert list(open_lines(tmp_path / "a.jsonl").read()) == LINES
    assert (tmp_path / "a.jsonl").read_bytes() == WHOLE


def test_numbers_that_are_not_finite_are_null(tmp_path):
    lines = open_lines(tmp_path / "a.jsonl")
    lines.append([{"step": 1, "a": float("nan"), "b": float("inf"), "c": -0.5}])
    assert (tmp_path / "a.jsonl").read_text() == '{"step": 1, "a": null, "b": null, "c": -0.5}\n'


@pytest.mark.parametrize("room", [0, 1, 30])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, room):
    lines = open_lines(tmp_path / "a.jsonl")
    lines.append(LINES)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(WHOLE) + room, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large|No space left"):
            lines.append(LINES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "a.jsonl").read_bytes() == WHOLE
    lines.append(LINES)
    assert (tmp_path / "a.jsonl").read_bytes() == 2 * WHOLE


@pytest.mark.fault("B1")
def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("mine\n")
    (tmp_path / "lines.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="lines.jsonl is a link"):
        StepLines(tmp_path / "lines.jsonl", "Step", 0)
    assert (tmp_path / "precious").read_text() == "mine\n"
