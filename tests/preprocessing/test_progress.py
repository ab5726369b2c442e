"""Bars on a terminal, and lines where there is none."""

import pytest

from cobra.preprocessing import progress
from cobra.preprocessing.progress import ByteBars, byte_progress


def test_bars_of_parts_and_total_show_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    clock = [0.0]
    with ByteBars() as bars:
        bars.get_time = lambda: clock[0]
        with bars.bar("all [files]", 2000, 1000) as total, bars.bar("part-aa", 500) as part:
            for _ in range(2):
                clock[0] += 1
                total.advance(100)
                part.advance(100)
            bars.refresh()
            shown = capsys.readouterr().err
            assert "all [files]" in shown and "1.2/2.0 kB" in shown and "0:00:08" in shown
            assert "part-aa" in shown and "200/500 bytes" in shown and "100 bytes/s" in shown
    lines = capsys.readouterr().err
    assert "part-aa: 200 bytes of 500 bytes in 2 s" in lines and "all [files]: 1.2 kB of 2.0 kB in 2 s" in lines


def test_without_a_terminal_a_line_ends_the_work(capsys):
    with ByteBars() as bars, bars.bar("reading [x]", 1000, 400) as bar:
        bar.advance(600)
    assert capsys.readouterr().err == "reading [x]: 1.0 kB of 1.0 kB in 0 s\n"
    with ByteBars() as bars, bars.bar("reading", None) as bar:
        bar.advance(600)
    assert capsys.readouterr().err == "reading: 600 bytes in 0 s\n"


def test_short_work_on_files_that_are_here_leaves_no_line(monkeypatch, capsys):
    for least, line in ((0.0, "reading: 10 bytes of 10 bytes in 0 s\n"), (60.0, "")):
        monkeypatch.setattr(progress, "FIRST_SECONDS", least)
        with byte_progress("reading", 10) as advance:
            advance(10)
        assert capsys.readouterr().err == line


def test_without_a_terminal_long_work_tells_of_itself(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_SECONDS", -1.0)
    with byte_progress("reading", 1000) as advance:
        advance(100)
        assert capsys.readouterr().err == "reading: 100 bytes of 1.0 kB\n"


def test_bar_ends_with_its_work_when_it_fails(capsys):
    with pytest.raises(KeyboardInterrupt), ByteBars() as bars, bars.bar("reading", 1000) as bar:
        bar.advance(100)
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "reading: 100 bytes of 1.0 kB in 0 s\n"
