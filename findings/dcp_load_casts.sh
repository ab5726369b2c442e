#!/usr/bin/env bash
# torch.distributed.checkpoint (torch 2.14.1) refuses another shape and casts another dtype without a word.
#
# One would guess that load checks both, or returns what was saved. It fills the tensors that it is given: 1.75 from a float
# tensor becomes 1 in an integer one, and 1 + 2**-10 becomes 1 in a bfloat16 model that was resumed from float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy
"$folder/venv/bin/python" - "$folder/checkpoint" <<'PY'
import sys
import warnings

import torch
import torch.distributed.checkpoint as dcp

saved = {"scale": torch.tensor([1.75]), "weight": torch.tensor([1 + 2**-10])}
dcp.save(saved, checkpoint_id=sys.argv[1])
given = {"scale": torch.zeros(1, dtype=torch.int64), "weight": torch.zeros(1, dtype=torch.bfloat16)}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    dcp.load(given, checkpoint_id=sys.argv[1])
told = [str(one.message) for one in caught if "dtype" in str(one.message)]
print(given, "warnings about a dtype:", told)
assert given["scale"].tolist() == [1] and given["weight"].tolist() == [1.0] and not told
try:
    dcp.load({"scale": torch.zeros(2)}, checkpoint_id=sys.argv[1])
except dcp.CheckpointException as error:
    assert "Size mismatch" in str(error)
else:
    raise AssertionError("another shape was loaded")
PY
