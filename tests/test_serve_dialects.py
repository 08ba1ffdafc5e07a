"""The dialects as pure functions, and over the socket: what each takes, answers and refuses."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import QUERY, TEXTS, Running, running

from blockrank import FakeRanker, InputError, Ranker
from blockrank.serve.calls import TokenCounts
from blockrank.serve.dialects import COHERE, JINA, SCORE, TEI, VOYAGE, Dialect, dialect_of
from blockrank.serve.fields import Fields
from blockrank.serve.parsing import read_json
from blockrank.serve.refusals import CAUSES, Refusal
from blockrank.serve.settings import ServeSettings

SETTINGS = ServeSettings(max_documents=1000)
DOCUMENTS = {"jina": "documents", "cohere": "documents", "tei": "texts", "voyage": "documents"}
PATHS = {"jina": "/v1/rerank", "cohere": "/v2/rerank", "tei": "/rerank", "voyage": "/v1/rerank"}
TOP = {"voyage": "top_k"}
DIALECTS = (JINA, COHERE, TEI, VOYAGE)


@pytest.fixture(scope="module")
def server(mini: Ranker) -> Iterator[Running]:
    with running(mini, ServeSettings(aliases=("rerank-v3.5",))) as found:
        yield found


def results(dialect: Dialect, answer: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer if dialect is TEI else answer["data" if dialect is VOYAGE else "results"]
    return found


def answered(dialect: Dialect, body: dict[str, Any], read: TokenCounts | None = None) -> Any:
    """What a body gets, over `FakeRanker`, through JSON."""
    call = dialect.read(body, SETTINGS, "r1")
    [ranking] = FakeRanker().rank_many([call.request])
    return json.loads(json.dumps(dialect.answer(call, ranking, read or TokenCounts(10))))


def refused(dialect: Dialect, body: dict[str, Any]) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        dialect.read(body, SETTINGS, "r1")
    status, answer = dialect.refusal(caught.value, "r1")
    return status, str(answer.get("message", answer.get("detail", answer.get("error"))))


def nulls(value: Any) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(map(nulls, children))


# Every dialect


@given(
    texts=st.lists(st.text("abc ", min_size=1).filter(str.strip), min_size=1, max_size=6),
    top_n=st.sampled_from([None, 1, 2, 6, 8000]),
    echo=st.booleans(),
    extras=st.booleans(),
    dialect=st.sampled_from(DIALECTS),
)
def test_answers_are_a_permutation(texts: list[str], top_n: int | None, echo: bool, extras: bool, dialect: Any) -> None:
    """Every index once, by falling score, the best `top_n`, no null, and the caller's text and id with its index."""
    echo_field = "return_text" if dialect is TEI else "return_documents"
    given_ids = [f"id {i}" for i in range(len(texts))]
    documents: list[Any] = [{"id": name, "text": text} for name, text in zip(given_ids, texts, strict=True)]
    if not extras:
        documents = texts
    body = {
        "query": "a b", DOCUMENTS[dialect.name]: documents, TOP.get(dialect.name, "top_n"): top_n,
        echo_field: echo, "evidence": extras,
        "token_counts": extras, "model": None,
    }  # fmt: skip
    answer = answered(dialect, body)
    found = results(dialect, answer)
    assert not nulls(answer)
    assert len(found) == min(top_n or 8000, len(texts))
    indices = [item["index"] for item in found]
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(len(texts)))
    scores = [item["score" if dialect is TEI else "relevance_score"] for item in found]
    assert scores == sorted(scores, reverse=True)
    for item in found:
        assert item.get("id") == (given_ids[item["index"]] if extras else None)
        document = item.get("document")
        text = item.get("text") if dialect is TEI else document["text"] if isinstance(document, dict) else document
        assert text == (texts[item["index"]] if echo else None)
        assert ("evidence" in item, "cut_tokens" in item) == (extras, extras)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("top_n", [0, -1, True, 1.5, "-3", "2.5", "three", "", "9" * 5000, [2], 1e400])
def test_top_n_out_of_range_is_refused(dialect: Dialect, top_n: Any) -> None:
    field = TOP.get(dialect.name, "top_n")
    status, sentence = refused(dialect, {"query": "q", DOCUMENTS[dialect.name]: ["a"], field: top_n})
    assert (status, sentence.startswith(f"{field} must be ")) == (422, True)
    assert len(sentence) < 200


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_what_is_unambiguous_is_read_as_meant(dialect: Dialect) -> None:
    """Numbers and flags as text, numbers with a point: what languages without types make of them."""
    body: dict[str, Any] = {"query": "q", DOCUMENTS[dialect.name]: ["a", "b", "c"]}
    for top_n in (2, 2.0, "2", " 2 ", "2.0", "+2"):
        call = dialect.read({**body, TOP.get(dialect.name, "top_n"): top_n}, SETTINGS, "r1")
        assert call.request.top_k == 2
    for flag, meant in (("true", True), ("True", True), (1, True), ("1", True), ("false", False), (0, False)):
        assert dialect.read({**body, "evidence": flag}, SETTINGS, "r1").evidence is meant
    assert dialect.read({**body, "max_tokens_per_doc": "100"}, SETTINGS, "r1").max_document_tokens == 100
    for flag in ("yes?", "", 2, 0.5, [], {}, "nope"):
        assert "evidence must be true or false, not " in refused(dialect, {**body, "evidence": flag})[1]
    assert refused(dialect, {**body, "evidence": "yes?"})[1] == "evidence must be true or false, not 'yes?'."


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_unknown_fields_are_named(dialect: Dialect) -> None:
    body = {"query": "q", DOCUMENTS[dialect.name]: ["a"]}
    misspelt = ("top_n", "'top_k'") if dialect is VOYAGE else ("top_k", "'top_n'")
    for field, hint in (misspelt, ("querry", "'query'"), ("zzz", "known are")):
        status, sentence = refused(dialect, {**body, field: 3})
        assert (status, f"unknown field '{field}'" in sentence, hint in sentence) == (422, True, True)
    started = time.process_time()
    assert len(refused(dialect, {**body, "y" * 10_000_000: 3})[1]) < 500
    assert time.process_time() - started < 2, "a name is compared with the known ones for as long as it is long"
    dialect.read({**body, "zzz": None}, SETTINGS, "r1")  # null is nothing


@pytest.mark.parametrize(("dialect", "status"), [(JINA, 422), (COHERE, 400), (TEI, 400), (VOYAGE, 422)])
def test_what_is_missing_is_told(dialect: Dialect, status: int) -> None:
    name = DOCUMENTS[dialect.name]
    assert refused(dialect, {"query": "q", name: []}) == (status, f"list of {name} must not be empty.")
    assert refused(dialect, {"query": "q"}) == (status, f"{name} is missing.")
    assert refused(dialect, {name: ["a"]}) == (status, "query is missing.")
    blank = "query must not be empty or only white space."
    assert refused(dialect, {"query": " \n", name: ["a"]}) == (status, blank)
    assert refused(dialect, {"query": 3, name: ["a"]}) == (422, "query must be a string, not a number.")
    assert refused(dialect, {"query": "q", name: "a"}) == (422, f"{name} must be an array.")
    assert refused(dialect, {"query": "q", name: [""]}) == (
        422, f"{name}[0]: no readable character; there is nothing to rank.",
    )  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_words_in_every_dialect(cause: Any) -> None:
    refusal = Refusal(503, cause, "a sentence.", param="top_n")
    for dialect, key in ((JINA, "detail"), (COHERE, "message"), (TEI, "error")):
        status, body = dialect.refusal(refusal, "r1")
        assert status in (503, 400)
        assert body[key] == "a sentence."
    assert JINA.refusal(refusal, "r1")[1]["error"]["message"] == "a sentence."
    assert TEI.refusal(refusal, "r1")[1]["error_type"] in ("Validation", "Overloaded", "Unhealthy", "Backend", "Empty")


# Documents


def test_documents_as_strings_and_objects() -> None:
    documents = ["abc", {"text": "b c", "title": "a"}, {"id": 7, "text": "c"}, {"_id": "x", "text": "c"}]
    call = JINA.read({"query": "a", "documents": documents}, SETTINGS, "r1")
    assert [document.content for document in call.request.candidates] == ["abc", "a b c", "c", "c"]
    assert [item.name for item in call.given] == [None, None, 7, "x"]
    found = {item["index"]: item for item in answered(JINA, {"query": "a", "documents": documents})["results"]}
    assert found[1]["document"] == {"text": "b c", "title": "a"}
    assert (found[2]["id"], "id" in found[0]) == (7, False)
    for bad in (
        {"id": [], "text": "a"}, {"id": "\ud800", "text": "a"}, {"text": 3}, {"title": "t"}, None, ["a"],
        {"id": True, "text": "a"}, {"_id": False, "text": "a"}, {"id": 7.5, "text": "a"},
    ):  # fmt: skip
        assert "documents[1]" in refused(JINA, {"query": "a", "documents": ["a", bad]})[1]


def test_ids_are_the_caller_s_own_business() -> None:
    """Equal ids, and an id that looks like another document's place, are no conflict: the index tells."""
    documents = [{"id": "1", "text": "a"}, "b", {"id": "1", "text": "c"}]
    found = answered(JINA, {"query": "a", "documents": documents})["results"]
    assert sorted((item["index"], item.get("id", "")) for item in found) == [(0, "1"), (1, ""), (2, "1")]


@pytest.mark.parametrize("query", ["\u200b", "\u00ad", "\x00", " \u2060\n", "\u0301"])
def test_a_query_of_nothing_readable_is_refused(query: str) -> None:
    for dialect, status in ((JINA, 422), (COHERE, 400), (TEI, 400), (VOYAGE, 422)):
        sentence = "query has no readable character: there is nothing to rank for."
        assert refused(dialect, {"query": query, DOCUMENTS[dialect.name]: ["a"]}) == (status, sentence)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("empty", ["", " \n", "\u200b\u00ad", {"text": ""}, {"text": "\u0301", "title": " ", "id": 5}])
def test_an_empty_document_is_ranked_last_and_told(dialect: Dialect, empty: Any) -> None:
    name = DOCUMENTS[dialect.name]
    answer = answered(dialect, {"query": "b", name: [empty, "a", "b"]})
    found = results(dialect, answer)
    assert [item["index"] for item in found] == [2, 1, 0]
    assert found[-1]["score" if dialect is TEI else "relevance_score"] == 0
    assert found[-1].get("id") == (empty.get("id") if isinstance(empty, dict) else None)
    if dialect is not TEI:
        assert answer["meta"]["warnings"] == ["documents[0]: no readable character; ranked last."]
    few = answered(dialect, {"query": "b", name: [empty, "a", "b"], TOP.get(dialect.name, "top_n"): 2})
    assert [item["index"] for item in results(dialect, few)] == [2, 1]


# What one dialect has


def test_the_shapes_of_answers() -> None:
    body = {"query": "a", "documents": ["a", "b"]}
    read = TokenCounts(10, cut_documents=1, most_cut=4, query_cut=2)
    jina, cohere = answered(JINA, body, read), answered(COHERE, body, read)
    assert {*jina} == {"id", "model", "usage", "results", "meta"}, "infinity's client takes no object but its own"
    assert jina["usage"] == {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}
    assert jina["results"][0]["document"] == {"text": "a"}
    assert "meta" not in answered(JINA, body)
    assert {*cohere} == {"id", "results", "meta"}
    assert "document" not in cohere["results"][0]
    assert cohere["meta"]["warnings"] == jina["meta"]["warnings"]
    assert [word in " ".join(jina["meta"]["warnings"]) for word in ("1 of 2 documents", "4 tokens", "last 2")] == [
        True
    ] * 3
    assert answered(TEI, {"query": "a", "texts": ["b", "a"]}) == [
        {"index": 1, "score": 1.0},
        {"index": 0, "score": 0.0},
    ]
    assert answered(JINA, {**body, "token_counts": True}, read)["query_cut_tokens"] == 2


def test_what_changes_nothing_is_told_and_what_cannot_be_honoured_is_refused() -> None:
    body = {"query": "a", "documents": ["a"]}
    notes = answered(COHERE, {**body, "priority": 1, "max_chunks_per_doc": 2, "rank_fields": ["text"]})["meta"][
        "warnings"
    ]
    assert [note.split()[0] for note in notes] == ["priority", "max_chunks_per_doc"]
    for field, value in (
        ("instruction", "be kind"), ("truncation_side", "left"), ("truncate_prompt_tokens", 5),
        ("return_embeddings", True), ("rank_fields", ["author"]),
    ):  # fmt: skip
        assert "is not supported" in refused(JINA, {**body, field: value})[1]
    JINA.read({**body, "truncate_prompt_tokens": -1, "truncation_side": "right", "user": "u"}, SETTINGS, "r1")
    assert "is not supported" in refused(TEI, {"query": "a", "texts": ["a"], "truncation_direction": "Left"})[1]
    TEI.read({"query": "a", "texts": ["a"], "truncation_direction": "Right", "raw_scores": True}, SETTINGS, "r1")


CHANGES_NOTHING: dict[str, Any] = {
    "return_len": False, "overlap_tokens": 32, "kwargs": "{}", "is_truncated": True, "use_activation": False,
    "encoding_format": "float", "user": "u", "request_id": "r", "priority": 0, "max_chunks_per_doc": 10,
    "softmax": True, "normalize": True, "mm_processor_kwargs": {},
}  # fmt: skip


@pytest.mark.parametrize("dialect", [JINA, COHERE, VOYAGE], ids=lambda dialect: dialect.name)
def test_fields_that_change_nothing_are_told(dialect: Dialect) -> None:
    given = {**CHANGES_NOTHING, "return_text": True, "raw_scores": True}
    body = {"query": "a", "documents": ["b", "a"]}
    plain, told = answered(dialect, body), answered(dialect, {**body, **given})
    warnings = told.pop("meta")["warnings"]
    plain_meta = plain.pop("meta", {})
    assert "warnings" not in plain_meta
    assert {**told, "usage": 0} == {**plain, "usage": 0}
    assert {warning.split()[0] for warning in warnings} == {*given}
    assert all(re.fullmatch(r"\w+ changes nothing: .+[.]", warning) for warning in warnings)
    assert dialect.read({**body, **dict.fromkeys(given)}, SETTINGS, "r1").notes == (), "null is nothing"


def test_a_bare_list_has_no_place_for_warnings() -> None:
    body = {"query": "a", "texts": ["b", "a"]}
    assert answered(TEI, {**body, **CHANGES_NOTHING, "return_documents": True}) == answered(TEI, body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kwargs", '{"a": 1}'), ("kwargs", {"a": 1}), ("instruction", "be kind"), ("instruct", "be kind"),
        ("truncation_side", "left"), ("truncation_direction", "Left"), ("truncate_prompt_tokens", 5),
        ("max_tokens_per_query", 5), ("return_embeddings", "true"), ("modality", "image"), ("rank_fields", ["author"]),
    ],
)  # fmt: skip
def test_what_would_change_the_ranking_is_refused(field: str, value: Any) -> None:
    for dialect in DIALECTS:
        status, sentence = refused(
            dialect, {"query": "a", DOCUMENTS.get(dialect.name, "documents"): ["a"], field: value}
        )
        assert (status, sentence.startswith(f"{field} "), "is not supported: " in sentence) == (422, True, True)


def test_the_field_at_fault_is_named_without_quotes() -> None:
    for field in ("topn", "querry", "a b"):
        with pytest.raises(Refusal) as caught:
            JINA.read({"query": "a", "documents": ["a"], field: 1}, SETTINGS, "r1")
        assert JINA.refusal(caught.value, "r1")[1]["error"]["param"] == field
    with pytest.raises(Refusal) as caught:
        JINA.read({"query": "a", "documents": ["a"], "y" * 1000: 1}, SETTINGS, "r1")
    assert len(JINA.refusal(caught.value, "r1")[1]["error"]["param"]) < 100


def test_voyage() -> None:
    body = {"query": "a", "documents": ["b", {"text": "a", "url": "u"}], "top_k": 1, "truncation": True}
    found = answered(VOYAGE, {**body, "return_documents": True})
    assert (found["object"], found["usage"]["total_tokens"]) == ("list", 10)
    assert found["data"] == [{"index": 1, "relevance_score": 1.0, "document": "a", "metadata": {"url": "u"}}]
    assert answered(VOYAGE, body)["data"] == [{"index": 1, "relevance_score": 1.0}]


@pytest.mark.parametrize("names", [("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents")])
def test_scores_come_in_the_order_of_the_documents(names: tuple[str, str]) -> None:
    query, documents = names
    found = answered(SCORE, {query: "a", documents: ["b", "a", "c"], "use_activation": True})
    assert found["data"] == [
        {"object": "score", "index": place, "score": score} for place, score in enumerate((0.0, 1.0, 0.0))
    ]
    assert (found["object"], {*found["usage"]}) == ("list", {"prompt_tokens", "completion_tokens", "total_tokens"})
    assert answered(SCORE, {query: ["a"], documents: "a"})["data"][0]["score"] == 1.0
    assert f"{query} must be one text" in refused(SCORE, {query: ["a", "b"], documents: ["c", "d"]})[1]
    assert refused(SCORE, {query: "a", documents: ["b", 3]})[1].startswith(f"{documents}[1] must be")
    assert "did you mean 'text_1'?" in refused(SCORE, {"query": "a", "text_2": ["b"]})[1]


# Fields of the caller's own


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_metadata_comes_back_as_it_came(dialect: Dialect) -> None:
    metadata = {"url": "https://example.org/é", "page": 3, "tags": ["x", {"y": None}], "score": 0.5, "index": 9}
    metadata |= {"metadata": {"text": "c", "url": "u"}, "_id": None}
    name = DOCUMENTS[dialect.name]
    echo = "return_text" if dialect is TEI else "return_documents"
    body = {"query": "a", name: [{"text": "a", "title": "t", "id": 1, "doc_id": "other", **metadata}, "b"], echo: True}
    found = {item["index"]: item for item in results(dialect, answered(dialect, body))}
    assert (found[0]["id"], found[1].get("id")) == (1, None)
    kept = found[0]["document"] if dialect in (JINA, COHERE) else found[0]["metadata"]
    expected = {"doc_id": "other", **metadata}
    assert kept == ({"text": "a", "title": "t", **expected} if dialect in (JINA, COHERE) else expected)
    assert "metadata" not in found[1]
    quiet = results(dialect, answered(dialect, {**body, echo: False}))
    assert not {"document", "text", "metadata"} & {key for item in quiet for key in item}


@pytest.mark.parametrize("value", ["\ud800", {"a": ["\udfff"]}, 1e400, [float("-inf")], {"\ud800": 1}])
def test_metadata_that_cannot_be_given_back_is_refused(value: Any) -> None:
    """Otherwise it would fail when the answer is written, as a fault of the server."""
    status, sentence = refused(JINA, {"query": "a", "documents": ["a", {"text": "b", "url": value}]})
    assert (status, sentence.startswith("documents[1] ")) == (422, True)


def test_metadata_may_be_deep_and_no_deeper_than_can_be_written() -> None:
    for depth in (10, 20, 28, 29, 30, 31, 32, 900, 980, 995, 5000, 100_000):
        body = b'{"query": "a", "documents": [{"text": "a", "m": ' + b"[" * depth + b"]" * depth + b"}]}"
        with contextlib.nullcontext() if depth <= 20 else contextlib.suppress(Refusal):
            json.dumps(answered(JINA, read_json(body)))


def test_shared_ids_are_told() -> None:
    documents = [
        {"id": "x", "text": "a"},
        "b",
        {"_id": "x", "text": "c"},
        {"id": 7, "text": "a"},
        {"id": 7.0, "text": "a"},
    ]
    found = answered(COHERE, {"query": "a", "documents": documents})
    assert found["meta"]["warnings"] == ["documents[2] has the id 'x' of documents[0]: index tells them apart."]
    many = [{"id": place % 2, "text": "a"} for place in range(6)]
    [warning] = answered(JINA, {"query": "a", "documents": many})["meta"]["warnings"]
    assert warning == "documents[2] has the id 0 of documents[0]; 3 more repeat one: index tells them apart."
    assert "meta" not in answered(JINA, {"query": "a", "documents": documents[:2]})


def test_the_body_says_which_dialect_rerank_is() -> None:
    assert dialect_of("/rerank", {"texts": ["a"]}) is TEI
    assert dialect_of("/rerank", {"documents": ["a"]}) is JINA
    assert dialect_of("/rerank", {"documents": ["a"], "texts": None}) is JINA
    assert dialect_of("/v1/rerank", {"texts": ["a"]}) is JINA
    assert dialect_of("/v2/rerank", {"documents": ["a"]}) is COHERE
    for path in ("/rerank", "/v1/rerank"):
        for top_k in (1, None):  # Voyage's client sends it always
            assert dialect_of(path, {"documents": ["a"], "top_k": top_k}) is VOYAGE
        assert dialect_of(path, {"documents": ["a"], "top_k": 1, "top_n": 1}) is not VOYAGE
    assert dialect_of("/v2/rerank", {"documents": ["a"], "top_k": 1}) is COHERE
    assert dialect_of("/voyage/v1/rerank", {"documents": ["a"]}) is VOYAGE
    assert dialect_of("/score", {"text_1": "a", "text_2": ["b"]}) is dialect_of("/v1/score", {}) is SCORE
    with pytest.raises(Refusal, match="not both"):
        dialect_of("/rerank", {"documents": ["a"], "texts": ["a"]})


@given(
    st.binary() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_any_body_is_an_object_or_refused(body: bytes) -> None:
    try:
        status = 200 if isinstance(read_json(body), dict) else 0
    except Refusal as refusal:
        status = refusal.status
    assert status in (200, 400)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "query",
                "documents",
                "texts",
                "top_n",
                "top_k",
                "model",
                "evidence",
                "token_counts",
                "rank_fields",
                "relevant_spans",
                "text_1",
                "text_2",
                "kwargs",
                "return_embeddings",
                "max_tokens_per_doc",
            ]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "text", "title"]), inner)
            ),
            max_leaves=6,
        ),
    )
)
def test_any_object_is_a_call_or_refused(body: dict[str, Any]) -> None:
    for dialect in (*DIALECTS, SCORE):
        try:
            call = dialect.read(body, SETTINGS, "r1")
        except Refusal as refusal:
            status, answer = dialect.refusal(refusal, "r1")
            assert 400 <= status < 500
            json.dumps(answer).encode()
        else:
            assert len(call.given) == len(call.request.candidates)


def test_settings_are_checked() -> None:
    for wrong in (
        {"max_documents": 0}, {"timeout_s": -1.0}, {"cache_bytes": -1}, {"served_name": " "}, {"keys": ("",)},
        {"keys": (" a",)}, {"aliases": ("",)},
    ):  # fmt: skip
        with pytest.raises(InputError):
            ServeSettings(**wrong)
    assert "secret" not in repr(ServeSettings(keys=("secret",)))
    assert Fields({"a": None}, ["a"]).value("a") is None


# Over the socket


def test_permutations_and_top_n_at_once(server: Running, mini: Ranker) -> None:
    """Every order of the documents with every `top_n`, in all dialects, at the same time: the right index each time."""
    expected = [entry.document.text for entry in mini.rank(QUERY, TEXTS)]
    cases = list(itertools.product(itertools.permutations(TEXTS), (None, 1, 2, 3, 8000), (JINA, COHERE, TEI)))

    def post(case: Any) -> Any:
        texts, top_n, dialect = case
        body = {"query": QUERY, DOCUMENTS[dialect.name]: list(texts), "top_n": top_n}
        return server.post(PATHS[dialect.name], body)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(post, cases))
    for (texts, top_n, dialect), answer in zip(cases, answers, strict=True):
        found = [texts[item["index"]] for item in results(dialect, answer.json())]
        assert found == expected[: top_n or 3]


def test_a_limit_that_does_not_bind_changes_no_bit(server: Running) -> None:
    body = {"query": QUERY, "documents": [*TEXTS, "word " * 100]}
    server.post(body=body)  # from now on its documents come from the cache: the same bits each time
    plain = server.post(body=body).json()["results"]
    assert server.post(body={**body, "max_tokens_per_doc": 4096}).json()["results"] == plain
    assert server.post(body={**body, "max_tokens_per_doc": 150}).json()["results"] == plain
    cut = server.post(body={**body, "max_tokens_per_doc": 20, "token_counts": True}).json()
    assert {item["index"]: item["cut_tokens"] for item in cut["results"]} == {0: 0, 1: 0, 2: 0, 3: 82}


def test_documents_that_may_not_be_cut_are_refused_by_name(server: Running) -> None:
    texts = ["a", "word " * 300]
    answer = server.post("/rerank", {"query": QUERY, "texts": texts, "truncate": False})
    assert (answer.status_code, answer.json()["error"].startswith("texts[1] is 46 tokens over")) == (422, True)
    assert server.post("/rerank", {"query": QUERY, "texts": texts, "truncate": True}).status_code == 200
    jina = server.post(body={"query": QUERY, "documents": texts, "truncation": False})
    assert (jina.status_code, jina.json()["detail"].startswith("documents[1] is 46")) == (422, True)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/score"])
def test_empty_documents_over_the_socket(server: Running, mini: Ranker, path: str) -> None:
    """The rest are ranked as without them; evidence, spans and counts have nothing to say of them."""
    texts = ["", *TEXTS, "\u200b", {"text": "\u0000", "id": "x", "url": "u"}]
    query, documents = ("text_1", "text_2") if path == "/score" else ("query", "documents")
    more = {"relevant_spans": {"mode": "enabled"}} if path == "/v2/rerank" else {}
    answer = server.post(path, {query: QUERY, documents: texts, "evidence": True, "token_counts": True, **more})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    found = {item["index"]: item for item in body.get("results", body.get("data"))}
    score = "score" if path == "/score" else "relevance_score"
    expected = {entry.index + 1: entry.score for entry in mini.rank(QUERY, TEXTS)}
    assert {index: found[index][score] for index in (1, 2, 3)} == pytest.approx(expected, abs=1e-5)
    for index in (0, 4, 5):
        assert (found[index][score], found[index]["evidence"], found[index]["tokens"]) == (0, [], 0)
    assert found[5]["id"] == "x"
    [warning] = body["meta"]["warnings"]
    names = f"{documents}[0], {documents}[4] and {documents}[5]"
    assert warning == f"{names}: no readable character; ranked last."


def test_evidence_is_characters_of_the_caller_s_text(server: Running) -> None:
    documents = [{"title": "Dracula", "text": "by Bram Stoker"}, "a novel"]
    answer = server.post("/v2/rerank", {"query": QUERY, "documents": documents, "evidence": True}).json()
    best = answer["results"][0]
    assert best["index"] == 0
    spans = {documents[0][item["field"]][item["start"] : item["end"]]: item["share"] for item in best["evidence"]}  # type: ignore[index]
    assert {"dracula", "bram"} & {text.lower() for text in spans}
    assert 0 < sum(spans.values()) <= 1.001
    assert "evidence" not in server.post().json()["results"][0]


def test_the_model_s_names(server: Running) -> None:
    for name in ("blockrank/mini", "rerank-v3.5"):
        assert server.post(body={"model": name, "query": QUERY, "documents": TEXTS}).json()["model"] == "blockrank/mini"
    other = server.post("/v2/rerank", {"model": "rerank-v4", "query": QUERY, "documents": TEXTS})
    assert (other.status_code, {*other.json()}) == (404, {"id", "message"})
