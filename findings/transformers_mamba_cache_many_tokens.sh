#!/usr/bin/env bash
# transformers 5.24.0 forgets Mamba's recurrent state where more than one token follows a cache.
#
# One would guess that a cache goes on with a new turn of a chat, or a prompt in chunks, as it does for attention. The scan
# over several tokens starts from zeros (one token at a time goes on): other logits, no error. Measured on the CPU path.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0
"$folder/venv/bin/python" - <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

torch.manual_seed(0)
mamba = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.5)
llama = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
ids = torch.randint(2, 64, (1, 12))


@torch.no_grad()
def largest_difference(model, argument: str, chunk: int) -> float:
    """Return the largest difference of the logits after a cache of six tokens, with `chunk` tokens a call."""
    whole = model(ids).logits[:, 6:]
    output = model(ids[:, :6], use_cache=True)
    parts = []
    for start in range(6, 12, chunk):
        output = model(ids[:, start : start + chunk], use_cache=True, **{argument: output[argument]})
        parts.append(output.logits)
    return (torch.cat(parts, dim=1) - whole).abs().max().item()


model, attention = MambaForCausalLM(mamba).eval(), LlamaForCausalLM(llama).eval()
one, six = (largest_difference(model, "cache", chunk) for chunk in (1, 6))
of_llama = largest_difference(attention, "past_key_values", 6)
print(f"largest difference: Mamba one by one {one:.1e}, six at once {six:.1e}; Llama six at once {of_llama:.1e}")
assert one < 1e-3 and of_llama < 1e-3
assert six > 0.5
PY
