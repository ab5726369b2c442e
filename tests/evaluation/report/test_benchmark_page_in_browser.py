"""The benchmark's page in a headless Chromium: it sorts, filters and folds, and nothing goes wrong on it."""

import numpy as np
import pytest
from browser import Browser
from made_results import cider, results, write_pictures
from PIL import Image

from cobra.evaluation.data.image_sources import PictureFolder
from cobra.evaluation.report.page import render_page

SHOWN = "Array.from(document.querySelectorAll('#cards article')).filter(a => !a.hidden).map(a => a.id)"
COUNT = "document.querySelector('output').textContent"


@pytest.fixture(scope="module")
def found():
    return results()


@pytest.fixture(scope="module")
def path(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_pictures(folder, found.images)
    (folder / "report.html").write_text(render_page(found, PictureFolder(folder)), encoding="utf-8")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        started.screen(1280, 900)
        yield started


@pytest.fixture
def page(browser, path):
    """The page, just opened; nothing may have gone wrong on it by the test's end."""
    browser.screen(1280, 900)
    browser.open(path)
    yield browser
    assert browser.problems() == []


def choose(page, **settings):
    """Set fields of the form, as a reader would."""
    for name, value in settings.items():
        page.run(
            f"(() => {{ const field = document.getElementById('controls').elements.namedItem('{name}');"
            f"field.value = '{value}'; field.dispatchEvent(new Event('input', {{ bubbles: true }})); }})()"
        )


def cards(order):
    return [f"image-{index + 1}" for index in order]


def test_all_images_are_shown_in_their_order(page):
    assert page.run(SHOWN) == cards(range(12)) and page.run(COUNT) == "12 of 12 images"
    assert page.run("document.getElementById('none').hidden")


def test_sorting_by_a_difference(page, found):
    difference = cider(found, "finetuned") - cider(found, "baseline")
    choose(page, order="difference,-1")
    assert page.run(SHOWN) == cards(np.argsort(-difference, kind="stable"))
    choose(page, order="difference,1")
    assert page.run(SHOWN) == cards(np.argsort(difference, kind="stable"))
    choose(page, first="finetuned", second="finetuned+scratchpad")
    other = cider(found, "finetuned+scratchpad") - cider(found, "finetuned")
    assert page.run(SHOWN) == cards(np.argsort(other, kind="stable"))
    lowest = int(np.argmin(other))
    text = page.run("document.querySelector('#cards article .change').innerText").split()
    assert text == ["CIDEr,", "finetuned+scratchpad", "less", "finetuned", f"\u2212{-100 * other[lowest]:.1f}"]


def test_sorting_by_the_best_and_worst_scores_of_another_metric(page, found):
    scores = found.variants["finetuned"].metrics["bleu_4"].per_image
    choose(page, metric="bleu_4", order="score,1")
    assert page.run(SHOWN) == cards(np.argsort(scores, kind="stable"))
    first = page.run(
        "Array.from(document.querySelector('#cards article').querySelectorAll('.score'), s => s.innerText)"
    )
    worst = int(np.argmin(scores))
    assert first == [f"{100 * result.metrics['bleu_4'].per_image[worst]:.1f}" for result in found.variants.values()]


def test_filtering_by_a_difference(page, found):
    difference = 100 * (cider(found, "finetuned") - cider(found, "baseline"))
    choose(page, show="gain")
    assert page.run(SHOWN) == cards(np.flatnonzero(difference > 0))
    choose(page, least="50")
    assert page.run(SHOWN) == cards(np.flatnonzero(difference >= 50))
    choose(page, show="loss", least="")
    assert page.run(SHOWN) == cards(np.flatnonzero(difference < 0))
    choose(page, show="tie")
    assert page.run(SHOWN) == cards([1]) and page.run(COUNT) == "1 of 12 images"


def test_filtering_by_text_finds_folded_text_too(page):
    choose(page, text="NUMBER 7 square")
    assert page.run(SHOWN) == cards([7])
    choose(page, text="seen: 11.png")
    assert page.run(SHOWN) == cards([11])
    choose(page, text="window.hit")
    assert page.run(SHOWN) == cards([2])


def test_no_match_is_said_and_reset_brings_all_back(page):
    choose(page, text="no such text", order="difference,1")
    assert page.run(SHOWN) == [] and not page.run("document.getElementById('none').hidden")
    page.run("document.querySelector('#none button').click()")
    # What the reset starts comes after the click.
    page.run("new Promise(done => setTimeout(done))")
    assert page.run(SHOWN) == cards(range(12)) and page.run(COUNT) == "12 of 12 images"


def test_stages_unfold_with_the_keyboard(page):
    whole = "document.querySelector('#image-1 details.whole')"
    assert not page.run(f"{whole}.open")
    page.run(f"{whole}.querySelector('summary').focus()")
    page.press("Enter", 13, "\r")
    assert page.run(f"{whole}.open")
    stages = f"Array.from({whole}.querySelectorAll('details.stage summary'), s => s.innerText)"
    assert page.run(stages) == ["SUMMARY", "CAPTION", "REASONING"]
    assert page.run(f"{whole}.querySelector('.conclusion .text').checkVisibility()")
    reasoning = f"{whole}.querySelector('details.reasoning')"
    page.run(f"{reasoning}.querySelector('summary').focus()")
    page.press(" ", 32, " ")
    assert page.run(f"{reasoning}.querySelector('.text').checkVisibility()")
    assert not page.run(f"{whole}.querySelector('details.summary .text').checkVisibility()")


def test_the_keyboard_reaches_the_form_and_changes_the_order(page, found):
    page.run("document.getElementById('controls').elements.order.focus()")
    page.press("ArrowDown", 40)
    assert page.run("document.activeElement.value") == "difference,-1"
    difference = cider(found, "finetuned") - cider(found, "baseline")
    assert page.run(SHOWN)[0] == f"image-{int(np.argmax(difference)) + 1}"


def test_a_link_to_a_hidden_case_brings_it_back(page, found):
    choose(page, text="no such text")
    link = page.run("document.querySelector('.cases a').getAttribute('href')")
    difference = cider(found, "finetuned") - cider(found, "baseline")
    assert link == f"#image-{int(np.argmax(difference)) + 1}"
    page.run("document.querySelector('.cases a').click()")
    page.run("new Promise(done => setTimeout(done, 50))")
    assert page.run(SHOWN) == cards(range(12)) and page.run("document.activeElement.id") == link[1:]


def test_what_models_wrote_does_not_run(page):
    assert page.run("window.hit") is None
    assert page.run("document.querySelectorAll('script').length") == 2
    assert "window.hit = 1" in page.run("document.querySelector('#image-3 .said ~ *, #image-3').innerText")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_the_screen_in_light_and_dark(page, tmp_path, width, scheme):
    page.screen(width, 800, scheme)
    assert page.run("document.documentElement.scrollWidth") == width
    red, green, blue = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red + green + blue < 200) == (scheme == "dark")
    page.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.size == (width, 800) and len(shot.convert("RGB").getcolors(width * 800)) > 50
