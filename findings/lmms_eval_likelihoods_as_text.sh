#!/usr/bin/env bash
# lmms-eval 0.7.3 turns the likelihood that a model returns into text, so no task of the type multiple_choice can be scored.
#
# One would guess that a pair (log-likelihood, is greedy), as the base class wants it of `loglikelihood`, reaches the task as
# a pair. Every answer goes through one function for generated text, which spells out what it does not know; the task then
# takes its first two characters apart: `lmms-eval --model dummy --force_simple` on a task of two choices ends with
# "ValueError: too many values to unpack (expected 2)". Shown here is that function, and what the task makes of its result.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps lmms-eval==0.7.3
"$folder/venv/bin/python" - <<'PY'
import importlib.util
import runpy
from pathlib import Path

package = Path(importlib.util.find_spec("lmms_eval").submodule_search_locations[0])
unwrap = runpy.run_path(str(package / "api" / "instance.py"))["unwrap_generation_output"]
seen = [unwrap(pair)[0] for pair in ((-1.5, True), (-3.25, False))]
print("two choices' likelihoods as the task gets them:", seen)
assert seen == ["(-1.5, True)", "(-3.25, False)"]
# As the evaluator calls it for requests of all types, and as the task reads the results.
assert "for x, req in zip(resps, cloned_reqs):\n            text, tc = unwrap_generation_output(x)" in (
    package / "evaluator.py"
).read_text()
assert "lls, is_greedy = zip(*results)" in (package / "api" / "task.py").read_text()
try:
    lls, is_greedy = zip(*seen)
except ValueError as error:
    print("the task:", error)
    assert "too many values to unpack" in str(error)
else:
    raise SystemExit("the task can read them")
PY
