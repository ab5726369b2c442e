#!/usr/bin/env bash
# accelerate 1.15.0 divides the last, incomplete accumulation of an epoch by the full number of batches.
#
# One would guess a mean over the batches that there are. Of five equal batches, accumulated by four, the first step moves the
# weight by 1 and the second, of one batch, by 0.25: the gradient of the last step of an epoch is too small.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 accelerate==1.15.0
HF_HOME="$folder" "$folder/venv/bin/python" - <<'PY'
import torch
from accelerate import Accelerator

accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
model = torch.nn.Linear(1, 1, bias=False)
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
model, optimizer, batches = accelerator.prepare(
    model, optimizer, torch.utils.data.DataLoader(torch.ones(5, 1), batch_size=1)
)
weights = []
for batch in batches:
    with accelerator.accumulate(model):
        # The gradient of each batch is -1.
        accelerator.backward(-model(batch).mean())
        optimizer.step()
        optimizer.zero_grad()
    weights.append(model.weight.item())
print("the weight after each batch:", weights)
assert weights == [0, 0, 0, 1, 1.25]
PY
