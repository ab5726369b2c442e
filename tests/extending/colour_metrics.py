"""Metrics of captions from outside the package: one of texts, and one that looks at the pictures."""

from PIL import Image

from cobra.evaluation.metrics.base import EXTRA_METRICS, Captions, MeanMetric, Metrics, References, Scorer

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (220, 200, 40)}


def count_words(references: References) -> Scorer:
    """Make `words`, which needs the texts alone."""

    def score(captions: Captions) -> Metrics:
        return {"words": MeanMetric([len(text.split()) for text in captions.texts], "words", lower_is_better=True)}

    return score


def colour_agreement(references: References) -> Scorer:
    """Make `colour`: captions that name the colour which is closest to the picture's mean."""
    assert references.pictures is not None
    names = [_mean_colour(references.pictures.load(image)) for image in references.images]

    def score(captions: Captions) -> Metrics:
        named = [name in text.lower() for name, text in zip(names, captions.texts, strict=True)]
        return {"colour": MeanMetric(named, "mean colour", "the caption names it")}

    return score


def _mean_colour(picture: Image.Image) -> str:
    pixel = picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return min(COLOURS, key=lambda name: sum((one - two) ** 2 for one, two in zip(pixel, COLOURS[name], strict=True)))


EXTRA_METRICS["words"] = count_words
EXTRA_METRICS["colour"] = colour_agreement
