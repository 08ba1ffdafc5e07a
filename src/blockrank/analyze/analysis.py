"""An analysis from start to end: sample, look, read out everywhere, choose."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from blockrank.analyze.choice import Choice, choose, split_halves, whole_layers
from blockrank.analyze.judged import JudgedRequest, judged_requests
from blockrank.analyze.loading import Analysed
from blockrank.analyze.measures import measure
from blockrank.analyze.reading import ReadoutSweep
from blockrank.analyze.result import Analysis, setting_name
from blockrank.analyze.settings import AnalysisSettings
from blockrank.analyze.shares import AttentionShares, mean_shares, prompt_shares
from blockrank.data import Collection
from blockrank.evaluate.first_stage import FirstStage
from blockrank.layout import TokenisedRequest
from blockrank.ranker import Ranker
from blockrank.report.environment import machine, versions
from blockrank.spec import RankSpec
from blockrank.types import InputError, RankRequest
from blockrank.types.progress import NamedProgress


def analyze(
    analysed: Analysed,
    collection: Collection,
    first_stage: FirstStage,
    settings: AnalysisSettings,
    *,
    progress: NamedProgress | None = None,
) -> Analysis:
    """Find out where a model's attention goes and which of it ranks best, on the judged queries of a collection.

    Full attention is looked at on few documents (`shares`); every layer, head and signal token under the model's own
    block pattern (`readouts`); then subsets of heads at the most promising layers (`choice`).
    Raises `InputError` where the collection has too few judged queries with a relevant candidate.
    """
    report = progress or _silent
    judged = judged_requests(collection, first_stage, settings)
    ranker = Ranker(analysed.model)
    tokenised = [_tokenised(ranker, item.request) for item in judged]
    shares = _shares(ranker, judged, settings, report)
    is_dev = split_halves(len(judged), settings.seed)
    reading = ReadoutSweep(analysed, judged, tokenised, settings.single_tokens)
    curves = reading.development(is_dev, report)
    closer = reading.rest(is_dev, curves, report)
    values = {**whole_layers(reading.grid), **closer}
    choice = choose(values, is_dev, reading.own, analysed.layers, settings.seed)
    first_stage_QM, ceiling_QM = _bounds(judged)
    return Analysis(
        model=analysed.name,
        collection=collection.name,
        first_stage=first_stage.name,
        settings=settings,
        own=analysed.own,
        spec=_chosen_spec(analysed, choice, collection.name, int(is_dev.sum())),
        shares=shares,
        grid=reading.grid,
        is_dev_Q=is_dev,
        values=values,
        curves=curves,
        choice=choice,
        first_stage_QM=first_stage_QM,
        ceiling_QM=ceiling_QM,
        notes=tuple(_notes(tokenised, shares, judged, settings)),
        environment=_environment(analysed),
    )


def _tokenised(ranker: Ranker, request: RankRequest) -> TokenisedRequest:
    """A request as tokens. Raises `InputError` where nothing of one of its documents can be read."""
    tokenised = ranker.tokenise(request).only
    if unread := sorted(set(range(len(request.candidates))) - set(tokenised.indices)):
        doc_id = request.candidates[unread[0]].doc_id
        raise InputError(f"query_id {request.query_id!r}: the document {doc_id!r} yields no token of this tokenizer.")
    return tokenised


def _silent(_what: str, _done: int, _of: int) -> None:
    """Report no progress."""


def _shares(
    ranker: Ranker, judged: Sequence[JudgedRequest], settings: AnalysisSettings, report: NamedProgress
) -> AttentionShares:
    """Where attention goes, over the first queries of the sample with few of their documents."""
    some = judged[: settings.attention_queries]
    found = []
    for place, item in enumerate(some):
        generator = np.random.default_rng([settings.seed, place])
        few = item.some(settings.documents, generator)
        request = _tokenised(ranker, few.request)
        found.append(prompt_shares(ranker.model, request, few.relevance_C > 0, settings.rows, generator))
        report("full attention", place + 1, len(some))
    return mean_shares(found)


def _bounds(judged: Sequence[JudgedRequest]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(Q, M) of the first stage's order, and of the best possible order of the candidates."""
    first = [measure(-item.first_stage_C.astype(float), item.relevance_C, item.ideal) for item in judged]
    best = [measure(item.relevance_C.astype(float), item.relevance_C, item.ideal) for item in judged]
    return np.stack(first), np.stack(best)


def _chosen_spec(analysed: Analysed, choice: Choice, collection: str, queries: int) -> RankSpec:
    """The checkpoint's own spec where its setting was kept, else the chosen setting, with a note of its origin."""
    if analysed.own is not None and choice.chosen == choice.own:
        return analysed.own
    note = f"Chosen by blockrank analyze on {queries} queries of {collection}: {setting_name(choice.chosen)}."
    notes = " ".join(filter(None, [analysed.base.notes, note]))
    return choice.chosen.spec(analysed.base).changed(notes=notes)


def _notes(
    tokenised: Sequence[TokenisedRequest],
    shares: AttentionShares,
    judged: Sequence[JudgedRequest],
    settings: AnalysisSettings,
) -> list[str]:
    """What a reader of the result has to know."""
    notes = []
    if len(judged) < settings.queries:
        notes.append(f"Only {len(judged)} judged queries have a relevant candidate and one that is not.")
    if restarting := shares.positions.count("restarting"):
        notes.append(
            f"Under full attention {restarting} of {len(shares.positions)} prompts are longer than the model's "
            "position table; there every document starts at the same position, as under the block pattern."
        )
    documents = sum(len(request.documents) for request in tokenised)
    if cut := sum(segment.cut > 0 for request in tokenised for segment in request.documents):
        notes.append(f"{cut} of {documents} candidates were cut to the model's limit of a segment.")
    if queries := sum(request.query_cut > 0 for request in tokenised):
        notes.append(f"{queries} of {len(tokenised)} queries were cut to the model's limit.")
    return notes


def _environment(analysed: Analysed) -> dict[str, object]:
    model = analysed.model
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(("torch", "transformers", "numpy")),
        "machine": machine(),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "backend": model.backend.name,
        "architecture": type(model.module).__name__,
    }
