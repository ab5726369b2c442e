#!/usr/bin/env bash
# bitsandbytes (0.50.2) dequantises NF4 on a CPU to other numbers than it has quantised, where rows are no multiple of 64.
#
# quantize_4bit takes blocks of 64 values of the flattened matrix, one scale each. One would guess that dequantize_4bit
# takes the same ones. On a CPU it begins a block with every row: with rows of 96 values the mean error is 0.2 of the
# mean value in place of 0.09, without a word; code and scales put together by hand give 0.09. With rows of 64 or 128
# values both agree. A matrix that is quantised as (-1, 64) and dequantised to that shape is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 bitsandbytes==0.50.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
import bitsandbytes.functional as F


def error(weight, numbers):
    return float((numbers - weight).abs().mean() / weight.abs().mean())


torch.manual_seed(0)
for width, is_wrong in ((64, False), (96, True), (128, False), (48, True)):
    weight = torch.randn(192, width)
    packed, state = F.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    dequantised = F.dequantize_4bit(packed, quant_state=state)
    numbers = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten().long()
    by_hand = (state.code[numbers].view(-1, 64) * state.absmax[:, None]).view(weight.shape)
    print(f"rows of {width}: error {error(weight, dequantised):.3f}, put together by hand {error(weight, by_hand):.3f}")
    assert error(weight, by_hand) < 0.1
    assert (error(weight, dequantised) > 0.15) == is_wrong
    packed, state = F.quantize_4bit(weight.view(-1, 64), blocksize=64, quant_type="nf4")
    assert torch.equal(F.dequantize_4bit(packed, quant_state=state).view(weight.shape), by_hand)
PY
