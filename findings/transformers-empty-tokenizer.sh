#!/usr/bin/env bash
# transformers 5.23.0: a model folder without tokenizer files gives a tokenizer that encodes every text alike.
#
# Seen:     a folder with nothing but config.json. For model type qwen3 (also qwen2, gpt2) AutoTokenizer returns a
#           tokenizer with one entry that encodes every text to no token at all; for bert one that makes every word
#           [UNK]. No error, no warning. For llama and mistral the same call raises a ValueError.
# Expected: from_pretrained() is documented to load the vocabulary files of that folder, and an error for missing ones
#           is what the other types give.
# Touches:  every pipeline that copies weights and forgets the tokenizer (a training output folder, a partial
#           download). Queries and documents all look alike to the model: it ranks noise, and the process exits with
#           0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet transformers==5.23.0 tokenizers==0.23.3
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import json
from pathlib import Path

from transformers import AutoTokenizer

texts = ["how to reset a password", "weather in the mountains today"]
seen = {}
for model_type in ("qwen3", "bert", "llama"):
    Path(model_type).mkdir()
    Path(model_type, "config.json").write_text(json.dumps({"model_type": model_type}))
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_type)
    except ValueError as error:
        seen[model_type] = "ValueError"
        print(f"{model_type}: ValueError: {str(error).splitlines()[0][:90]}")
        continue
    seen[model_type] = [sorted(set(tokenizer(text, add_special_tokens=False)["input_ids"])) for text in texts]
    print(f"{model_type}: {len(tokenizer)} entries, distinct ids of two texts: {seen[model_type]}")
bert_alike = seen["bert"] != "ValueError" and seen["bert"][0] == seen["bert"][1] and len(seen["bert"][0]) == 1
if seen["qwen3"] != [[], []] or not bert_alike or seen["llama"] != "ValueError":
    raise SystemExit("changed: expected no ids for qwen3, one id for every word for bert, a ValueError for llama")
PYTHON
