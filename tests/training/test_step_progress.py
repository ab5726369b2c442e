"""The line that shows how training goes: its numbers, the time left, and how often it comes."""

import math
import re

import pytest
from rich.console import Console

from cobra.training import progress as module
from cobra.training.metrics import Metrics
from cobra.training.progress import StepProgress

SHORT = {"Loss (Raw)": 1.25, "Learning Rate": 2e-5, "Gradient Norm": 0.5}


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_a_plain_line_has_all_numbers(tmp_path, clock, capsys):
    metrics = Metrics((), "run", tmp_path, {}, "full-finetune", peak_flops=1e12)
    with StepProgress(10, True) as progress:
        clock[0] = 2.0
        values = metrics.commit(1, 1.25, 2e-5, 0.5, 24_690, 5, {"Validation Loss": 3.0}, flops=8e11)
        progress.advance(1, values | {"Full-Finetune/Memory (GB)": 61.24})
    assert capsys.readouterr().out == (
        "step 1/10  loss 1.2500  lr 2.00e-05  norm 0.50  12,345 tokens/s  2.5 samples/s  61.2 GB  40% MFU\n"
    )


def test_names_may_come_without_the_stage_and_some_may_be_absent(capsys, clock):
    progress = StepProgress(4, True)
    progress.advance(4, SHORT | {"Tokens/s": 10.0, "Loss (Raw)": math.nan})
    progress.advance(4, {})
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 4/4  loss nan  lr 2.00e-05  norm 0.50  10 tokens/s"
    assert second == "step 4/4"


@pytest.mark.fault("E10")
@pytest.mark.parametrize(
    ("total", "done", "shown"),
    [
        (1000, 0, [1, 2, 5, 10, *range(100, 1001, 100)]),
        (1000, 730, [731, 732, 735, 740, 800, 900, 1000]),
        (7, 0, [1, 2, 3, 4, 5, 6, 7]),
        (45, 0, [1, 2, 4, 5, 8, 10, *range(12, 45, 4), 45]),
    ],
)
def test_the_first_steps_and_each_tenth_of_a_run_have_a_line(capsys, clock, total, done, shown):
    with StepProgress(total, True, done) as progress:
        for step in range(done + 1, total + 1):
            progress.advance(step, SHORT)
    assert [int(step) for step in re.findall(r"^step (\d+)/", capsys.readouterr().out, re.M)] == shown


def test_no_minute_is_silent(capsys, clock):
    with StepProgress(100_000, True) as progress:
        for step in range(1, 400):
            clock[0] += 1.0
            progress.advance(step, SHORT)
    lines = [int(step) for step in re.findall(r"^step (\d+)/", capsys.readouterr().out, re.M)]
    assert lines == [1, 2, 5, *range(10, 400, 60)]


@pytest.mark.fault("E10")
def test_time_left_is_told_from_the_second_step_of_this_start_on(capsys, clock):
    progress = StepProgress(100, True, done=80)
    for step, seconds in ((81, 600.0), (82, 10.0), (85, 40.0), (100, 1.0)):
        clock[0] += seconds
        progress.advance(step, {})
    lines = capsys.readouterr().out.splitlines()
    # The first step compiles and reads ahead. Then 10 s for one step, and 50 s for four; after the last none is left.
    assert lines == ["step 81/100", "step 82/100  0:03:00 left", "step 85/100  0:03:08 left", "step 100/100"]


def test_other_processes_show_nothing(capsys):
    with StepProgress(2, False) as progress:
        progress.say("a word")
        progress.advance(1, {})
        progress.advance(2, SHORT)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_has_one_live_line(monkeypatch, capsys, clock, width):
    consoles = []

    def terminal() -> Console:
        consoles.append(Console(force_terminal=True, width=width, color_system=None, legacy_windows=False))
        return consoles[0]

    monkeypatch.setattr(module, "Console", terminal)
    with StepProgress(1000, True, done=400) as progress:
        progress.say("a word [about] it")
        progress.advance(401, {})
        clock[0] = 30.0
        progress.advance(500, SHORT | {"Tokens/s": 12345.0, "Samples/s": 9.5, "Memory (GB)": 61.2})
        line = next(line for line in consoles[0].render_lines(progress._bar.get_renderable(), pad=False))
        lines = len(consoles[0].render_lines(progress._bar.get_renderable()))
    text = "".join(segment.text for segment in line)
    assert lines == 1 and "500/1000" in text and "0:02:32 left" in text and "loss 1.2500" in text
    assert ("61.2 GB" in text) == (width == 160)
    out = capsys.readouterr().out
    assert "a word [about] it" in out and "step 500/1000" not in out
