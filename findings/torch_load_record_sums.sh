#!/usr/bin/env bash
# torch.load (2.14.1) does not compare the CRC-32 that torch.save stores for each tensor.
#
# One would guess that a checkpoint that a disk or a copy has damaged is refused, as zip readers refuse it. One byte of a
# weight is changed: torch.load returns the other number without a word; zipfile's testzip names the record.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy
"$folder/venv/bin/python" -W error - "$folder/model.pt" <<'PY'
import struct
import sys
import zipfile
from pathlib import Path

import torch

path = Path(sys.argv[1])
torch.save({"weight": torch.tensor([1.5, 2.25, 3.125])}, path)
assert zipfile.ZipFile(path).testzip() is None
written, changed = struct.pack("<f", 2.25), struct.pack("<f", 4.5)
assert path.read_bytes().count(written) == 1
path.write_bytes(path.read_bytes().replace(written, changed))
loaded = torch.load(path)["weight"].tolist()
record = zipfile.ZipFile(path).testzip()
print("loaded", loaded, "testzip names", record)
assert loaded == [1.5, 4.5, 3.125]
assert record is not None and record.endswith("/data/0")
PY
