#!/usr/bin/env bash
# Triton 3.8.0's interpreter adds bf16 numbers as bit patterns (1 + 1 = 1.7e38), and cuts fp32 to bf16 without rounding.
#
# One would guess that a kernel which is right under TRITON_INTERPRET=1 in every type is right on a GPU, and the reverse.
# In bf16 neither holds: sums of bf16 are nonsense, and what a kernel stores as bf16 is never above the exact number, 0.3 %
# below it in the mean, where torch's rounding has no bias. Numbers are right where a kernel casts what it loads to fp32
# first, and outputs are comparable where it stores fp32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 triton==3.8.0 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import torch
import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n: tl.constexpr):
    index = tl.arange(0, n)
    tl.store(out + index, tl.load(x + index) + tl.load(y + index))


@triton.jit
def add_wide(x, y, out, n: tl.constexpr):
    index = tl.arange(0, n)
    tl.store(out + index, tl.load(x + index).to(tl.float32) + tl.load(y + index).to(tl.float32))


@triton.jit
def narrow(x, out, n: tl.constexpr):
    index = tl.arange(0, n)
    tl.store(out + index, tl.load(x + index).to(tl.bfloat16))


ones, total, wide = torch.ones(4, dtype=torch.bfloat16), torch.empty(4, dtype=torch.bfloat16), torch.empty(4)
add[(1,)](ones, ones, total, 4)
add_wide[(1,)](ones, ones, wide, 4)
x = 1 + torch.rand(4096, generator=torch.Generator().manual_seed(0))
cut = torch.empty(4096, dtype=torch.bfloat16)
narrow[(1,)](x, cut, 4096)
bias, usual = (((y.float() - x) / x).mean().item() for y in (cut, x.bfloat16()))
print(f"triton {triton.__version__}, interpreted: 1 + 1 = {total[0].item():.3g} in bf16, {wide[0].item():.3g} after a cast")
print(f"fp32 to bf16: off by {bias:.1e} in the mean, torch by {usual:.1e}; above the number: {(cut.float() > x).sum()} of 4096")
assert total[0].item() > 1e38 and wide[0].item() == 2
assert bool((cut.float() <= x).all()) and bias < -2e-3 and abs(usual) < 1e-4
PY
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/show.py"
