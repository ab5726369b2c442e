#!/usr/bin/env bash
# Dataset.from_list (datasets 5.2.0) drops every key that the first row does not have.
#
# One would guess a column that is empty where a row lacks it, as a missing key inside a nested value gets, or an error. Where
# the first sample of a mixed list is text alone, the pictures of all the others are gone without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
HF_HOME="$folder" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W error::UserWarning - <<'PY'
from datasets import Dataset

text, picture = {"id": "a"}, {"id": "b", "image": "b.jpg"}
print("text first:", Dataset.from_list([text, picture])[:], "picture first:", Dataset.from_list([picture, text])[:])
assert Dataset.from_list([text, picture])[:] == {"id": ["a", "b"]}
assert Dataset.from_list([picture, text])[:] == {"id": ["b", "a"], "image": ["b.jpg", None]}
nested = Dataset.from_list([{"x": {"p": 1}}, {"x": {"q": 2}}])[:]
assert nested == {"x": [{"p": 1, "q": None}, {"p": None, "q": 2}]}
PY
