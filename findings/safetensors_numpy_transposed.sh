#!/usr/bin/env bash
# safetensors.numpy.save (0.8.0) writes a transposed array in the order of its memory, under the transposed shape.
#
# One would guess that an array that is not contiguous is copied or refused, as safetensors.torch refuses it. It is
# written without a word, and read back with its values in other places. Here: [[0, 3], [1, 4], [2, 5]] comes back as
# [[0, 1], [2, 3], [4, 5]]; numpy.ascontiguousarray before saving helps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
from safetensors.numpy import load, save

array = np.arange(6, dtype=np.float32).reshape(2, 3).T
read = load(save({"x": array}))["x"]
print("saved", array.tolist(), "read", read.tolist())
assert read.shape == array.shape and not np.array_equal(read, array)
assert read.tolist() == [[0, 1], [2, 3], [4, 5]]
copied = load(save({"x": np.ascontiguousarray(array)}))["x"]
assert np.array_equal(copied, array)
PY
