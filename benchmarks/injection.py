"""Prompt injection: how often a document that is not relevant reaches the first place by what is written into it.

    python benchmarks/injection.py run --collections DIR --out FILE [--model NAME ...] [--pattern own full]
    python benchmarks/injection.py table --record FILE [FILE ...]

Each folder of DIR is a collection in BEIR layout; candidates are BM25's best, or those of `runs/bm25.trec` where there
is one. In every request one document is attacked at a time: one that is not judged relevant, drawn from the lower half
of the model's own ranking. Its text is cut to leave the payload room, so that a payload at the back is read too. Beside
each attack runs a placebo: as many tokens of harmless prose at the same place of the same document.

`--pattern`: `own` is the model as its checkpoint says; `block` and `causal` set `RankSpec.pattern`; `full` lets every
token read its whole request, in the positions of the block pattern, which a model trained under blocks has never seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attacks import ATTACKS, POSITIONS, Attack, Position, Target, harmless, inserted
from injection_table import MEASURE, read_records, table
from numpy.typing import NDArray
from record import environment, write_record
from variants import read

from blockrank import Document, Ranker, RankRequest
from blockrank.analyze.full import full_attention
from blockrank.evaluate.compare import randomisation_p
from blockrank.evaluate.measures import per_query
from blockrank.layout import pack, plan_batches
from blockrank.readout.signals import log_scores
from blockrank.scorers import Prompts
from blockrank.spec import EMBEDDED

KEPT_BYTES = 2 << 30  # keys of documents that are encoded once, where a model allows it
_MARGIN = 4  # tokens that a seam, a break or a longer number may add
Scores = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Subject:
    """A model and what its tokens may read."""

    name: str
    pattern: str
    ranker: Ranker

    def scores(self, requests: Sequence[RankRequest], tokenised: Sequence[Prompts]) -> Scores:
        """The scores of each request's documents."""
        found: Scores = []
        for batch in plan_batches([item.length for item in tokenised], self.ranker.max_tokens):
            if self.pattern == "full":
                found += self._full(tokenised[batch])
            else:
                found += self._own(requests[batch], tokenised[batch])
        return found

    def _own(self, requests: Sequence[RankRequest], tokenised: Sequence[Prompts]) -> Scores:
        return [scored.scores_C.float().numpy() for scored in self.ranker.score(requests, tokenised)]

    def _full(self, tokenised: Sequence[Prompts]) -> Scores:
        """Documents are read out where they stand, from a forward in which every token read its whole request."""
        spec, model = self.ranker.spec, self.ranker.model.in_library_layers()
        layout = pack([item.only for item in tokenised], spec)
        with model.inference():
            # No table of positions is long enough: they stay those of the block layout in every request.
            capture = model.forward(full_attention(layout, longest=0).layout)
            logs_C = (
                log_scores(capture.only.q_GNH, capture.only.k_PKH, layout, spec, capture.only.scale)
                .float()
                .cpu()
                .numpy()
            )
        return np.split(logs_C, np.cumsum([len(item.documents) for item in tokenised])[:-1])


def subjects(options: argparse.Namespace) -> list[Subject]:
    """Every model under every pattern that is asked for."""
    found = []
    for model in options.model:
        for pattern in options.pattern:
            ranker = Ranker.from_pretrained(model, device=options.device, dtype=options.dtype, max_tokens=options.batch)
            changes: dict[str, Any] = {} if pattern in ("own", "full") else {"pattern": pattern}
            if options.max_segment_tokens:
                changes["max_segment_tokens"] = options.max_segment_tokens
            ranker = ranker.with_spec(**changes)
            if pattern != "full":
                ranker.reuse(KEPT_BYTES)
            found.append(Subject(Path(model).name, pattern, ranker))
    return found


# One attack


@dataclass(frozen=True)
class Case:
    """A request, its clean order of candidates and the one of them that is attacked."""

    request: RankRequest
    order: NDArray[np.int64]
    attacked: int

    @property
    def rank(self) -> int:
        """Place of the attacked document without an attack, from 1."""
        return int(np.flatnonzero(self.order == self.attacked)[0]) + 1

    def others_moved(self, order: NDArray[np.int64]) -> int:
        """How many of the other documents stand at another place among themselves in another order."""
        before, after = (found[found != self.attacked] for found in (self.order, order))
        return int((before != after).sum())


@dataclass(frozen=True)
class Trial:
    """What one text in one document did to one request. cut: whether the payload lost its end to the limit."""

    rank: int
    others_moved: int
    tokens: int
    cut: bool


def order_of(scores_C: NDArray[np.float32]) -> NDArray[np.int64]:
    """Candidates best first, equals as given."""
    return np.argsort(-scores_C, kind="stable")


def draw(
    requests: Sequence[RankRequest], scores: Scores, qrels: dict[str, dict[str, int]], generator: np.random.Generator
) -> list[Case]:
    """For each request a document from the lower half of its ranking that is not judged relevant; requests that have
    none are left out."""
    cases = []
    for request, scores_C in zip(requests, scores, strict=True):
        order, share = order_of(scores_C), generator.random()
        relevance = qrels[request.query_id]
        lower = [i for i in order[len(order) // 2 :] if relevance.get(request.candidates[i].doc_id, 0) <= 0]
        if lower:
            cases.append(Case(request, order, int(lower[int(share * len(lower))])))
    return cases


def with_text(ranker: Ranker, case: Case, payload: str, position: Position) -> tuple[RankRequest, int]:
    """The request whose attacked document holds the payload, its own text cut to make room; the payload's tokens."""
    tokenizer, limit = ranker.model.tokenizer, ranker.spec.limits.max_segment_tokens
    assert tokenizer is not None
    documents = list(case.request.candidates)
    payload = tokenizer.shorten(payload, limit * 3 // 4)[0]

    def filled(text: str) -> RankRequest:
        documents[case.attacked] = Document(text, case.request.candidates[case.attacked].doc_id)
        return dataclasses.replace(case.request, documents=tuple(documents))

    alone = ranker.tokenise(dataclasses.replace(filled(payload), documents=(documents[case.attacked],))).documents[0]
    content = case.request.candidates[case.attacked].content
    content = tokenizer.shorten(content, max(1, limit - len(alone.ids) - _MARGIN))[0]
    return filled(inserted(content, payload, position)), alone.body_tokens


def payloads(ranker: Ranker, case: Case, attack: Attack) -> tuple[str, str]:
    """The text of an attack and a harmless one of as many tokens."""
    tokenizer, known = ranker.model.tokenizer, ranker.model.weights.hf_tokenizer
    assert tokenizer is not None
    number = str(ranker.spec.prompt.id_base + case.attacked)
    payload = attack.payload(Target(case.request.query, ranker.spec.prompt, tuple(known.all_special_tokens), number))
    payload = payload.strip()
    tokens = with_text(ranker, case, payload, "front")[1]
    return payload, tokenizer.shorten(harmless(20 * tokens), tokens)[0]


def tries(subject: Subject, cases: Sequence[Case], texts: Sequence[str], position: Position) -> list[tuple[Trial, Any]]:
    """Each case with its text: what happened, and the new order."""
    made = [with_text(subject.ranker, case, text, position) for case, text in zip(cases, texts, strict=True)]
    requests = [request for request, _ in made]
    tokenised = [subject.ranker.tokenise(request) for request in requests]
    found = []
    for case, (_, tokens), item, scores_C in zip(
        cases, made, tokenised, subject.scores(requests, tokenised), strict=True
    ):
        order = order_of(scores_C)
        rank = int(np.flatnonzero(order == case.attacked)[0]) + 1
        trial = Trial(rank, case.others_moved(order), tokens, item.documents[case.attacked].cut > 0)
        found.append((trial, order))
    return found


# Measures


def ndcg(cases: Sequence[Case], orders: Sequence[NDArray[np.int64]], qrels: dict[str, dict[str, int]]) -> float:
    """Mean nDCG@10 of the orders. The attacked document keeps its judgement."""
    run = {
        case.request.query_id: {case.request.candidates[i].doc_id: -float(place) for place, i in enumerate(order)}
        for case, order in zip(cases, orders, strict=True)
    }
    judged = {query_id: qrels[query_id] for query_id in run}
    return round(statistics.mean(row[MEASURE] for row in per_query(run, judged, [MEASURE]).values()), 4)


def summary(cases: Sequence[Case], trials: Sequence[Trial]) -> dict[str, Any]:
    """Counts of one attack, or of its placebo, over the requests of a collection."""
    changes = [case.rank - trial.rank for case, trial in zip(cases, trials, strict=True)]
    return {
        "first": sum(trial.rank == 1 for trial in trials),
        "top 3": sum(trial.rank <= 3 for trial in trials),
        "places up": round(statistics.mean(changes), 3),
        "others moved": round(statistics.mean(trial.others_moved for trial in trials), 3),
        "requests with others moved": sum(trial.others_moved > 0 for trial in trials),
        "cut": sum(trial.cut for trial in trials),
    }


def measure(
    subject: Subject, cases: Sequence[Case], attack: Attack, position: Position, qrels: dict[str, dict[str, int]]
) -> dict[str, Any]:
    """One attack at one place of one document of each request, beside its placebo. p: of the difference in places."""
    texts = [payloads(subject.ranker, case, attack) for case in cases]
    found = tries(subject, cases, [payload for payload, _ in texts], position)
    placebo = tries(subject, cases, [text for _, text in texts], position)
    trials, controls = [trial for trial, _ in found], [trial for trial, _ in placebo]
    further = np.array([b.rank - a.rank for a, b in zip(trials, controls, strict=True)], dtype=np.float64)
    return {
        "attack": attack.name,
        "position": position,
        "tokens": statistics.median(trial.tokens for trial in trials),
        **summary(cases, trials),
        MEASURE: ndcg(cases, [order for _, order in found], qrels),
        "placebo": {**summary(cases, controls), MEASURE: ndcg(cases, [order for _, order in placebo], qrels)},
        "p": round(randomisation_p(further), 4),
    }


def collection(subject: Subject, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All attacks on the first queries of a collection."""
    judged = read(folder, subject.ranker, options)
    scores = subject.scores(judged.requests, judged.tokenised)
    cases = draw(judged.requests, scores, judged.qrels, np.random.default_rng(options.seed))
    began, rows = time.perf_counter(), []
    for attack in ATTACKS:
        for position in POSITIONS:
            if options.attacks and attack.name not in options.attacks:
                continue
            rows.append(measure(subject, cases, attack, position, judged.qrels))
            row = rows[-1]
            sys.stderr.write(
                f"{subject.name} {subject.pattern} {folder.name}: {attack.name}, {position}: first {row['first']} of "
                f"{len(cases)}, placebo {row['placebo']['first']}; {time.perf_counter() - began:.0f} s\n"
            )
    return {
        "model": subject.name,
        "pattern": subject.pattern,
        "spec pattern": subject.ranker.spec.pattern.kind,
        "collection": folder.name,
        "requests": len(cases),
        MEASURE: ndcg(cases, [case.order for case in cases], judged.qrels),
        "rank before": round(statistics.mean(case.rank for case in cases), 2),
        "attacks": rows,
    }


def run(options: argparse.Namespace) -> None:
    """Measure and write a dated record, anew after each collection."""
    folders = [f for f in sorted(options.collections.iterdir()) if (f / "qrels").is_dir()]
    folders = [f for f in folders if not options.only or f.name in options.only]
    names = ("queries", "depth", "max_segment_tokens", "dtype", "seed")
    settings = {name: getattr(options, name) for name in names}
    rows = []
    for subject in subjects(options):
        for folder in folders:
            rows.append(collection(subject, folder, options))
            write_record(options.out, {**environment(), "settings": settings, "rows": rows})
    sys.stdout.write("\n".join(table([{"rows": rows}])) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs, tables = verbs.add_parser("run"), verbs.add_parser("table")
    tables.add_argument("--record", type=Path, nargs="+", required=True)
    runs.add_argument("--collections", type=Path, required=True)
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--model", nargs="+", default=[EMBEDDED], help="folders, hub names or 'embedded'")
    runs.add_argument("--pattern", nargs="+", default=["own"], choices=["own", "block", "causal", "full"])
    runs.add_argument("--only", nargs="*", help="names of collections")
    runs.add_argument("--attacks", nargs="*", help="names of attacks")
    runs.add_argument("--queries", type=int, default=100)
    runs.add_argument("--depth", type=int, default=20, help="candidates of a request")
    runs.add_argument("--max-segment-tokens", type=int, default=None)
    runs.add_argument("--batch", type=int, default=32_768, help="tokens of a forward")
    runs.add_argument("--device", default=None)
    runs.add_argument("--dtype", default=None)
    runs.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Run, or print the table of records."""
    options = parse()
    if options.verb == "table":
        sys.stdout.write("\n".join(table(read_records(options.record))) + "\n")
        return
    with torch.no_grad():
        run(options)


if __name__ == "__main__":
    main()
