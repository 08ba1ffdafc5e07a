"""From bytes to JSON: what is refused, in which words, and that no body keeps the server from answering others."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import BODY, QUERY, running

from blockrank import Ranker
from blockrank.serve.calls import read_call
from blockrank.serve.fields import Fields, shown
from blockrank.serve.parsing import MOST_VALUES, read_json
from blockrank.serve.refusals import Refusal
from blockrank.serve.settings import ServeSettings

_NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)
_PLAIN = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
_VALUES = st.recursive(_PLAIN | _NAMES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(_NAMES, _VALUES), st.booleans(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-be"]))
def test_what_is_json_is_read_as_json(value: dict[str, Any], escaped: bool, encoding: str) -> None:
    assert read_json(json.dumps(value, ensure_ascii=escaped).encode(encoding)) == value


def refusal(body: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_json(body)
    return caught.value


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b'{"query": "a", "query": "b"}', 422, "the body has the field 'query' twice"),
        (b'{"a": 1, "\\u0061": 2}', 422, "the body has the field 'a' twice"),
        (b'{"documents": ["a", {"text": "a", "text": "b"}]}', 422, "documents[1] has the field 'text' twice"),
        (b'{"documents": [{"text": "a", "m": {"x": 1, "x": 1}}]}', 422, "documents[0] has the field 'x' twice"),
        (b'{"": 1}', 422, "the body has a field without a name"),
        (b'{"documents": ["a", {"text": "b", "": "c"}]}', 422, "documents[1] has a field without a name"),
        (b'{"%s": 1}' % (b"x" * 257), 422, "a field name of 257 characters and the limit is 256"),
        (b'{"documents": [{"%s": 1}]}' % ("ä".encode() * 999), 422, "documents[0] has a field name of 999 characters"),
        (b'{"\\ud800": 1}', 422, "the field name '\\ud800', which is not valid Unicode text"),
        (b'{"a": {"b\\udfff": 1}}', 422, "a has the field name 'b\\udfff'"),
        (b'{"a": "\xed\xa0\x80"}', 400, "not valid JSON: 'utf-8' codec"),
        (b'{"top_n": %s}' % (b"1" * 5000), 422, "a number of 5000 characters and the limit is 100"),
        (b'{"a": 0.%s}' % (b"1" * 5000), 422, "a number of 5002 characters"),
        (b'{"a": 1e400}', 422, "the number 1e400, which is out of range"),
        (b'{"a": [-1e999]}', 422, "the number -1e999, which is out of range"),
        (b'{"a": -Infinity}', 400, "-Infinity is not a number of JSON"),
        (b'{"a": %s1%s}' % (b"[" * 32, b"]" * 32), 400, "nested too deeply: 33 levels, and the limit is 32"),
        (b'{"a": %s' % (b'{"a": ' * 900), 400, "nested too deeply: 901 levels"),
        (b"]" * 9, 400, "not valid JSON"),
    ],
)
def test_what_has_no_one_meaning_is_refused(body: bytes, status: int, sentence: str) -> None:
    found = refusal(body)
    assert (found.status, sentence in found.sentence) == (status, True), found.sentence


@pytest.mark.parametrize("part", [b"[]", b'{"a":1}', b"0.5", b'""', b"[[]]"])
def test_values_are_counted_and_text_is_not(part: bytes) -> None:
    found = refusal(b'{"documents": [' + b",".join([part] * (MOST_VALUES + 1)) + b"]}")
    assert (found.status, found.cause) == (422, "limit")
    assert f"names and values and the limit is {MOST_VALUES}" in found.sentence
    text = (part.decode() + ',:[]{}"\\') * MOST_VALUES
    for escaped in (True, False):
        assert read_json(json.dumps({"query": text}, ensure_ascii=escaped).encode()) == {"query": text}


def test_the_largest_request_is_far_from_the_limits() -> None:
    document = {
        "id": "an id",
        "text": '[1] {a}, b: "c" ' * 1000,
        "title": "t",
        "metadata": dict.fromkeys("abcdefgh", 1),
    }
    assert len(read_json(json.dumps({"query": "q", "documents": [document] * 1000}).encode())["documents"]) == 1000


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("x" * 2049, "documents[0].id has 2049 characters and the limit is 2048"),
        (1 << 64, "documents[0].id is a number of more than 64 bits"),
        (-(1 << 63) - 1, "documents[0].id is a number of more than 64 bits"),
    ],
)
def test_ids_have_a_bound(name: Any, sentence: str) -> None:
    def read(value: Any) -> Any:
        fields = Fields({"query": "q", "documents": [{"text": "a", "id": value}]}, ("query", "documents"))
        return read_call(fields, ServeSettings(), request_id="1", echo=False).given[0].name

    with pytest.raises(Refusal, match="documents") as caught:
        read(name)
    assert sentence in caught.value.sentence
    assert [read(value) for value in ("x" * 2048, (1 << 64) - 1, -(1 << 63))] == ["x" * 2048, (1 << 64) - 1, -(1 << 63)]


def test_a_huge_value_is_shown_by_its_beginning() -> None:
    assert shown("a" * (1 << 24)) == "'" + "a" * 79 + "..."
    assert len(shown(["\0" * (1 << 24)] * 1000)) < 100
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    assert shown(nested) == "[[[[[[[...]]]]]]]"


MOST = 16 << 20
ATTACKS = {
    "empty arrays": b'{"documents":[' + b"[]," * (MOST // 3 - 20) + b"0]}",
    "small objects": b'{"documents":[' + b'{"a":1},' * (MOST // 8 - 20) + b"0]}",
    "objects at the limit": b'{"documents":[' + b'{"a":1},' * (MOST_VALUES // 3 - 20) + b"0]}",
    "a long name": b'{"' + b"x" * (MOST - 20) + b'":1}',
    "a long number": b'{"top_n":' + b"1" * (MOST - 20) + b"}",
    "an open string": b'{"query":"' + b'\\"' * (MOST // 2 - 20),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_body_silences_the_server(mini: Ranker, name: str) -> None:
    """One process, one lock of the interpreter: others are answered all the while."""
    slowest = 0.0
    with running(mini) as server, ThreadPoolExecutor(3) as pool:
        attacks = [pool.submit(server.client.post, "/v1/rerank", content=ATTACKS[name]) for _ in range(2)]
        good = pool.submit(server.post)
        while not all(attack.done() for attack in attacks):
            started = time.monotonic()
            assert server.client.get("/livez").status_code == 200
            slowest = max(slowest, time.monotonic() - started)
        assert {attack.result().status_code for attack in attacks} <= {400, 422}
        assert good.result().json()["results"][0]["index"] == 1
    assert slowest < 5, "8 to 28 s where such bodies are parsed as they come; under 0.3 s here"


def test_twice_over_http_is_told_in_the_dialect_s_words(mini: Ranker) -> None:
    with running(mini) as server:
        body = json.dumps(BODY)[:-1].encode() + b', "qu\\u0065ry": "another"}'
        answer = server.client.post("/v2/rerank", content=body)
        assert (answer.status_code, answer.json()["message"]) == (
            422,
            "the body has the field 'query' twice: it is not clear which of them counts.",
        )
        tei = server.client.post("/rerank", content=b'{"query": "%s", "texts": [], "texts": []}' % QUERY.encode())
        assert tei.json()["error"].startswith("the body has the field 'texts' twice")
