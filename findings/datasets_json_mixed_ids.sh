#!/usr/bin/env bash
# datasets 5.2.0 reads JSON lines whose ids are text in one row and numbers in another as numbers.
#
# One would guess an error, or text for all. The id "00077" becomes 77, so it is no longer the name that other files use;
# the same file with text in every row keeps it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
HF_HOME="$folder" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import sys
from pathlib import Path

from datasets import load_dataset


def ids(name: str, lines: str) -> list:
    path = Path(sys.argv[1], name)
    path.write_text(lines)
    return load_dataset("json", data_files=str(path), split="train")["id"][:]


text = ids("text.jsonl", '{"id": "00077"}\n{"id": "00078"}\n')
mixed = ids("mixed.jsonl", '{"id": "00077"}\n{"id": 78}\n')
print("all text:", text, "mixed:", mixed)
assert text == ["00077", "00078"]
assert mixed == [77, 78]
PY
