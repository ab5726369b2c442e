#!/usr/bin/env bash
# pyarrow (26.0.1) imports pandas, where that is installed, to make an array of a plain list.
#
# One would guess that pa.array([1, 2]) needs no pandas, as it does not where pandas is absent. It asks first whether the
# list is a pandas object, and imports pandas for that; so do pa.record_batch of lists, and to_numpy of a column of
# several chunks. The import takes some 0.2 s and 55 MiB in each process.
# Reading a file, validating it, to_pylist, and Array.from_buffers of NumPy's memory import nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
cat >"$folder/try.py" <<'PY'
import resource
import sys
import time

import numpy as np
import pyarrow as pa


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


buffer = pa.py_buffer(np.arange(3))
column = pa.Array.from_buffers(pa.int64(), 3, [None, buffer])
table = pa.Table.from_batches([pa.RecordBatch.from_arrays([column], names=["x"])] * 2)
table.validate(full=True)
assert table.column("x").to_pylist() == [0, 1, 2, 0, 1, 2]
assert "pandas" not in sys.modules
calls = {
    "array": lambda: pa.array([1, 2]),
    "record_batch": lambda: pa.record_batch({"x": [1, 2]}, schema=pa.schema({"x": pa.int64()})),
    "to_numpy": lambda: table.column("x").to_numpy(),
}
before, begin = peak_mib(), time.perf_counter()
calls[sys.argv[1]]()
print(f"{sys.argv[1]}: {time.perf_counter() - begin:.2f} s, {peak_mib() - before:.0f} MiB, pandas: {'pandas' in sys.modules}")
assert "pandas" in sys.modules
PY
for call in array record_batch to_numpy; do "$folder/venv/bin/python" "$folder/try.py" "$call"; done
