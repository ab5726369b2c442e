"""The page of a run in a headless Chromium: it follows the run to its end, and a reader keeps the place and choices."""

import json
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import Browser
from made_run import COT, make_run, write_answers, write_metrics
from scratch import picture, scratch_run

from cobra.training.page import run_page as module
from cobra.training.page.run_page import RunPage

STEP = "document.querySelector('.lead').textContent"
SHOWN = "Array.from(document.querySelectorAll('.answer')).filter(a => !a.hidden).map(a => a.dataset.step)"
SLIDER = "document.getElementById('step')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        started.screen(1400, 900)
        yield started


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 1.0)
    made = make_run(tmp_path)
    (made / "lock").write_text("{}")
    return made


def write(run_dir):
    RunPage(run_dir).write()
    return run_dir / "run.html"


def finished(run_dir):
    """Write the page of a finished run, which does not reload itself."""
    (run_dir / "finished.json").write_text("{}")
    return write(run_dir)


def wait_for(browser, *expressions, seconds=60):
    """Wait until all expressions are true; the page may be reloaded meanwhile, and then answers nothing."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(AssertionError):
            if browser.run(" && ".join(("document.readyState === 'complete'", *expressions))):
                return
        time.sleep(0.1)
    raise AssertionError(f"never true: {expressions}: {browser.run(STEP)}")


def slide(browser, place):
    browser.run(f"({SLIDER}.value = {place}, {SLIDER}.dispatchEvent(new Event('input')), null)")


def test_it_follows_the_run_to_its_end(browser, run_dir):
    browser.open(write(run_dir))
    assert "step 20 of 40" in browser.run(STEP)
    wait_for(browser, "document.getElementById('all-settings') !== null")
    browser.run("scrollTo(0, 700)")
    browser.run("document.getElementById('all-settings').open = true")
    write_metrics(run_dir, 30, first=21)
    write_answers(run_dir, 30, [COT.format("third")] * 3)
    write(run_dir)
    # The place and what was open are kept, and the newest answers shown.
    kept = "scrollY === 700", "document.getElementById('all-settings').open"
    wait_for(browser, f"{STEP}.includes('step 30 of 40')", *kept, f"{SHOWN}.every(step => step === '30')")
    write_metrics(run_dir, 40, first=31)
    (run_dir / "finished.json").write_text("{}")
    write(run_dir)
    wait_for(browser, f"{STEP}.includes('Finished')")
    assert browser.run("document.getElementById('follow').hidden") and "Finished" in browser.run("document.title")
    # A finished run's page is left alone.
    browser.run("window.mark = 1")
    time.sleep(3)
    assert browser.run("window.mark") == 1 and browser.problems() == []


def test_an_older_answer_that_is_looked_at_stays(browser, run_dir):
    browser.open(write(run_dir))
    slide(browser, 0)
    assert set(browser.run(SHOWN)) == {"10"}
    assert browser.run("document.getElementById('shown').textContent") == "10: 1 of 2 right"
    write_metrics(run_dir, 30, first=21)
    write_answers(run_dir, 30, [COT.format("third")] * 3)
    write(run_dir)
    wait_for(browser, f"{STEP}.includes('step 30 of 40')", f"{SHOWN}.every(step => step === '10')")


def test_it_waits_where_the_reader_asks_for_it(browser, run_dir):
    browser.open(write(run_dir))
    browser.run("document.getElementById('follow').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.run("document.getElementById('follow').ariaPressed") == "false"
    browser.run("window.mark = 1")
    time.sleep(3)
    assert browser.run("window.mark") == 1
    browser.run("document.getElementById('follow').click()")
    wait_for(browser, "window.mark === undefined", "document.activeElement.id === 'follow'")


def test_it_does_not_interrupt_a_reader_who_selects_text(browser, run_dir):
    browser.open(write(run_dir))
    browser.run("(window.mark = 1, getSelection().selectAllChildren(document.querySelector('.lead')))")
    time.sleep(3)
    assert browser.run("window.mark") == 1
    browser.run("getSelection().removeAllRanges()")
    wait_for(browser, "window.mark === undefined")


def test_the_keyboard_reaches_curves_and_answers(browser, run_dir):
    browser.open(finished(run_dir))
    browser.run("document.querySelector('.chart .scrub').focus()")
    browser.press("ArrowLeft", 37)
    at = "document.querySelector('.chart .at').textContent"
    assert browser.run(at) == "step 19"
    text = browser.run("document.querySelector('.chart .scrub').getAttribute('aria-valuetext')")
    assert text.startswith("step 19: each step 2.6") and "held-out rows 2.49" in text
    assert browser.run("getComputedStyle(document.querySelector('.cross')).visibility") == "visible"
    browser.run(f"{SLIDER}.focus()")
    assert browser.run(at) == ""
    browser.press("ArrowLeft", 37)
    assert set(browser.run(SHOWN)) == {"10"}
    assert browser.run(f"{SLIDER}.getAttribute('aria-valuetext')") == "step 10: 1 of 2 right"


def test_a_stage_is_folded_alike_in_all_answers_of_a_row(browser, run_dir):
    write_answers(run_dir, 30, [COT.format("third")] * 3)
    browser.open(finished(run_dir))
    opened = "Array.from(document.querySelectorAll('article:first-child .answer .reasoning'), d => d.open)"
    browser.run("document.querySelector('article:first-child .answer:not([hidden]) .reasoning').open = true")
    wait_for(browser, f"{opened}.every(Boolean)")
    assert not browser.run("document.querySelector('article:first-child .reference .reasoning').open")


def test_a_page_that_is_no_longer_written_says_so(browser, run_dir):
    path = write(run_dir)
    html = path.read_text()
    browser.open(path)
    wait_for(browser, "document.getElementById('stale').hidden")
    old = html.split('data-written="')[1].split('"')[0]
    path.write_text(html.replace(old, "2020-01-01T00:00:00+00:00"))
    browser.open(path)
    wait_for(browser, "!document.getElementById('stale').hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_it_fits_the_screen(browser, run_dir, width, scheme):
    browser.screen(width, 900, scheme)
    browser.open(finished(run_dir))
    assert browser.run("document.documentElement.scrollWidth") == width
    red, green, blue = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red + green + blue < 200) == (scheme == "dark") and browser.problems() == []
    browser.screen(1400, 900)


def test_over_http_it_stays_where_the_server_is_gone(browser, run_dir):
    write(run_dir)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(run_dir), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                time.sleep(0.1)
            browser.open(SimpleNamespace(as_uri=lambda: f"http://127.0.0.1:{port}/run.html"))
            # Servers compare whole seconds.
            time.sleep(1.1)
            write_metrics(run_dir, 30, first=21)
            write(run_dir)
            wait_for(browser, f"{STEP}.includes('step 30 of 40')")
        finally:
            server.kill()
    time.sleep(3)
    wait_for(browser, f"{STEP}.includes('step 30 of 40')")


@pytest.mark.slow
def test_a_training_is_followed_from_its_first_page_to_its_end(browser, tmp_path):
    """The page of a real run, in a process of its own."""
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(12):
        picture(number).save(tmp_path / "images" / f"{number}.png")
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": COT.format("a blot")}]
        rows.append({"id": number, "image": f"{number}.png", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows[:8]))
    (tmp_path / "held.json").write_text(json.dumps(rows[8:]))
    sizes = ("--model.finetune_global_batch_size", "2", "--model.finetune_per_device_batch_size", "2")
    more = ("--dataset.holdout_components", "held.json,images", "--model.finetune_max_steps", "8", "--page")
    flags = scratch_run(tmp_path, "a", *sizes, *more, "--eval_interval_steps", "4", "--eval_samples", "2")
    script = Path(__file__).parents[3] / "scripts" / "pretrain.py"
    path = tmp_path / "runs" / "a" / "run.html"
    with subprocess.Popen([sys.executable, str(script), *flags], stdout=subprocess.PIPE, text=True) as training:
        end = time.monotonic() + 240
        while not path.exists() and time.monotonic() < end and training.poll() is None:
            time.sleep(0.05)
        browser.open(path)
        wait_for(browser, f"/Running|Finished/.test({STEP})")
        wait_for(browser, f"{STEP}.includes('Finished')", seconds=240)
        said = training.stdout.read()
        assert training.wait() == 0
    assert f"page of the run: {path.as_uri()}" in said
    assert "step 8 of 8" in browser.run(STEP) and browser.run("document.querySelectorAll('article').length") == 2
    assert browser.run(f"{SLIDER}.max") == "1" and browser.problems() == []
