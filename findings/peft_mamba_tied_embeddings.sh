#!/usr/bin/env bash
# peft 0.21.2 merges an adapter on the tied embeddings of transformers' Mamba (5.24.0) into another model, without a warning.
#
# One would guess that merging keeps the outputs, or the warning that peft gives for lm_head. The adapter acts on the input
# embeddings alone; merged, it is in the output layer too, which shares the weight.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0 peft==0.21.2
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import MambaConfig, MambaForCausalLM

ids = torch.arange(1, 13)[None]


def merge(target: str) -> tuple[float, bool]:
    """Return the largest change of the logits by merging an adapter on `target`, and whether peft warned of ties."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, tie_word_embeddings=True)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        model = MambaForCausalLM(config)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=[target])).eval()
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.fill_(0.05)
        before = adapted(input_ids=ids).logits
        merged = adapted.merge_and_unload()
        after = merged(input_ids=ids).logits
    assert merged.lm_head.weight is merged.backbone.embeddings.weight
    return (before - after).abs().max().item(), any("tie" in str(one.message) for one in caught)


seen = {target: merge(target) for target in ("embeddings", "lm_head", "x_proj")}
print("largest change by merging, and a warning:", seen)
assert seen["embeddings"][0] > 0.05 and not seen["embeddings"][1]
assert seen["lm_head"][0] > 0.05 and seen["lm_head"][1]
assert seen["x_proj"][0] < 1e-4
PY
