#!/usr/bin/env bash
# pycocoevalcap 1.2 moves the captions of all later images by one where a caption holds a carriage return.
#
# One would guess that a line break within a caption is a blank: the tokenizer replaces "\n". Its Java program takes "\r" for
# an end of line too (also U+2028, vertical tab, form feed), and lines are paired with images by their number: each later
# image is scored with the caption before it, without an error. Needs Java.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pycocoevalcap==1.2
"$folder/venv/bin/python" - <<'PY'
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer


def words(mark: str) -> dict:
    captions = [f"a dog{mark}sleeps", "two cats", "three birds"]
    return PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(captions)})


fed, returned = words("\n"), words("\r")
assert fed == {0: ["a dog sleeps"], 1: ["two cats"], 2: ["three birds"]}
assert returned == {0: ["a dog"], 1: ["sleeps"], 2: ["two cats"]}
assert all(words(mark) == returned for mark in ("\u2028", "\v", "\f"))
print("line feed", fed, "carriage return", returned)
PY
