#!/usr/bin/env bash
# timm 1.0.31 builds for SigLIP at 384 px a transform that resizes to 426 and crops, where SigLIP's processor squashes.
#
# One would guess that timm.data.create_transform gives a model the pictures that it was trained on. crop_pct is 0.9 for
# this model, so the outer tenth of a picture is cut off; SiglipImageProcessor of transformers scales the whole picture.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 transformers==5.24.0 pillow==13.0.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import numpy as np
import timm
from PIL import Image
from transformers import SiglipImageProcessor

model = timm.create_model("vit_so400m_patch14_siglip_384", pretrained=False, depth=1)
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
print("timm:", config["crop_pct"], transform)
# A white frame, a tenth of the width on each side, around black: what is cropped is not seen.
picture = np.full((400, 400, 3), 255, dtype=np.uint8)
picture[18:-18, 18:-18] = 0
picture = Image.fromarray(picture)
by_timm = transform(picture).numpy()
size = {"height": 384, "width": 384}
by_siglip = SiglipImageProcessor(size=size)(picture, return_tensors="np")["pixel_values"][0]
print("brightest pixel by timm", by_timm.max(), "by SigLIP's processor", by_siglip.max())
assert config["crop_pct"] == 0.9
assert by_timm.shape == by_siglip.shape == (3, 384, 384)
assert by_siglip.max() > 0.99 and by_timm[:, 5:-5, 5:-5].max() < -0.9
PY
