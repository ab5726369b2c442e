"""What a benchmark prints, and its files."""

import io
import json
import math
import re

import numpy as np
import pytest
from made_results import COT, HOSTILE, cider, make_images, results, variant
from rich.console import Console

from cobra.evaluation.metrics.base import MeanMetric
from cobra.evaluation.report.console import print_results, print_samples
from cobra.evaluation.report.page import render_page
from cobra.evaluation.report.results import (
    Results,
    VariantResult,
    main_pair,
    metrics_json,
    prepare_output,
    score_text,
    write_results,
)
from cobra.evaluation.report.story import story
from cobra.util.errors import UserError


def screen(function, *arguments, width=140):
    console = Console(file=io.StringIO(), width=width)
    function(console, *arguments)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("score", "text"),
    [(0.1234, "12.3"), (-0.0004, "0.0"), (-0.01, "-1.0"), (math.nan, "-"), (None, "-"), (1.2, "120.0")],
)
def test_scores_as_they_are_shown(score, text):
    assert score_text(score) == text


def test_estimates_and_comparisons_are_worked_out():
    found = results()
    assert found.estimates["baseline"]["cider"].value == pytest.approx(cider(found, "baseline").mean())
    assert found.metrics == ["bleu_4", "cider", "valid_structure"]
    pairs = [(row.first, row.second) for row in found.comparisons if row.metric == "cider"]
    assert pairs == [
        ("baseline", "finetuned"),
        ("baseline", "finetuned+scratchpad"),
        ("finetuned", "finetuned+scratchpad"),
    ]


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["baseline", "baseline+scratchpad", "finetuned"], ("baseline", "finetuned")),
        (["finetuned", "finetuned+scratchpad"], ("finetuned", "finetuned+scratchpad")),
        (["predictions"], None),
    ],
)
def test_the_pair_that_is_looked_at_first(names, pair):
    assert main_pair(names) == pair


def test_the_table_has_values_intervals_floors_and_ceilings():
    found = results()
    lines = screen(print_results, found).splitlines()
    row = next(number for number, line in enumerate(lines) if line.strip().startswith("CIDEr"))
    values = [100 * own["cider"].value for own in found.estimates.values()]
    halves = [50 * (own["cider"].high - own["cider"].low) for own in found.estimates.values()]
    cells = [f"{value:.1f} \u00b1{half:.0f}" for value, half in zip(values, halves, strict=True)]
    assert lines[row].split() == ["CIDEr", *" ".join(cells).split(), "5.0", "90.0"]
    # BLEU-4 has neither floor nor ceiling here.
    assert next(line for line in lines if line.strip().startswith("BLEU-4")).split()[-2:] == ["-", "-"]


def test_what_is_printed_says_n_the_scale_and_the_precision_and_begins_with_the_story():
    found = results()
    text = " ".join(screen(print_results, found).split())
    assert text.startswith(f"Captions of 12 images {' '.join(story(found))} ")
    assert "With 12 images" in text and "Scores x100, of CIDEr too" in text and found.signature not in text


@pytest.mark.parametrize("width", [80, 140])
def test_four_variants_fit_the_screen(width):
    images = make_images(3)
    one = variant(images, ["a"] * 3, [1.0, 1.2, 1.1], length_ratio=[1.0, 1.5, 1.3])
    names = ["baseline", "baseline+scratchpad", "finetuned", "finetuned+scratchpad"]
    floors = {"shuffled": one.metrics, "human": one.metrics}
    found = Results.from_variants(images, dict.fromkeys(names, one), floors, "n:3", {}, replicates=50)
    text = screen(print_results, found, width=width)
    assert "\u2026" not in text and text.split().count("110.0") == 6
    # Sentences are broken by the terminal.
    table = [line for line in text.splitlines() if not line.endswith(".")]
    assert len(table) > 5 and all(len(line) <= width for line in table)


def test_samples_are_taken_literally():
    images = make_images(2)
    captions = ["[bold]not markup[/bold] \x1b[2J\x07\u202e", "x" * 1000]
    result = VariantResult(captions, {"cider": MeanMetric([1.0, 2.0])})
    text = screen(print_samples, Results.from_variants(images, {"predictions": result}, {}, "", {}, replicates=20))
    assert "[bold]not markup[/bold]" in text and not {"\x1b", "\x07", "\u202e"} & set(text)
    assert len(text.splitlines()) == 5 and len(text) < 400 and images[0].references[0] in text


def test_files_in_the_forms_that_others_read(tmp_path):
    found = results(overlap="None is.")
    prepare_output(tmp_path, list(found.variants))
    write_results(tmp_path, found, "<p>page</p>")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["n"], metrics["signature"], metrics["prompt"]) == (12, found.signature, "Caption?")
    estimate = found.estimates["finetuned"]["cider"]
    assert metrics["variants"]["finetuned"]["cider"] == vars(estimate)
    assert metrics["floors"]["human"]["cider"]["value"] == pytest.approx(0.9)
    first = metrics["comparisons"][0]
    assert set(first) == {"metric", "first", "second", "difference", "p_value", "p_holm", "claimed"}
    assert set(first["difference"]) == {"value", "low", "high"} and "throughput" not in metrics
    rows = json.loads((tmp_path / "predictions" / "finetuned.json").read_text())
    assert rows == [{"image_id": 100 + i, "caption": f"square {i}"} for i in range(12)]
    lines = (tmp_path / "answers" / "finetuned.jsonl").read_text().splitlines()
    assert json.loads(lines[3])["raw"] == COT.format("square 3") and len(lines) == 12
    assert (tmp_path / "report.html").read_text() == "<p>page</p>"


def test_hostile_captions_come_back_as_they_were(tmp_path):
    write_results(tmp_path, results())
    rows = json.loads((tmp_path / "predictions" / "baseline.json").read_text())
    assert rows[2]["caption"] == HOSTILE.strip()
    assert not (tmp_path / "report.html").exists()


def test_what_is_not_known_is_null(tmp_path):
    images = make_images(2)
    result = VariantResult(["a", "b"], {"similarity_max": MeanMetric([math.nan, 0.5])})
    write_results(tmp_path, Results.from_variants(images, {"predictions": result}, {}, "", {}, replicates=20))
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["variants"]["predictions"]["similarity_max"]["value"] is None


def test_files_change_together_or_not_at_all(tmp_path):
    found = results(n=2)
    write_results(tmp_path, found, "page")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    broken = VariantResult(["\ud83d", "y"], {"cider": MeanMetric(np.ones(2))})
    again = Results.from_variants(found.images, {**found.variants, "finetuned": broken}, {}, "other", {}, replicates=20)
    with pytest.raises(UnicodeEncodeError):
        write_results(tmp_path, again, "other page")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output_dir .*file cannot be written to"):
        prepare_output(tmp_path / "file", ["baseline"])
    with pytest.raises(UserError, match="cannot be written to"):
        prepare_output(tmp_path / "file" / "below", ["baseline"])


def test_variants_of_another_benchmark_are_not_mixed_in(tmp_path):
    write_results(tmp_path, results())
    prepare_output(tmp_path, ["baseline", "finetuned", "finetuned+scratchpad"])
    with pytest.raises(UserError, match=r"with the variants finetuned, finetuned\+scratchpad, which"):
        prepare_output(tmp_path, ["baseline"])


@pytest.mark.fault("D1")
def test_a_new_metric_is_on_the_screen_on_the_page_and_in_the_comparisons():
    made = results()
    rng = np.random.default_rng(1)
    for own in made.variants.values():
        own.metrics["politeness"] = MeanMetric(rng.random(12), "Politeness", "thanks & greetings")
        own.metrics["no_label"] = MeanMetric(rng.random(12))
    variants = {name: VariantResult(own.captions, own.metrics, own.answers) for name, own in made.variants.items()}
    found = Results.from_variants(made.images, variants, {}, "n:12", {}, 200)
    assert found.metrics[-2:] == ["politeness", "no_label"]
    screen = Console(width=200, file=io.StringIO())
    print_results(screen, found)
    for name in ("Politeness", "no_label"):
        assert re.search(rf"^ *{name} ", screen.file.getvalue(), re.MULTILINE)
    page = render_page(found)
    for text in (
        "Politeness",
        "thanks &amp; greetings",
        ">no_label<",
        '<option value="politeness">Politeness</option>',
    ):
        assert text in page
    [sentence] = {one.sentence(12).split(" between ")[0] for one in found.comparisons if one.metric == "politeness"}
    assert sentence == "no difference in Politeness"


@pytest.mark.fault("D1")
def test_without_a_headline_metric_the_first_one_is_looked_at():
    made = results()
    variants = {
        name: VariantResult(own.captions, {"right": MeanMetric(own.metrics["cider"].per_image, "right answers")})
        for name, own in made.variants.items()
    }
    found = Results.from_variants(made.images, variants, {}, "n:12", {}, 200)
    assert found.headlines == ["right"] and "right answers" in " ".join(story(found))


@pytest.mark.fault("C4", "D9")
def test_a_metrics_warning_is_on_the_screen_on_the_page_and_in_the_file():
    found = results()
    for name in ("cider", "bleu_4"):
        found.variants["finetuned"].metrics[name].warning = "Two captions were cut."
    screen = Console(width=200, file=io.StringIO())
    print_results(screen, found)
    assert screen.file.getvalue().count("finetuned: Two captions were cut.") == 1
    assert render_page(found).count('<p class="warning">finetuned: Two captions were cut.</p>') == 1
    assert metrics_json(found)["warnings"][1:] == ["finetuned: Two captions were cut."]
