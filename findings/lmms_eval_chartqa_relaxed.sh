#!/usr/bin/env bash
# ChartQA's relaxed accuracy in lmms-eval 0.7.3 takes 1925 for the year 2020 and refuses 0.0 for 0.
#
# One would guess that five per cent of tolerance is for amounts and that equal numbers are equal. Years are numbers too, so
# a century is within 5 %; a right answer of 0 is compared as text; 12 for 12% is wrong, as is 1,000 for 1000.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps lmms-eval==0.7.3
"$folder/venv/bin/python" - <<'PY'
import importlib.util
import runpy
from pathlib import Path

package = importlib.util.find_spec("lmms_eval").submodule_search_locations[0]
score = runpy.run_path(str(Path(package, "tasks", "chartqa", "utils.py")))["chartqa_process_results"]
pairs = [("1925", "2020"), ("0.0", "0"), ("12", "12%"), ("1,000", "1000"), ("97", "100"), ("0", "0")]
seen = {pair: score({"answer": pair[1], "type": "human_test"}, [pair[0]])["relaxed_overall"] for pair in pairs}
print("score by answer and label:", seen)
assert list(seen.values()) == [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
PY
