"""Turn a trained checkpoint into the embedded model: int8 rows, without the weights that no score depends on.

python recipes/mini/release.py --checkpoint build/mini --out src/blockrank/models/mini
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

from blockrank.layout import pack
from blockrank.model import RankModel, load_model
from blockrank.model.int8_file import write_int8
from blockrank.readout.signals import log_scores
from blockrank.types import RankRequest

_log = logging.getLogger(__name__)


def unused_weights(model: RankModel) -> list[str]:
    """Names of parameters that get no gradient from any score: what the read-out never touches."""
    assert model.tokenizer is not None
    request = RankRequest("a question", ["one document", "another one"])
    layout = pack([model.tokenizer.tokenise_request(request, model.spec)], model.spec)
    capture = model.forward(layout).only
    log_scores(capture.q_GNH, capture.k_PKH, layout, model.spec, capture.scale)[0].backward()
    return [name for name, weight in model.module.named_parameters() if weight.grad is None]


def main() -> None:
    """Write the embedded model."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = load_model(options.checkpoint, device="cpu")
    omit = unused_weights(model)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(options.checkpoint / name, options.out / name)
    model.spec.save(options.out)
    path = write_int8(model.module.state_dict(), options.out, omit)
    kept = sum(w.numel() for name, w in model.module.named_parameters() if name not in omit)
    _log.info("%s: %.1f MB, %.2f M parameters, %d omitted", path, path.stat().st_size / 1e6, kept / 1e6, len(omit))


if __name__ == "__main__":
    main()
