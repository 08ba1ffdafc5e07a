#!/usr/bin/env bash
# transformers 5.23.0 with tokenizers 0.23.3: save_pretrained() writes the truncation and padding of the last call
# into tokenizer.json, and other readers of that file then cut every text.
#
# Seen:     saved fresh, tokenizer.json says "truncation": null. After one call with truncation=True, max_length=4 and
#           padding="max_length" the saved file says max_length 4, and Tokenizer.from_file() gives 4 tokens for a
#           sentence of 9 and pads short ones. transformers itself reads the same folder back without cutting.
# Expected: the docstring of set_truncation_and_padding() says that the tokenizer has no truncation and padding before
#           the managed section and gets none again after it; arguments of a call belong to that call. A saved file
#           should not depend on how the last text was encoded before it was written.
# Touches:  models that are saved after training or evaluation (when the last call was truncated) and served by
#           programs that read tokenizer.json with the tokenizers library: documents lose their ends, and scores fall
#           in silence.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet transformers==5.23.0 tokenizers==0.23.3
cd "$work"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

text = "the quick brown fox jumps over the lazy dog"
vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *sorted(set(text.split()))])}
core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")

tokenizer.save_pretrained("fresh")
tokenizer([text, "fox"], truncation=True, max_length=4, padding="max_length")
tokenizer.save_pretrained("after")

seen = {}
for folder in ("fresh", "after"):
    reader = Tokenizer.from_file(f"{folder}/tokenizer.json")
    limit = reader.truncation and reader.truncation["max_length"]
    seen[folder] = long, short, limit = len(reader.encode(text)), len(reader.encode("fox")), limit
    print(f"{folder}: 9 words give {long} tokens, 1 word gives {short}; max_length {limit}")
again = len(PreTrainedTokenizerFast.from_pretrained("after")(text)["input_ids"])
print(f"after, read by transformers: {again} tokens")
if seen != {"fresh": (9, 1, None), "after": (4, 4, 4)} or again != 9:
    raise SystemExit("changed: expected 9 and 1 tokens fresh, 4 and 4 after, 9 by transformers")
PYTHON
