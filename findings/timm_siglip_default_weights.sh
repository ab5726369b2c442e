#!/usr/bin/env bash
# timm 1.0.31 gives the plain name vit_so400m_patch14_siglip_224 the weights of SigLIP 2, timm 0.9.16 those of SigLIP.
#
# One would guess that a model's name goes on meaning the same weights. It moved for the names at 224 and 256 px and for
# the base model at 384, and stayed for vit_so400m_patch14_siglip_384: towers built by two plain names are of two
# generations. Only a name with its tag (.webli, .v2_webli) keeps its meaning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PY'
import sys

import timm

NAMES = ("vit_so400m_patch14_siglip_224", "vit_base_patch16_siglip_256", "vit_so400m_patch14_siglip_384")
tags = [timm.get_pretrained_cfg(name, allow_unregistered=False).tag for name in NAMES]
print(timm.__version__, dict(zip(NAMES, tags)))
assert tags == sys.argv[1].split(","), tags
PY
for pair in 0.9.16:webli,webli,webli 1.0.31:v2_webli,v2_webli,webli; do
    python3 -m venv "$folder/${pair%%:*}"
    "$folder/${pair%%:*}/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 "timm==${pair%%:*}"
    "$folder/${pair%%:*}/bin/python" "$folder/show.py" "${pair#*:}"
done
