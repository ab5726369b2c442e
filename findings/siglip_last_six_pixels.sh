#!/usr/bin/env bash
# SigLIP with 14-pixel patches at 384 pixels never sees the last six rows and columns (timm 1.0.31, transformers 5.24.0).
#
# One would guess that a model sees every pixel of its input. 384 = 27 * 14 + 6, and the convolution that makes the patches has
# no padding: whatever stands in the last six pixels at the right and below, the output is the same to the bit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 transformers==5.24.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import timm
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

torch.manual_seed(0)
config = SiglipVisionConfig(image_size=384, patch_size=14, num_hidden_layers=1, hidden_size=96, intermediate_size=96)
by_transformers = SiglipVisionModel(config).eval()
by_timm = timm.create_model("vit_so400m_patch14_siglip_384", pretrained=False, depth=1).eval()
outputs = {"timm": by_timm.forward_features, "transformers": lambda x: by_transformers(x).last_hidden_state}
picture = torch.rand(1, 3, 384, 384)
with torch.no_grad():
    for name, output in outputs.items():
        differences = []
        for border in (6, 7):
            changed = picture.clone()
            changed[..., -border:] = 0
            changed[..., -border:, :] = 0
            differences.append((output(picture) - output(changed)).abs().max().item())
        print(name, tuple(output(picture).shape), "six pixels changed:", differences[0], "seven:", differences[1])
        assert output(picture).shape[1] == 27 * 27
        assert differences[0] == 0 and differences[1] > 0
PY
