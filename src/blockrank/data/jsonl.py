"""JSON lines and plain text to documents and requests; rankings to JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from blockrank.data.files import Source, json_objects, named, source_name, text_lines
from blockrank.types import Document, InputError, Ranking, RankRequest
from blockrank.types.documents import checked_document, number_documents, written_document


def read_documents(source: Source) -> list[Document]:
    """Documents of a JSON lines file: `{"text", "doc_id" | "_id" | "id", "title"}` on each line.

    Other keys become metadata. A document without an id gets its index, or what `number_documents` makes of it; text
    may be empty, and ids may repeat. Raises `InputError` on a broken line, or a source without documents.
    """
    documents: list[Document] = []
    for number, value in json_objects(source):
        with named(f"{source_name(source)}:{number}"):
            documents.append(checked_document(value, len(documents)))
    if not documents:
        raise InputError(f"{source_name(source)}: there are no documents in it.")
    return list(number_documents(documents))


def read_texts(source: Source, *, lines: bool = False) -> list[Document]:
    """A plain text file as one document named after it, which may be empty, or with `lines` one document for each line
    that is not.

    Raises `InputError` where no line has text, or it is not UTF-8.
    """
    name = source_name(source)
    texts = [(number, text.strip()) for number, text in text_lines(source)]
    if lines:
        documents = [Document(text, f"{name}:{number}") for number, text in texts if text]
    else:
        documents = [Document("\n".join(text for _, text in texts).strip(), name)]
    if not documents:
        raise InputError(f"{name}: there is no text in it.")
    return documents


def read_requests(source: Source) -> Iterator[RankRequest]:
    """Requests of a JSON lines file, one at a time.

    Each line is `{"query", "query_id", "documents"}`; documents are a list of strings or of
    `{"text", "doc_id", "title"}`, or an object from id to either: also what the research code released with the paper
    reads. `top_k` is read too, and `evidence` where it is true or false. Other keys are ignored. A request without a
    `query_id` gets its index. Raises `InputError` on a broken line, a `query_id` that was there before, or a source
    without requests.
    """
    return (request for _, request in placed_requests(source))


def placed_requests(source: Source) -> Iterator[tuple[str, RankRequest]]:
    """The same requests, each after its place, `FILE:LINE`. Raises as `read_requests` does."""
    lines: dict[str, int] = {}
    for number, value in json_objects(source):
        where = f"{source_name(source)}:{number}"
        with named(where):
            request = as_request(value, str(len(lines)))
        if (first := lines.setdefault(request.query_id, number)) != number:
            raise InputError(f"{where}: the query_id {request.query_id!r} is that of line {first}.")
        yield where, request
    if not lines:
        raise InputError(f"{source_name(source)}: there are no requests in it.")


def as_request(value: Mapping[str, Any], default_id: str) -> RankRequest:
    """The request of one line as `read_requests` takes it. Raises `InputError`, without a place."""
    for key in ("query", "documents"):
        if key not in value:
            raise InputError(f"there is no {key!r}; the keys are {sorted(map(str, value))}.")
    query_id = value.get("query_id")
    documents = value["documents"]
    if isinstance(documents, Mapping):
        documents = [_keyed(doc_id, document) for doc_id, document in documents.items()]
    query_id = default_id if query_id is None else query_id
    # Data sets list sentences under "evidence"; only a truth value is ours.
    return RankRequest(value["query"], documents, query_id, value.get("top_k"), value.get("evidence") is True)


def positives_of(value: Mapping[str, Any], request: RankRequest) -> tuple[int, ...]:
    """Indices of the relevant candidates that the line of `request` names; none where it names none.

    They are under `positives`, indices, or under `answer_ids`, doc_ids, as the research code calls them. Raises
    `InputError`, without a place, where one names no candidate or is named twice.
    """
    key = "positives" if "positives" in value else "answer_ids"
    names = value.get(key, [])
    if not isinstance(names, list):
        raise InputError(f"{key} must be a list, not {type(names).__name__}.")
    places: dict[object, int] = {}
    for index, document in enumerate(request.candidates):
        places[index if key == "positives" else document.doc_id] = index
    found = []
    for name in names:
        # A list of texts has its indices as ids: there, the research code's answers are integers.
        wanted = str(name) if key == "answer_ids" and type(name) is int else name
        if type(wanted) not in (int, str) or wanted not in places:
            raise InputError(f"{key} lists {name!r}, which is no candidate.")
        found.append(places[wanted])
    if len(set(found)) < len(found):
        raise InputError(f"{key} lists a candidate twice.")
    return tuple(found)


def _keyed(doc_id: str, document: object) -> object:
    """A document listed under its id; a value that is no document is left for the request to refuse."""
    if isinstance(document, str):
        return {"doc_id": doc_id, "text": document}
    return {"doc_id": doc_id, **document} if isinstance(document, Mapping) else document


def json_line(ranking: Ranking) -> str:
    """One ranking as one line of JSON, without a line end."""
    return json.dumps(ranking.to_dict(), ensure_ascii=False)


def request_line(request: RankRequest) -> str:
    """One request as one line of JSON, without a line end, that `read_requests` reads back as an equal request.

    Metadata is written as `written_document` does. Raises `InputError` on what JSON cannot carry.
    """
    line: dict[str, Any] = {"query_id": request.query_id, "query": request.query}
    if request.top_k is not None:
        line["top_k"] = request.top_k
    if request.evidence:
        line["evidence"] = True
    line["documents"] = [written_document(document) for document in request.candidates]
    return json_text(line)


def json_text(value: Mapping[str, Any]) -> str:
    """One line of JSON, without a line end. Raises `InputError` on values that JSON cannot carry."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"metadata cannot be written as JSON: {error}.") from None
