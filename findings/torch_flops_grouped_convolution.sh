#!/usr/bin/env bash
# torch's FlopCounterMode (2.14.1) counts the weight gradient of a grouped convolution as if it had one group.
#
# One would guess that the backward pass of a depthwise convolution costs twice its forward pass, as that of any linear
# map does. It is counted as (1 + channels) times the forward pass: 129 times with 128 channels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.utils.flop_counter import FlopCounterMode


def counted(groups: int) -> tuple[int, int]:
    convolution = torch.nn.Conv2d(128, 128, 3, padding=1, groups=groups)
    picture = torch.randn(3, 128, 14, 14, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        convolution(picture).sum().backward()
    counts = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    return counts["aten.convolution"], counts["aten.convolution_backward"]


ratios = {groups: backward / forward for groups in (1, 128) for forward, backward in [counted(groups)]}
print("backward over forward, by groups:", ratios)
assert ratios == {1: 2.0, 128: 129.0}
PY
