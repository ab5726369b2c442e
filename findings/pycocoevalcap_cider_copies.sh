#!/usr/bin/env bash
# CIDEr of pycocoevalcap 1.2 gives an exact copy of the reference 10, 7.5, 5, 2.5 or 0.
#
# One would guess the highest score, 10, for every copy. The score is the mean over 1-grams to 4-grams, and a caption of n
# words has no longer ones: one word gets 2.5 (short answers). With one image all words are common to all images: 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pycocoevalcap==1.2
"$folder/venv/bin/python" - <<'PY'
from pycocoevalcap.cider.cider import Cider


def scores(*references: str) -> list:
    captions = {number: [text] for number, text in enumerate(references)}
    return [round(float(score), 6) for score in Cider().compute_score(captions, captions)[1]]


several = scores("a dog sleeps here", "three brown horses", "blue boat", "yes")
alone = scores("a dog sleeps here")
print("four images", several, "one image", alone)
assert several == [10.0, 7.5, 5.0, 2.5]
assert alone == [0.0]
PY
