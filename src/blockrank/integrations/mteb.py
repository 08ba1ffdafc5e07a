"""Benchmark a ranker with MTEB: a model object for the search protocol of the package `mteb`.

    model = BlockrankSearch(Ranker.from_pretrained())
    mteb.evaluate(model, mteb.get_task("AskUbuntuDupQuestions"), cache=None)

MTEB's protocol for cross-encoders asks for the score of one pair at a time, which takes a listwise model's context
away. Its search protocol hands over a query's candidates together: one request each.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockrank import __version__
from blockrank.data import Run, strictly_decreasing
from blockrank.keep.identity import digest, file_digest, json_ready, ranker_identity
from blockrank.text.characters import is_readable
from blockrank.types import InputError, MissingExtraError, RankRequest, RequestRanker

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta

    from blockrank.ranker import Ranker

__all__ = ["BlockrankSearch"]

_log = logging.getLogger(__name__)
# What the files of the embedded model do not say. No `training_datasets`: its sources touch MTEB's in part (NQ among
# them), and a list that is not complete would let MTEB call the model zero-shot where it is not.
_FILES = (".json", ".safetensors")  # of a model's folder, that a revision stands for
_EMBEDDED = {
    "name": "blockrank/mini",
    "n_parameters": 22_861_056,
    "languages": ["eng-Latn"],
    "license": "apache-2.0",
    "open_weights": True,
    "adapted_from": "sentence-transformers/all-MiniLM-L6-v2",
}


class BlockrankSearch:
    """A ranker as a model that `mteb.evaluate` takes: every query and its candidates are one request.

    It reranks. Reranking tasks bring candidates; for a retrieval task run a first stage and give its predictions to the
    task's `convert_to_reranking`. The model reads a document's title and text, and a query as MTEB joins it: the
    query's own instruction behind its text, the turns of a conversation in one line. A task's prompt is not used: the
    ranker has its own. Candidates reach the ranker by descending doc_id, which is how evaluators order equal scores, so
    that nothing depends on the order of the task's lists (some name relevant documents first); a model that minds the
    place of a document sees that order. Documents without text cannot be ranked: they come last, in that order, and
    their number is logged.

    name: "organisation/model", under which MTEB files results; None takes it from the ranker. revision: None takes a
    digest of a loaded model's weights and settings (else this package's version), so that no result cached for others
    is taken for this model's. meta: more fields of MTEB's `ModelMeta`, over those found.

    Raises `MissingExtraError` without mteb, `InputError` where `ModelMeta` refuses a field or a revision must be given.
    """

    def __init__(
        self,
        ranker: RequestRanker,
        *,
        name: str | None = None,
        revision: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        given = {key: value for key, value in (("name", name), ("revision", revision)) if value is not None}
        self._ranker = ranker
        self._meta = _model_meta(ranker, {**(meta or {}), **given})
        self._corpus: Dataset | None = None
        self._rows: dict[str, int] = {}

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What MTEB records of the model."""
        return self._meta

    def index(
        self, corpus: Dataset, *, task_metadata: TaskMetadata, encode_kwargs: Mapping[str, Any], **_: Any
    ) -> None:
        """Keep the corpus; nothing is encoded. Raises `InputError` on a task that is not text alone.

        Of `encode_kwargs` only `show_progress_bar` has a meaning here: the ranker makes its own batches, by tokens.
        """
        if others := sorted(set(task_metadata.modalities) - {"text"}):
            raise InputError(f"the task {task_metadata.name} has {', '.join(others)}; this model reads text alone.")
        if encode_kwargs.get("precision") is not None:
            raise InputError("encode_kwargs: 'precision' is of embeddings, and this model makes none.")
        if "text" not in corpus.column_names:
            raise InputError(
                f"the corpus of {task_metadata.name} has no 'text'; its columns are {corpus.column_names}."
            )
        self._corpus = corpus.select_columns([key for key in ("title", "text") if key in corpus.column_names])
        self._rows = _rows_by_id(corpus, "documents")

    def search(
        self,
        queries: Dataset,
        *,
        task_metadata: TaskMetadata,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: Any,
    ) -> Run:
        """Rank the candidates of every query: query_id to doc_id to score, best first, at most `top_k`.

        Scores are strictly decreasing float32 and compare the documents of one query alone. A query without candidates
        has an empty entry, which MTEB counts as 0. Raises `InputError` where the task gives no candidates, names one
        that the corpus lacks, or has something that cannot be ranked.
        """
        from tqdm.auto import tqdm

        if top_ranked is None:
            raise InputError(
                f"this model reranks, and {task_metadata.name} gives it no candidates (top_ranked): run a first stage "
                "with mteb.evaluate(first_stage, task, prediction_folder=folder), then evaluate this model on "
                "task.convert_to_reranking(folder, top_k=100)."
            )
        if self._corpus is None:
            raise InputError("search was called before index: there is no corpus.")
        texts = {query_id: _query_text(queries[row]) for query_id, row in _rows_by_id(queries, "queries").items()}
        candidates = self._candidates(texts, top_ranked)
        blank: dict[str, list[str]] = {}
        run: Run = {query_id: {} for query_id in texts}
        silent = not encode_kwargs.get("show_progress_bar", True)
        rankings = self._ranker.rank_iter(self._requests(texts, candidates, blank))
        for ranking in tqdm(rankings, total=len(candidates), desc="Ranking queries", disable=silent):
            run[ranking.query_id] = {entry.doc_id: entry.score for entry in ranking}
        if blank:
            number = sum(map(len, blank.values()))
            _log.warning("%d candidates of %d queries have no text; they are ranked last.", number, len(blank))
        return {query_id: _lowered(scores, blank.get(query_id, []), top_k) for query_id, scores in run.items()}

    def _candidates(self, texts: Mapping[str, str], top_ranked: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """The candidates of every query that has some, by descending doc_id; all checked before anything is ranked."""
        candidates: dict[str, list[str]] = {}
        for query_id, text in texts.items():
            if not (doc_ids := top_ranked.get(query_id)):
                continue
            if not is_readable(text):
                raise InputError(f"the query {query_id!r} is empty: there is nothing to rank for.")
            candidates[query_id] = sorted(set(doc_ids), reverse=True)
            if missing := [doc_id for doc_id in candidates[query_id] if doc_id not in self._rows]:
                raise InputError(f"top_ranked of the query {query_id!r} names {missing[0]!r}, which the corpus lacks.")
        if without := len(texts) - len(candidates):
            _log.warning("%d of %d queries have no candidates; they get an empty ranking.", without, len(texts))
        return candidates

    def _requests(
        self, texts: Mapping[str, str], candidates: Mapping[str, list[str]], blank: dict[str, list[str]]
    ) -> Iterator[RankRequest]:
        """One request a query, read from the corpus when its turn comes; documents without text go to `blank`."""
        assert self._corpus is not None, "search checks that there is a corpus"
        for query_id, doc_ids in candidates.items():
            columns = self._corpus[[self._rows[doc_id] for doc_id in doc_ids]]
            titles = columns.get("title", [""] * len(doc_ids))
            documents = []
            for doc_id, title, text in zip(doc_ids, titles, columns["text"], strict=True):
                title, text = title or "", text or ""
                if is_readable(f"{title} {text}"):
                    documents.append({"doc_id": doc_id, "title": title, "text": text})
                else:
                    blank.setdefault(query_id, []).append(doc_id)
            if not documents:
                continue
            try:
                yield RankRequest(texts[query_id], documents, query_id)
            except InputError as error:
                raise InputError(f"{error} (query_id {query_id!r})") from None


def _rows_by_id(dataset: Dataset, kind: str) -> dict[str, int]:
    """The row of every id; of rows with the same id the last counts, as in MTEB's own search."""
    rows = {item_id: row for row, item_id in enumerate(dataset["id"])}
    if repeated := len(dataset) - len(rows):
        _log.warning("%d %s have the id of a later one and are left out.", repeated, kind)
    return rows


def _query_text(row: Mapping[str, Any]) -> str:
    """A query as MTEB gives it to its own models: a conversation in one line, the instruction added."""
    text, instruction = row["text"], row.get("instruction")
    if isinstance(text, list):
        turns = [turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}" for turn in text]
        return " ".join([*([instruction] if instruction else []), "; ".join(turns)])
    if not isinstance(text, str):
        raise InputError(f"the query {row['id']!r} is no text but {type(text).__name__}.")
    return f"{text} {instruction}" if instruction else text


def _lowered(scores: Mapping[str, float], blank: Sequence[str], top_k: int) -> dict[str, float]:
    """Scores of a query, best first, told apart in float32, with the documents without text behind them.

    Those received nothing: their score is 0, or the lowest there is.
    """
    lowest = min([0.0, *scores.values()])
    kept = list({**scores, **dict.fromkeys(blank, lowest)}.items())[:top_k]
    return dict(zip((doc_id for doc_id, _ in kept), strictly_decreasing([score for _, score in kept]), strict=True))


def _model_meta(ranker: RequestRanker, given: Mapping[str, Any]) -> ModelMeta:
    """MTEB's record of a ranker: what is given, what the ranker tells, and nothing where neither knows."""
    try:
        from mteb.models import ModelMeta
    except ImportError as error:
        raise MissingExtraError(
            f"BlockrankSearch needs mteb ({error.name} is missing): pip install 'blockrank[mteb]'."
        ) from None
    from blockrank.ranker import Ranker

    unknown = dict.fromkeys(name for name, field in ModelMeta.model_fields.items() if field.is_required())
    facts: dict[str, Any] = {"name": f"blockrank/{type(ranker).__name__}", "framework": []}
    if isinstance(ranker, Ranker):
        facts = _facts(ranker)
    facts["revision"] = given.get("revision") or _revision(ranker)
    # MTEB has no kind for models that read candidates together; cross-encoder is its kind for rerankers.
    fixed = {"use_instructions": False, "model_type": ["cross-encoder"]}
    try:
        return ModelMeta(**{**unknown, **fixed, **facts, **given})
    except ValueError as error:
        raise InputError(f"ModelMeta of mteb refuses what it was given: {error}") from None


def _facts(ranker: Ranker) -> dict[str, Any]:
    """Fields of `ModelMeta` that a loaded model tells; sizes are of the layers that are loaded."""
    from blockrank.model import EMBEDDED_MODEL

    model, folder = ranker.model, _folder(ranker)
    weights = list(model.module.parameters())
    name = folder.resolve().name if folder else model.name or "model"
    facts: dict[str, Any] = {
        "name": name if "/" in name else f"blockrank/{name}",
        "framework": ["PyTorch", "Transformers"],
        "n_parameters": sum(weight.numel() for weight in weights),
        "n_embedding_parameters": model.module.get_input_embeddings().weight.numel(),
        "memory_usage_mb": round(sum(weight.nbytes for weight in weights) / 2**20, 1),
        "max_tokens": ranker.spec.limits.max_segment_tokens,
    }
    return facts | (_EMBEDDED if folder == EMBEDDED_MODEL else {})


def _folder(ranker: Ranker) -> Path | None:
    """The folder a model was loaded from, None where it was not."""
    folder = Path(ranker.model.name)
    return folder if ranker.model.name and folder.is_dir() else None


def _revision(ranker: RequestRanker) -> str:
    """What tells results of this ranker from those of others, which MTEB keeps under name and revision."""
    from blockrank.ranker import Ranker

    return _digest(ranker) if isinstance(ranker, Ranker) else digest([__version__, ranker_identity(ranker)])


def _digest(ranker: Ranker) -> str:
    """Digest of what a score depends on: weights, tokenizer, spec, scorer, dtype.

    Files are read, not parameters: layers that no read-out touches may hold chance values.
    """
    model, folder = ranker.model, _folder(ranker)
    commit = getattr(model.module.config, "_commit_hash", None)
    if folder is None and commit is None:
        raise InputError("this ranker's model comes from no folder and no hub commit: give BlockrankSearch a revision.")
    settings = [ranker.spec.to_dict(), ranker.scorer.identity(), str(model.dtype), model.product_dtype, commit]
    weights = (
        {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.suffix in _FILES} if folder else {}
    )
    return digest([json_ready(settings, "the ranker's settings"), weights])
