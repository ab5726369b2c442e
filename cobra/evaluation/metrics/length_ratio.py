"""Length ratio: tokens of the captions over those of the references closest in length."""

from cobra.evaluation.metrics.base import Captions, Metrics, RatioMetric, References, Scorer
from cobra.evaluation.metrics.bleu import closest_length
from cobra.evaluation.metrics.ptb_tokenizer import MAX_CHARACTERS, count_cut


def length_ratio(references: References) -> Scorer:
    """Make `length_ratio`; its warning counts the texts that are too long to be scored whole."""
    lengths = [[reference.length for reference in own] for own in references.ngrams]
    cut_references = count_cut(text for image in references.images for text in image.references)

    def score(captions: Captions) -> Metrics:
        written = [caption.length for caption in captions.ngrams]
        closest = [closest_length(length, own) for length, own in zip(written, lengths, strict=True)]
        cut = count_cut(captions.texts)
        warning = ""
        if cut or cut_references:
            warning = (
                f"Texts of which only the first {MAX_CHARACTERS:,} characters are scored: {cut:,} among the captions, "
                f"{cut_references:,} among the references."
            )
        note = "100 is as long as the closest reference"
        return {"length_ratio": RatioMetric(written, closest, "length ratio", note, warning=warning)}

    return score
