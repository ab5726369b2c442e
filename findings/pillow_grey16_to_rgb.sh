#!/usr/bin/env bash
# Pillow 13.0.0 turns a 16-bit grey PNG into RGB by cutting every level above 255 to 255.
#
# One would guess that convert("RGB"), as code that loads pictures for a model calls it, scales 0..65535 to 0..255, as it
# scales other modes. The levels 0, 200, 256, 30000, 65535 become 0, 200, 255, 255, 255: a photo or scan is almost white.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/grey.png" <<'PY'
import sys

import numpy as np
from PIL import Image

levels = [0, 200, 256, 30000, 65535]
Image.fromarray(np.array([levels], dtype=np.uint16)).save(sys.argv[1])
picture = Image.open(sys.argv[1])
rgb = np.asarray(picture.convert("RGB"))
print(picture.mode, np.asarray(picture).tolist(), "as RGB:", rgb[..., 0].tolist())
assert picture.mode == "I;16" and np.asarray(picture).tolist() == [levels]
assert all(rgb[0, :, channel].tolist() == [0, 200, 255, 255, 255] for channel in range(3))
PY
