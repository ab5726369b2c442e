#!/usr/bin/env bash
# pope_yes_ratio of lmms-eval 0.7.3 is the share of "yes" among the labels, whatever the model says.
#
# One would guess the share of the model's answers, which shows a model that says yes to everything. A model that always says
# yes, one that always says no and one whose answers end in a full stop (accuracy 0) get the same ratio.
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
pope = runpy.run_path(str(Path(package, "tasks", "pope", "utils.py")))
labels = ["yes", "yes", "no", "no"]
seen = {}
for answer in ("Yes", "No", "Yes."):
    results = [
        pope["pope_process_results"]({"question_id": number, "answer": label}, [answer])["pope_yes_ratio"]
        for number, label in enumerate(labels)
    ]
    seen[answer] = (pope["pope_aggregate_accuracy"](results), pope["pope_aggregate_yes_ratio"](results))
print("accuracy and yes ratio where every answer is the same:", seen)
assert seen == {"Yes": (0.5, 0.5), "No": (0.5, 0.5), "Yes.": (0.0, 0.5)}
PY
