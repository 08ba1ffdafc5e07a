"""`Ranker`: requests in, rankings out. One path for one request and for a thousand."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from blockrank.configfile import checked
from blockrank.errors import is_out_of_memory
from blockrank.keep.identity import model_identity
from blockrank.layout import Memo, TokenisedRequest, forward_tokens, pack, plan_alike, plan_batches
from blockrank.model import Devices, Layers, RankModel, load_model
from blockrank.reuse.memory import MemoryStore
from blockrank.scorers import SCORERS, Prompts, PromptWriter, Scored, Scorer, resolve_scorer
from blockrank.spec import RankSpec
from blockrank.types import (
    CapacityError,
    Document,
    Evidence,
    InputError,
    ModelError,
    RankerFacts,
    Ranking,
    RankRequest,
    SteppedRanker,
)
from blockrank.types.progress import CountProgress

if TYPE_CHECKING:
    from blockrank.layout import Segment

DEFAULT_MAX_TOKENS = 32_768
_TOKENS_SHARE = 32  # documents' tokens may take this part of the memory for their keys, beside it
_REMEMBERED = 0.9  # share of the memory that `remember` may fill; what is new in later calls takes the rest
REQUEST_WINDOW = 64  # requests tokenised ahead when batches are cut from a stream
_log = logging.getLogger(__name__)

Batch = tuple[Sequence[RankRequest], Sequence[Prompts]]


class Ranker(SteppedRanker[Prompts, Scored]):
    """Ranks documents in context with a language model.

        ranker = Ranker.from_pretrained()
        ranking = ranker.rank("who wrote Dracula", ["Bram Stoker ...", "Mary Shelley ..."])

    scorer: what makes the prompts and reads them, by name (see `from_pretrained`) or as an object. max_tokens: tokens
    of the prompts packed into one forward; a larger single one still runs, alone. Raises `InputError` and `ModelError`
    where the scorer cannot read the model.
    """

    def __init__(
        self, model: RankModel, scorer: str | Scorer | None = None, max_tokens: int = DEFAULT_MAX_TOKENS
    ) -> None:
        max_tokens = checked(int, max_tokens, "max_tokens")
        if max_tokens < 1:
            raise InputError(f"max_tokens must be positive, not {max_tokens}.")
        self.scorer = SCORERS.make(model.spec.scorer if scorer is None else scorer)
        self.max_tokens = max_tokens
        spec = self.scorer.adapted(model.spec)
        self.model = model if spec == model.spec else model.with_spec(spec)
        self.scorer.check(self.model)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        spec: RankSpec | str | None = None,
        device: Devices = None,
        dtype: torch.dtype | str | None = None,
        backend: str | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        probe: bool = True,
        layers: Layers | None = None,
        scorer: str | Scorer | None = None,
    ) -> Ranker:
        """Load a checkpoint: a folder with `blockrank.json`, a hub name, or None for the embedded model.

        spec: overrides the checkpoint's own (a `RankSpec` or the name of a built-in one). device, dtype, backend: None
        chooses by the machine. With several devices ("cuda:0,cuda:1") a stream of requests is ranked on all of them,
        and the documents of one large request are shared out. `dtype="bfloat16"` halves the time on processors that
        compute in it; `dtype="int8"` on a processor and `dtype="fp8"` on a GPU run 8-bit products. probe: see
        `blockrank.model.probe`. layers: "library" for transformers' own layers where the fused ones would be chosen.
        scorer: None for the one that the checkpoint names; a name, with settings as in "decode:beams=1,form=list"; or
        an object such as `DecodeScorer(beams=1)`. It says what is loaded: "attention" takes the layers up to the
        scoring layer, "decode" all of them and the language-model head. `blockrank.scorers.SCORERS.names` has the
        names.

        Raises `InputError` on a scorer or a setting that there is not, `ModelError` where the checkpoint cannot serve.
        """
        chosen, adapted = resolve_scorer(name_or_path, scorer, spec)
        model = load_model(
            name_or_path,
            spec=adapted,
            device=device,
            dtype=dtype,
            backend=backend,
            needs=chosen.needs(adapted),
            probe=probe,
            layers=layers,
        )
        return cls(model, chosen, max_tokens)

    @property
    def spec(self) -> RankSpec:
        """How the model is read."""
        return self.model.spec

    def identity(self) -> dict[str, Any]:
        """See `RequestRanker.identity`. files: of the model's folder; a hub model has its revision instead."""
        model, folder = self.model, Path(self.model.name)
        found = {
            "spec": self.spec.to_dict(),
            "scorer": self.scorer.identity(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "products": model.product_dtype,
            "device": model.device.type,
            "backend": model.backend.name,
            "max_tokens": self.max_tokens,
            "revision": getattr(model.module.config, "_commit_hash", None),
            "files": model_identity(folder) if model.name and folder.is_dir() else {},
        }
        return found if type(self) is Ranker else {"ranker": type(self).__name__, **found}

    @property
    def facts(self) -> RankerFacts:
        """See `SteppedRanker.facts`."""
        device, spec = self.model.device, self.spec
        budget = forward_tokens(device.type)
        return RankerFacts(str(device), budget, spec.limits.max_segment_tokens, spec.limits.max_query_tokens)

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """Rank a stream of requests lazily, in order, packing as many into a forward as `max_tokens` allows."""
        batches = self._batches(iter(requests))
        if not self.model.replicas or self.model.store is not None:
            for batch in batches:
                yield from self._rank_batch(*batch, self.model)
            return
        first = list(islice(batches, 2))
        if len(first) == 1:  # shared out over the devices
            yield from self._rank_batch(*first[0], self.model)
        else:
            yield from self._rank_on_devices(chain(first, batches))

    def _batches(self, stream: Iterator[RankRequest]) -> Iterator[Batch]:
        """Requests that share a forward, with their tokens."""
        while window := list(islice(stream, REQUEST_WINDOW)):
            prompts = [self.tokenise(request) for request in window]
            for batch in plan_batches([item.length for item in prompts], self.max_tokens):
                yield window[batch], prompts[batch]

    def _rank_on_devices(self, batches: Iterable[Batch]) -> Iterator[Ranking]:
        """Each batch on the next device that is free; rankings in order."""
        models: SimpleQueue[RankModel] = SimpleQueue()
        for model in self.model.on_each_device():
            models.put(model)

        def rank(batch: Batch) -> list[Ranking]:
            model = models.get()
            try:
                return self._rank_batch(*batch, model)
            finally:
                models.put(model)

        running: deque[Future[list[Ranking]]] = deque()
        with ThreadPoolExecutor(models.qsize(), "blockrank-device") as pool:
            for batch in batches:
                running.append(pool.submit(rank, batch))
                if len(running) > len(self.model.replicas) + 1:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()

    def tokenise(
        self,
        request: RankRequest,
        max_segment_tokens: int | None = None,
        between: Callable[[], None] | None = None,
    ) -> Prompts:
        """The prompts that the scorer makes of a request, as tokens, within the limits of the spec; logs what was cut.

        max_segment_tokens: a limit on documents for this request alone; it acts where it is below the spec's. between:
        called now and then, between documents; what it raises ends the work.
        """
        assert self.model.tokenizer is not None, "a ranker's model has a tokenizer"
        spec = self.spec
        if max_segment_tokens is not None and max_segment_tokens < spec.limits.max_segment_tokens:
            spec = spec.changed(max_segment_tokens=max_segment_tokens)
        try:
            if request.evidence:
                self.scorer.check_evidence(spec)
            writer = PromptWriter(self.model.tokenizer, spec, self.model.memo, between)
            prompts = self.scorer.prompts(request, writer)
        except InputError as error:
            raise InputError(f"{error} (query_id {request.query_id!r})") from None
        if prompts.query_cut:
            _log.warning("query_id %r: the query lost its last %d tokens.", request.query_id, prompts.query_cut)
        for index, segment in zip(prompts.indices, prompts.documents, strict=True):
            if segment.cut:
                _log_cut(request, index, segment, spec.limits.max_segment_tokens)
        return prompts

    def _rank_batch(
        self, requests: Sequence[RankRequest], prompts: Sequence[Prompts], model: RankModel
    ) -> list[Ranking]:
        """Rankings of requests that were planned to share a forward."""
        scored = self._score(requests, prompts, model, self.max_tokens)
        return [self.ranking(*parts) for parts in zip(requests, prompts, scored, strict=True)]

    def score(
        self,
        requests: Sequence[RankRequest],
        prompts: Sequence[Prompts],
        between: Callable[[], None] | None = None,
    ) -> list[Scored]:
        """The forward alone: what `ranking` makes a ranking of, for each of the requests that share it, on the host.

        With `tokenise` before and `ranking` behind it this is what `rank_iter` does, for callers that spread the
        three over threads. between: called between the parts of a forward that has several (`engine.forward`), in the
        calling thread; it may score other requests, and what it raises ends the work. Raises `CapacityError` where a
        single request does not fit into memory.
        """
        model = self.model if between is None else self.model.with_turns(between)
        # Several have been planned together by the caller, whatever the ranker's own budget.
        tokens = sum(item.length for item in prompts) if len(requests) > 1 else 0
        return self._score(requests, prompts, model, max(self.max_tokens, tokens))

    def ranking(self, request: RankRequest, prompts: Prompts, scored: Scored) -> Ranking:
        """The ranking of a request from its scores. Raises `ModelError` where a score is not finite."""
        if not bool(scored.scores_C.isfinite().all()):
            raise ModelError(
                f"query_id {request.query_id!r}: the model's scores are not finite; its weights or dtype are unfit."
            )
        evidence = None
        if scored.shares_R is not None and request.evidence:
            evidence = _evidence(request, prompts, scored.shares_R)
        documents = prompts.documents
        ranking = Ranking.from_scores(
            request,
            scored.scores_C.tolist(),
            [segment.body_tokens for segment in documents],
            [segment.cut for segment in documents],
            prompts.query_cut,
            evidence,
            read=prompts.indices,
            estimated=[segment.cut_is_estimate for segment in documents],
            kind=self.scorer.kind,
            unscored=_unscored(prompts, scored),
        )
        ranking = replace(ranking, warnings=(*ranking.warnings, *scored.warnings), repaired=scored.repaired)
        for warning in ranking.warnings:
            _log.warning("query_id %r: %s", request.query_id, warning)
        return ranking

    def _score(
        self, requests: Sequence[RankRequest], prompts: Sequence[Prompts], model: RankModel, max_tokens: int
    ) -> list[Scored]:
        """Requests scored, on the host: as many prompts to a forward as `max_tokens` allows, and by halves where memory
        does not suffice."""
        evidence = any(request.evidence for request in requests)
        try:
            with model.inference(), torch.autocast(model.device.type, enabled=False):
                return self.scorer.score(model, prompts, max_tokens=max_tokens, evidence=evidence)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(requests) == 1 and prompts[0].longest >= min(prompts[0].length, max_tokens):
                raise CapacityError(
                    f"query_id {requests[0].query_id!r}: its {prompts[0].longest} tokens do not fit into the memory "
                    f"of {model.device}; rank fewer documents at once or lower max_segment_tokens."
                ) from None
        # Outside the handler: the traceback, which holds the tensors of the failed forward, is gone.
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(requests) == 1:
            _log.info("the prompts of a request do not fit into memory together; fewer share a forward.")
            return self._score(requests, prompts, model, min(prompts[0].length, max_tokens) // 2)
        _log.info("%d requests do not fit into memory together; they run in two halves.", len(requests))
        half = len(requests) // 2
        first = self._score(requests[:half], prompts[:half], model, max_tokens)
        return first + self._score(requests[half:], prompts[half:], model, max_tokens)

    def remember(self, documents: Sequence[Document], max_bytes: int, progress: CountProgress | None = None) -> bool:
        """Encode documents now and reuse their keys in every later call, until `forget`.

        Exact, for models whose documents depend on neither the query nor each other (`RankSpec.documents_stand_alone`).
        The documents are encoded in groups that depend on `documents` alone, so that later scores are the same to the
        last bit after a restart. progress: called with the distinct documents done and all of them. Returns False, and
        does nothing, where the model is not of that kind, where documents leave early, or where the keys would take
        over nine tenths of `max_bytes`. Documents of which nothing can be read are left out.
        """
        if not (self.scorer.reuses_keys and self.can_reuse) or not documents:
            return False
        groups = self._encoding_groups(documents)
        rows = sum(len(segment.ids) for group in groups for segment in group.documents)
        if rows * self.model.weights.key_bytes > _REMEMBERED * max_bytes:
            return False
        self.reuse(max_bytes)
        done, total = 0, sum(len(group.documents) for group in groups)
        for group in groups:
            self.encode(group)
            done += len(group.documents)
            if progress is not None:
                progress(done, total)
        return True

    @property
    def can_reuse(self) -> bool:
        """Whether what is computed of a document, its keys or its vector, may serve many requests."""
        return self.scorer.reuses(self.spec)

    def reuse(self, max_bytes: int) -> MemoryStore | None:
        """Keep the keys or vectors of documents from now on, up to `max_bytes` and until `forget`; None where that
        cannot be.

        Their tokens are kept as well, up to a thirty-second part of that beside it.
        """
        if not self.can_reuse:
            return None
        store = MemoryStore(max_bytes)
        self.model.store, self.model.memo = store, Memo(max_bytes // _TOKENS_SHARE)
        return store

    def encode(self, tokenised: TokenisedRequest) -> None:
        """Put the keys of a request's documents into the store that `reuse` made. Part of a request will do: its
        instruction, some documents and its query."""
        with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
            self.model.read(pack([tokenised], self.spec))

    def on_each_device(self) -> tuple[Ranker, ...]:
        """A ranker for each device that the model was loaded on, each to be used by one thread."""
        return tuple(Ranker(model, self.scorer, self.max_tokens) for model in self.model.on_each_device())

    def forget(self) -> None:
        """Drop what `remember` keeps."""
        self.model.store = self.model.memo = None

    def _encoding_groups(self, documents: Sequence[Document]) -> list[TokenisedRequest]:
        """Distinct documents by length, as requests of one forward each; their query is a placeholder."""
        # Each behind a placeholder, so that one of which nothing can be read makes no request that is refused.
        frame, *_ = alone = [self.tokenise(RankRequest("q", ["q", document])).only for document in documents]
        found = [segment for item in alone for segment in item.documents[1:]]
        # In an order of their own, so that groups are the same in whatever order documents come.
        segments = [segment for _, segment in sorted({segment.ids.tobytes(): segment for segment in found}.items())]
        groups = plan_alike([len(segment.ids) for segment in segments], forward_tokens(self.model.device.type))
        first, last = frame.segments[0], frame.segments[-1]
        return [TokenisedRequest((first, *(segments[i] for i in group), last)) for group in groups]

    def with_spec(self, **changes: object) -> Ranker:
        """A ranker over the same weights whose spec differs in the given fields (same layer or below).

        It shares the store of `reuse` and `remember`, if there is one: what is kept of a document serves both where
        both read it alike. `forget` and a new `reuse` are of one ranker alone.
        """
        spec = self.spec.changed(**changes)
        scorer = spec.scorer if "scorer" in changes else self.scorer
        return Ranker(self.model.with_spec(spec), scorer, self.max_tokens)


def _unscored(prompts: Prompts, scored: Scored) -> set[int]:
    """Indices of the candidates that were read and have no score."""
    if scored.unscored_C is None:
        return set()
    return {index for index, missing in zip(prompts.indices, scored.unscored_C.tolist(), strict=True) if missing}


def _log_cut(request: RankRequest, index: int, segment: Segment, limit: int) -> None:
    _log.warning(
        "query_id %r: documents[%d] (doc_id %r) was cut from %s%d to %d tokens of its own (max_segment_tokens %d).",
        request.query_id, index, request.candidates[index].doc_id, "about " if segment.cut_is_estimate else "",
        segment.body_tokens + segment.cut, segment.body_tokens, limit,
    )  # fmt: skip


def _evidence(request: RankRequest, prompts: Prompts, shares_R: Tensor) -> list[tuple[Evidence, ...]]:
    """Where the attention fell in each document of a request, token by token; frame tokens are left out."""
    evidence, row = [], 0
    for index, segment in zip(prompts.indices, prompts.documents, strict=True):
        document = request.candidates[index]
        assert segment.spans_L2 is not None, "tokenised for evidence"
        shares = shares_R[row : row + len(segment.ids)].tolist()
        row += len(segment.ids)
        spans = zip(segment.spans_L2.tolist(), shares, strict=True)
        evidence.append(tuple(Evidence(*document.locate(a, b), share) for (a, b), share in spans if a >= 0))
    return evidence
