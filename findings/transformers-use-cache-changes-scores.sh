#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0: use_cache=False changes the logits where position ids do not go up by one.
#
# Seen:     a tiny Qwen3 reads 12 tokens whose position ids start again in the middle (also: jump ahead). With the
#           default use_cache the last token sees all tokens before it. With use_cache=False it sees none from before
#           the restart: changing those tokens moves its logits by exactly 0. An attention_mask of ones brings the
#           first result back. Without cache and mask, every step other than +1 is taken for the start of another
#           packed sequence.
# Expected: use_cache is documented as a matter of speed (return past keys and values), position_ids as indices of the
#           position embeddings. Neither says that it decides what attends to what, least of all only together.
# Touches:  listwise reranking in one prompt, where each document starts at the same position or the query lies at a
#           fixed offset. Who turns the cache off, since a ranking generates nothing, gets a model that reads no
#           documents.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

torch.manual_seed(0)
sizes = dict(vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
model = Qwen3ForCausalLM(Qwen3Config(num_attention_heads=4, num_key_value_heads=2, head_dim=8, **sizes)).eval()
ids = torch.arange(10, 22)[None]
changed_ids = ids.clone()
changed_ids[0, :3] = 7  # other tokens at the very beginning
positions = {
    "going up by one": torch.arange(12)[None],
    "starting again": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]]),
    "jumping ahead": torch.tensor([[0, 1, 2, 3, 100, 101, 102, 103, 104, 105, 106, 107]]),
}


def last(tokens: torch.Tensor, **options: object) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, **options).logits[0, -1]


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


right = True
for name, position_ids in positions.items():
    default = last(ids, position_ids=position_ids)
    lean = last(ids, position_ids=position_ids, use_cache=False)
    masked = last(ids, position_ids=position_ids, use_cache=False, attention_mask=torch.ones_like(ids))
    read = gap(default, last(changed_ids, position_ids=position_ids))
    read_lean = gap(lean, last(changed_ids, position_ids=position_ids, use_cache=False))
    moved, restored = gap(default, lean), gap(default, masked)
    print(f"{name}: use_cache=False moves the logits by {moved:.4f} (with a mask of ones by {restored:.4f});")
    print(f"    other first tokens move them by {read:.4f}, with use_cache=False by {read_lean:.4f}")
    blind = name != "going up by one"
    right &= restored < 1e-5 and read > 1e-3
    right &= (moved > 1e-3) == blind and (read_lean < 1e-6) == blind
if not right:
    raise SystemExit("changed: expected the same logits for steps of one only, and first tokens unread elsewhere")
PYTHON
