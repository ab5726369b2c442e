#!/usr/bin/env bash
# A tokenizer of transformers 5.24.0 saves the truncation and padding of its last call, and tokenizers 0.23.3 obeys them.
#
# One would guess that max_length of a call ends with it. It is written to tokenizer.json: transformers reads the file and
# ignores it, while tokenizers.Tokenizer.from_file, as servers load it, cuts every text and pads every short one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/saved" <<'PY'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

words = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "a", "b", "c", "d", "e"])}
plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", pad_token="[PAD]")
tokenizer("a b c d e", truncation=True, padding="max_length", max_length=3)
tokenizer.save_pretrained(sys.argv[1])

again = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])("a b c d e")["input_ids"]
direct = Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
long, short = direct.encode("a b c d e").tokens, direct.encode("a").tokens
print("transformers", again, "tokenizers", long, short)
assert again == [2, 3, 4, 5, 6]
assert long == ["a", "b", "c"] and short == ["a", "[PAD]", "[PAD]"]
PY
