"""The benchmark's page: complete, safe whatever the models wrote, the same each time, and small for many images."""

import base64
import hashlib
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from html_page import HtmlPage
from hypothesis import given, settings
from hypothesis import strategies as st
from made_results import COT, HOSTILE, cider, make_images, results, variant, write_pictures

from cobra.evaluation.data.image_sources import PictureFolder
from cobra.evaluation.metrics.base import MeanMetric
from cobra.evaluation.report.charts import length_histograms
from cobra.evaluation.report.gallery import choose, gallery
from cobra.evaluation.report.page import render_page
from cobra.evaluation.report.results import Results, VariantResult
from cobra.evaluation.responses.respond import Throughput
from cobra.util.printable import printable


@pytest.fixture(scope="module")
def found():
    return results(overlap="None of the 12 images was trained on.")


@pytest.fixture(scope="module")
def page(found):
    return HtmlPage(render_page(found))


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1])


def test_everything_is_on_the_page(found, page):
    words = page.words()
    for part in ("Scores", "Differences between variants", "Lengths", "Gallery", "Protocol", found.overlap):
        assert part in words
    assert page.tags.count("article") == 6 + 12 and page.tags.count("h1") == 1
    # BLEU-4 and CIDEr as scores, all three metrics as differences.
    assert page.tags.count("caption") == 2 + 3 + 1 and "Throughput" not in words
    estimate = found.estimates["finetuned"]["cider"]
    assert f"{100 * estimate.value:.1f} {100 * estimate.low:.1f} to {100 * estimate.high:.1f}" in words
    for comparison in found.comparisons:
        assert not comparison.is_claimed or comparison.sentence(12) in words
    for image in found.images:
        assert all(reference in words for reference in image.references)
    assert words.count("CONCLUSION scored") == 24 and words.count("analysis, the first pass") == 12


def test_nothing_is_fetched_and_only_the_own_script_may_run(found):
    html = render_page(found)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")
    script = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    sources = [value for _, name, value in HtmlPage(html).attributes if name in ("src", "href", "action", "srcset")]
    assert all(value.startswith(("#", "data:")) for value in sources)
    assert not re.search(r"url\(|@import", html)


def test_pictures_are_inside_and_those_that_are_missing_are_named(found, tmp_path):
    write_pictures(tmp_path, found.images)
    (tmp_path / "03.png").unlink()
    (tmp_path / "04.png").write_bytes(b"no picture")
    page = HtmlPage(render_page(found, PictureFolder(tmp_path)))
    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(pictures) == 14 and all(value.startswith("data:image/jpeg;base64,") for value in pictures)
    assert "The picture is not there." in page.words() and "The picture cannot be read." in page.words()
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert found.images[0].references[0] in alts


def test_pictures_out_of_a_data_set_look_the_same(found, tmp_path):
    class InMemory(PictureFolder):
        def file(self, image):
            return io.BytesIO(super().file(image).read_bytes())

    write_pictures(tmp_path, found.images)
    assert render_page(found, InMemory(tmp_path)) == render_page(found, PictureFolder(tmp_path))


def test_images_that_no_model_could_read_are_told_from_silent_ones():
    images = make_images(2)
    one = variant(images, ["", ""], [0.0, 0.0])
    answers = [replace(one.answers[0], problem="01.png is not a readable image"), one.answers[1]]
    found = Results.from_variants(images, {"baseline": replace(one, answers=answers)}, {}, "", {}, replicates=20)
    page = HtmlPage(render_page(found))
    assert sorted(text for text in page.text if text.startswith("nothing")) == ["nothing"] * 2 + ["nothing: "] * 2
    assert "01.png is not a readable image" in page.words()


def test_throughput_is_shown_where_it_was_measured():
    page = HtmlPage(render_page(results(throughput={"baseline": Throughput(12, 240, 8.0)})))
    assert "baseline 12 240 8.0 1.50 30.0" in page.words()


def test_equal_results_give_equal_bytes(found):
    assert render_page(found) == render_page(results(overlap=found.overlap))


def test_one_variant_has_nothing_to_be_compared_with():
    images = make_images(4)
    one = Results.from_variants(images, {"predictions": variant(images, ["a"] * 4, [0.1, 0.4, 0.3, 0.2])}, {}, "", {})
    html = render_page(one)
    assert "Differences between variants" not in html and 'name="first"' not in html and "+40.0" not in html
    shown_best = HtmlPage(html).words().split("Best cases: CIDEr ")[1]
    assert shown_best.startswith("40.0 A square of number 1. 30.0 A square of number 2.")


@given(
    st.sampled_from([HOSTILE, COT.format(HOSTILE), "<SUMMARY><CONCLUSION></details>", "", " ", "x" * 9000]) | st.text()
)
@settings(max_examples=25, deadline=None)
def test_no_text_becomes_markup(text):
    images = make_images(2)
    plain = HtmlPage(render_page(_two_variants(images, "a")))
    wild = HtmlPage(render_page(_two_variants(images, text)))
    for tag in ("script", "img", "article", "section", "form", "style"):
        assert wild.tags.count(tag) == plain.tags.count(tag)
    assert not any(name.startswith("on") for _, name, _ in wild.attributes)
    if text.strip() and "<" not in text:
        assert " ".join(printable(text, 2000).split()) in wild.words()


def _two_variants(images, text):
    texts = [text] * len(images)
    return Results.from_variants(
        images,
        {"baseline": variant(images, texts, [0.0, 1.0]), "finetuned": variant(images, texts, [1.0, 1.0], texts)},
        {},
        text,
        {"prompt": text},
        replicates=20,
        overlap=text,
    )


def test_the_scripts_numbers_are_those_of_the_images(found):
    data = data_of(render_page(found))
    assert data["metrics"] == ["bleu_4", "cider", "valid_structure"]
    for name in found.variants:
        assert data["values"]["cider"][name] == pytest.approx(100 * cider(found, name), abs=1e-4)


def test_an_unknown_score_is_null_for_the_script_and_a_dash_for_the_reader():
    images = make_images(3)
    metrics = {"similarity_max": MeanMetric([math.nan, 0.5, 0.25])}
    html = render_page(
        Results.from_variants(images, {"predictions": VariantResult("abc", metrics)}, {}, "", {}, replicates=20)
    )
    assert data_of(html)["values"]["similarity_max"]["predictions"] == [None, 50.0, 25.0]
    assert "nan" not in HtmlPage(html).words().lower()


def test_a_page_of_5000_images_shows_200_and_says_so():
    found = results(n=5000, replicates=20)
    html = render_page(found)
    assert html.count("<article") == 206 and len(html) < 2_500_000
    assert "200 of 5,000 images are shown" in html and "over all 5,000 images" in html
    difference = cider(found, "finetuned") - cider(found, "baseline")
    ranked = gallery(found, None)
    assert [card.number - 1 for card in ranked.highest] == list(np.argsort(-difference)[:5])
    assert [card.number - 1 for card in ranked.lowest] == list(np.argsort(difference)[:5])
    assert len(data_of(html)["values"]["cider"]["finetuned"]) == 200


def test_chosen_images_hold_the_extremes_of_every_pair_and_some_at_random():
    rng = np.random.default_rng(1)
    values = {name: rng.normal(size=400) for name in ("a", "b", "c")}
    chosen = choose(values, 60)
    assert chosen == sorted(set(chosen)) and len(chosen) == 60 and choose(values, 60) == chosen
    for first, second in (("a", "b"), ("a", "c"), ("b", "c")):
        order = np.argsort(values[second] - values[first])
        assert set(order[:4]) | set(order[-4:]) <= set(chosen)
    extremes = {
        index
        for first, second in (("a", "b"), ("a", "c"), ("b", "c"))
        for index in (
            *np.argsort(values[second] - values[first])[:15],
            *np.argsort(values[first] - values[second])[:15],
        )
    }
    assert len(set(chosen) - extremes) > 5
    assert choose(values, 400) == list(range(400))


def test_choosing_among_equals_and_unknowns():
    same = np.zeros(10)
    assert len(choose({"a": same, "b": same}, 6)) == 6
    unknown = np.array([math.nan] * 5 + [0.0, 1.0, 2.0, 3.0, 4.0])
    assert {9, 5} <= set(choose({"a": np.zeros(10), "b": unknown - 2}, 6))


def test_histograms_have_shares_and_an_open_end():
    lengths = {"a": [5] * 97 + [400, 500, 600], "b": [7] * 100}
    first, second = length_histograms(lengths, [5, 6] * 100)
    assert sum(bar.captions for bar in first.bars) == pytest.approx(1) == sum(bar.references for bar in first.bars)
    assert max(bar.caption_height for bar in second.bars) == 1
    assert (first.median, first.mean, second.mean) == (5, pytest.approx(19.85), 7)
    assert first.bars[-1].label.endswith(" and more") and first.bars[-1].captions == pytest.approx(0.03)
    assert len(first.bars) == len(second.bars) <= 32


def test_histograms_of_empty_captions():
    (found,) = length_histograms({"a": [0, 0]}, [0])
    assert [bar.label for bar in found.bars] == ["0"] and found.bars[0].captions == 1
