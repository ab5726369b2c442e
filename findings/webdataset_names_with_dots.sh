#!/usr/bin/env bash
# webdataset 1.0.2 makes one sample of img.1.jpg, img.1.txt, img.2.jpg and img.2.txt.
#
# One would guess two samples, as the name without its last ending tells them apart. The name ends at its first dot, so both
# pairs have the key "img" and the endings "1.jpg", "1.txt", "2.jpg" and "2.txt"; nothing is said. Dots in folders are kept.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet webdataset==1.0.2 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import io
import sys
import tarfile

import webdataset


def samples(*names: str) -> list:
    path = sys.argv[1] + "/shard.tar"
    with tarfile.open(path, "w") as shard:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            shard.addfile(member, io.BytesIO(b"x"))
    rows = webdataset.WebDataset(path, shardshuffle=False)
    return [(row["__key__"], sorted(key for key in row if not key.startswith("__"))) for row in rows]


merged = samples("img.1.jpg", "img.1.txt", "img.2.jpg", "img.2.txt")
apart = samples("v1.0/img_1.jpg", "v1.0/img_1.txt", "v1.0/img_2.jpg", "v1.0/img_2.txt")
print("img.1, img.2:", merged, "v1.0/img_1, v1.0/img_2:", apart)
assert merged == [("img", ["1.jpg", "1.txt", "2.jpg", "2.txt"])]
assert apart == [("v1.0/img_1", ["jpg", "txt"]), ("v1.0/img_2", ["jpg", "txt"])]
PY
