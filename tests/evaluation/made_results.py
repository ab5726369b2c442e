"""Results of made-up answers about one-coloured pictures, with scores that a test chooses."""

import numpy as np
from PIL import Image

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.metrics.base import MeanMetric
from cobra.evaluation.report.results import Results, VariantResult
from cobra.evaluation.report.words import CAPTION_WORDS
from cobra.evaluation.responses.protocol import Answer, scored_text
from cobra.reasoning.trace import extract_reasoning_trace

COT = (
    "<SUMMARY> I look. </SUMMARY>\n\n<CAPTION> Seen: {0} </CAPTION>\n\n<REASONING> It is so. </REASONING>\n\n"
    "<CONCLUSION> {0} </CONCLUSION>"
)
HOSTILE = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 2'> {{ results }} &amp; \u202e\x00"
ABOUT = {"valid_structure": {"share": "answers with all four stages", "of_stages": True}}
LABELS = {"bleu_4": "BLEU-4", "cider": "CIDEr", "valid_structure": "valid structure"}
SIGNATURE = "n:12|tok:ptb|idf:references"


def make_images(n):
    """Return captioned images called 00.png and so on; the ids are 100 and more."""
    return [
        CaptionedImage(100 + i, f"{i:02}.png", (f"A square of number {i}.", f"The square {i} on a wall."))
        for i in range(n)
    ]


def write_pictures(folder, images):
    """Write a small picture for each image."""
    for i, image in enumerate(images):
        Image.new("RGB", (24, 16), (20 * i % 256, 90, 160)).save(folder / image.file_name)


def answer(image, raw, analysis=None):
    """Return an answer as a model gave it."""
    return Answer(image.image_id, "Caption?", raw, *scored_text(raw), extract_reasoning_trace(raw).is_valid, analysis)


def variant(images, raws, scores, analyses=None, **metrics):
    """Return a variant that gave some raw answers.

    Args:
        images: N images.
        raws: N answers.
        scores: (N,) CIDEr.
        analyses: N analyses of a scratchpad.
        **metrics: (N,) scores by further name.
    """
    answers = [answer(*row) for row in zip(images, raws, analyses or [None] * len(images), strict=True)]
    given = metrics | {"cider": scores}
    names = dict.fromkeys(name for name in (*LABELS, *given) if name in given)
    known = {name: MeanMetric(given[name], LABELS.get(name, ""), **ABOUT.get(name, {})) for name in names}
    return VariantResult([answer.scored for answer in answers], known, answers)


def results(n=12, seed=5, replicates=200, **others):
    """Return three variants of N images: the model before and after, and the latter with a scratchpad."""
    rng = np.random.default_rng(seed)
    images = make_images(n)
    before, after, third = rng.uniform(0, 1, n), rng.uniform(0.4, 1.6, n), rng.uniform(0.3, 1.7, n)
    # One image on which the two agree.
    after[1] = before[1]
    plain = [f"a square {i}" for i in range(n)]
    plain[2 % n] = HOSTILE
    staged = [COT.format(f"square {i}") for i in range(n)]
    variants = {
        "baseline": variant(images, plain, before, bleu_4=before / 3, valid_structure=np.zeros(n)),
        "finetuned": variant(images, staged, after, bleu_4=after / 3, valid_structure=np.ones(n)),
        "finetuned+scratchpad": variant(images, staged, third, staged, bleu_4=third / 3, valid_structure=np.ones(n)),
    }
    floors = {"shuffled": {"cider": MeanMetric([0.05] * n)}, "human": {"cider": MeanMetric([0.9] * n)}}
    about = {"prompt": "Caption?", "sample": {"seed": 7}}
    others = {"words": CAPTION_WORDS} | others
    return Results.from_variants(images, variants, floors, SIGNATURE, about, replicates, **others)


def cider(found, name):
    """Return the (N,) CIDEr of a variant."""
    return found.variants[name].metrics["cider"].per_image
