"""The story that screen and page begin with: what was compared, what changed, what did not."""

import io
import re

import numpy as np
import pytest
from made_results import COT, make_images, results, variant
from rich.console import Console

from cobra.evaluation.report.console import print_results, print_samples
from cobra.evaluation.report.page import render_page
from cobra.evaluation.report.results import Results
from cobra.evaluation.report.story import null_sentence, story, twins
from cobra.evaluation.report.words import CAPTION_WORDS

CHECKPOINTS = {
    "checkpoints": {
        "baseline": {"checkpoint": "cobra-tiny", "sha256": "1"},
        "finetuned": {"checkpoint": "runs/mine", "sha256": "2"},
    }
}


def four(n=40, worse=False):
    """Four variants whose captions are the same but for the first one's stages; with `worse` all captions differ."""
    images = make_images(n)
    scores = np.random.default_rng(3).uniform(0, 1, n)
    plain, staged = [f"a square {i}" for i in range(n)], [COT.format(f"square {i}") for i in range(n)]
    analyses = [text.split("<CONCLUSION>")[0] for text in staged]
    none, every = np.zeros(n), np.ones(n)
    variants = {
        "baseline": variant(images, plain, scores + worse, bleu_4=scores, valid_structure=none),
        "baseline+scratchpad": variant(images, [f"{text}!" for text in plain], scores, plain, valid_structure=none),
        "finetuned": variant(images, staged, scores, bleu_4=scores, valid_structure=every),
        "finetuned+scratchpad": variant(images, staged, scores, analyses, bleu_4=scores, valid_structure=every),
    }
    floors = {"shuffled": variants["baseline"].metrics, "human": variants["baseline"].metrics}
    return Results.from_variants(images, variants, floors, "n:40", CHECKPOINTS, 200, words=CAPTION_WORDS)


@pytest.mark.fault("E5")
def test_it_says_who_was_compared_what_changed_and_what_did_not():
    assert story(four()) == [
        "Baseline is cobra-tiny and finetuned is runs/mine; each captioned the same 40 images, at once and after a "
        "scratchpad.",
        "From baseline to finetuned, answers with all four stages rose from 0 to 100 % (p < 0.05 after Holm) and "
        "answers grew from 3 to 10 words.",
        "No difference can be claimed at n = 40 between baseline and finetuned in CIDEr or BLEU-4; nor between "
        "baseline and baseline+scratchpad in CIDEr.",
    ]
    assert "CIDEr fell from" in story(four(worse=True))[1] and len(story(four(worse=True))) <= 3


@pytest.mark.fault("E5")
def test_all_null_comparisons_are_one_sentence_on_the_screen_and_one_in_the_pages_words():
    found = four()
    assert shown(found).count("can be claimed") == 1
    page = render_page(found)
    assert page.count("can be claimed") == 2
    assert null_sentence([], 40) == ""


@pytest.mark.fault("E5")
def test_variants_that_are_equal_are_explained():
    (sentence,) = twins(four())
    assert sentence.startswith("finetuned and finetuned+scratchpad gave the same captions, word for word: the first")
    assert sentence in render_page(four()) and sentence in " ".join(shown(four()).split())
    assert len(twins(results())) == 1


def shown(found):
    """Return what a log gets of results."""
    console = Console(file=io.StringIO(), width=80)
    print_results(console, found)
    print_samples(console, found)
    return console.file.getvalue()


@pytest.mark.fault("E5", "E10")
def test_the_screen_is_short_and_has_one_table():
    lines = shown(four()).splitlines()
    # A benchmark prints up to eleven lines before, and four after it.
    assert len(lines) <= 30 and sum(set(line) == {"\u2500"} for line in lines) == 1
    assert "" not in [line for line, after in zip(lines, lines[1:], strict=False) if not after.strip()]


@pytest.mark.fault("E6")
def test_the_page_begins_with_the_story_and_six_pictures_with_open_answers():
    page = render_page(four())
    begin, pictures, rest = re.split('<section id="pictures">|<section id="scores">', page)
    assert all(sentence in begin.replace("&lt;", "<") for sentence in story(four()))
    opened = re.sub("<details.*?</details>", "", pictures, flags=re.S)
    assert opened.count("<article>") == 6 and opened.count('<p class="name">CONCLUSION</p>') == 6
    assert opened.count("human caption</dt>") == 6 and "nearest human caption, ROUGE-L" in opened
    order = [rest.index(f'id="{name}"') for name in ("differences", "gallery", "protocol", "next")]
    assert order == sorted(order) and "--model_path runs/mine" in rest


@pytest.mark.fault("E6")
def test_a_model_without_stages_does_not_look_like_a_failure():
    images, zeros = make_images(3), np.zeros(3)
    plain = variant(images, ["a", "b", "c"], zeros, valid_structure=zeros)
    found = Results.from_variants(images, {"baseline": plain}, {}, "", {}, replicates=20)
    assert found.metrics == ["cider"] and "valid structure" not in render_page(found)
