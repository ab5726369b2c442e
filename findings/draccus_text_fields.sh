#!/usr/bin/env bash
# draccus 0.11.6 reads a value for a text field as YAML first: the run name 010 becomes "8".
#
# One would guess that a field of type str gets the text that was typed. no becomes "False", 1.10 becomes "1.1" and a prompt
# with a colon becomes a dictionary in words; an int field reads 010 as 8 and 12:30 as 750 (YAML 1.1).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet draccus==0.11.6
"$folder/venv/bin/python" - <<'PY'
from dataclasses import dataclass

import draccus


@dataclass
class Config:
    name: str = ""
    steps: int = 0


texts = ("010", "no", "1.10", "Question: why", "plain")
names = [draccus.parse(Config, args=["--name", text]).name for text in texts]
steps = [draccus.parse(Config, args=["--steps", text]).steps for text in ("10", "010", "12:30")]
print("names", names, "steps", steps)
assert names == ["8", "False", "1.1", "{'Question': 'why'}", "plain"]
assert steps == [10, 8, 750]
PY
