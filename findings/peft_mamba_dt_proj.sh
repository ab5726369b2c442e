#!/usr/bin/env bash
# peft 0.21.2 puts a LoRA adapter on dt_proj of transformers' Mamba (5.24.0), which is then never used in training.
#
# One would guess that an adapter that peft accepts is trained, as it refuses out_proj and conv1d of this model. The mixer
# reads dt_proj.weight and does not call the layer, so the adapter gets no gradient and the output does not depend on it,
# until it is merged: then the model is another.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0 peft==0.21.2
"$folder/venv/bin/python" - <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from transformers import MambaConfig, MambaForCausalLM

torch.manual_seed(0)
model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8))
adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["x_proj", "dt_proj"]))
ids = torch.arange(1, 13)[None]
adapted(input_ids=ids, labels=ids).loss.backward()
gradients = {name: parameter.grad for name, parameter in adapted.named_parameters() if "lora_B" in name}
for name, gradient in gradients.items():
    print(name, None if gradient is None else gradient.norm().item())
assert all((gradient is None) == ("dt_proj" in name) for name, gradient in gradients.items()) and len(gradients) == 4

with torch.no_grad():
    for name, parameter in adapted.named_parameters():
        if "dt_proj" in name and "lora_B" in name:
            parameter.fill_(1.0)
    before = adapted(input_ids=ids).logits
    merged = adapted.merge_and_unload()(input_ids=ids).logits
print("largest difference after merging:", (before - merged).abs().max().item())
assert (before - merged).abs().max() > 1e-4
PY
