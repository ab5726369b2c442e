#!/usr/bin/env bash
# jsonlines 4.0.0 reads other numbers where orjson (3.13.0) is installed beside it.
#
# One would guess that an installed package that nobody imports changes the speed at most. jsonlines takes orjson by itself:
# a line with NaN, as Python's json writes it for a loss, is then refused, and the number 2**65 comes back as a float.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jsonlines==4.0.0
cat >"$folder/read.py" <<'PY'
import io
import json

import jsonlines

for value in (float("nan"), 2**65):
    try:
        with jsonlines.Reader(io.StringIO(json.dumps(value) + "\n")) as reader:
            read = reader.read()
        print(type(read).__name__, read, end=" ")
    except jsonlines.InvalidLineError as error:
        print(type(error).__name__, end=" ")
PY
without=$("$folder/venv/bin/python" "$folder/read.py")
"$folder/venv/bin/pip" install --quiet orjson==3.13.0
beside=$("$folder/venv/bin/python" "$folder/read.py")
echo "without orjson: $without beside orjson: $beside"
test "$without" = "float nan int 36893488147419103232 "
test "$beside" = "InvalidLineError float 3.6893488147419103e+19 "
