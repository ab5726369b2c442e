#!/usr/bin/env bash
# datasets 5.2.0 in the format "numpy" gives a float64 column as float32, and one row of it as float64.
#
# One would guess the type that the features name, by row and by column. Whole numbers above 2**24, such as ids or times that
# were stored as floats, change: 16777217.0 is 16777216.0 in the column.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6
HF_HOME="$folder" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import numpy as np
from datasets import Dataset

rows = Dataset.from_dict({"time": [16777217.0, 0.1]}).with_format("numpy")
column, row = rows[:]["time"], rows[0]["time"]
print(rows.features["time"].dtype, "column", column.dtype, column[0], "row", row.dtype, row)
assert rows.features["time"].dtype == "float64"
assert column.dtype == np.float32 and column[0] == 16777216.0
assert row.dtype == np.float64 and row == 16777217.0
PY
