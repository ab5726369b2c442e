#!/usr/bin/env bash
# ROUGE-L of pycocoevalcap 1.2 gives 1.0 to a caption that equals none of its references.
#
# One would guess the best score over the references. The best precision and the best recall are taken each by itself, so
# they may come from two references: a caption scores higher with both than with either alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pycocoevalcap==1.2
"$folder/venv/bin/python" - <<'PY'
from pycocoevalcap.rouge.rouge import Rouge


def score(*references: str) -> float:
    return float(Rouge().compute_score({1: list(references)}, {1: ["a dog"]})[0])


long, short = "a dog sat on the mat", "dog"
print(f"long {score(long):.3f} short {score(short):.3f} both {score(long, short):.3f}")
assert round(score(long), 3) == 0.459 and round(score(short), 3) == 0.709
assert score(long, short) == 1.0
PY
