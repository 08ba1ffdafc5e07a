"""TREC runs and judgements: read in the order of evaluation, written so that no evaluator can reorder them."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockrank import Document, FakeRanker, InputError, RankRequest
from blockrank.data import (
    Run,
    check_ids,
    judgement_place,
    read_qrels,
    read_run,
    run_lines,
    strictly_decreasing,
    trec_lines,
    write_qrels,
    write_run,
)
from blockrank.types import Ranking

# Scores that crowd: many of them tie, in float32 or altogether.
SCORES = st.one_of(
    st.floats(-2, 2), st.integers(-2, 2).map(float), st.integers(0, 9).map(lambda step: 1 + step * 1e-8),
    st.floats(allow_nan=False, allow_infinity=False, width=32, min_value=-(2.0**126)),
)  # fmt: skip
IDS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=4).filter(
    lambda text: text.split() == [text]
)
RUNS = st.dictionaries(IDS, st.dictionaries(IDS, SCORES, min_size=1, max_size=12), min_size=1, max_size=3)


def source(*lines: str) -> io.BytesIO:
    return io.BytesIO("".join(f"{line}\n" for line in lines).encode())


def evaluated(lines: list[str]) -> list[str]:
    """The order that ir_measures sees in the run of one query: for each document the rank at which it is found."""
    scored = list(ir_measures.read_trec_run(io.StringIO("\n".join(lines) + "\n")))
    copies = [
        ir_measures.ScoredDoc(f"for {target.doc_id}", entry.doc_id, entry.score)
        for target in scored
        for entry in scored
    ]
    qrels = [ir_measures.Qrel(f"for {target.doc_id}", target.doc_id, 1) for target in scored]
    found = {item.query_id: item.value for item in ir_measures.iter_calc([ir_measures.RR], qrels, copies)}
    return sorted((entry.doc_id for entry in scored), key=lambda doc_id: -found[f"for {doc_id}"])


# Scores


@given(st.lists(st.floats(-1, 1, width=64), max_size=40))
def test_scores_of_a_run_decrease_strictly_in_float32(scores: list[float]) -> None:
    lowered = np.array(strictly_decreasing(sorted(scores, reverse=True)), dtype=np.float32)
    assert (np.diff(lowered) < 0).all()
    written = np.array([float(f"{score:.9g}") for score in lowered], dtype=np.float32)
    assert (written == lowered).all()


def test_ties_of_a_run_are_lowered_by_the_least_step() -> None:
    one, below = strictly_decreasing([1.0, 1.0])
    assert one == 1.0
    assert np.float32(below) == np.nextafter(np.float32(1), np.float32(0))
    assert strictly_decreasing([0.75, 0.5]) == [0.75, 0.5]
    assert strictly_decreasing([]) == []


# Runs


@given(RUNS)
def test_a_run_reads_back_in_the_order_it_was_written(run: Run) -> None:
    lines = [line for query_id, scores in run.items() for line in run_lines(query_id, scores)]
    back = read_run(source(*lines))
    for query_id, scores in run.items():
        assert list(back[query_id]) == sorted(scores, key=lambda doc_id: -scores[doc_id])
        again = run_lines(query_id, back[query_id])
        assert again == [line for line in lines if line.split()[0] == query_id]  # a fixed point
    assert list(back) == list(run)


@given(st.dictionaries(IDS, SCORES, min_size=1, max_size=8), st.randoms())
def test_an_evaluator_sees_our_order(scores: dict[str, float], random: object) -> None:
    lines = run_lines("q", scores)
    assert evaluated(lines) == [line.split()[2] for line in lines]


@given(st.dictionaries(IDS, SCORES, min_size=1, max_size=8))
def test_a_run_is_read_as_an_evaluator_sorts_it(scores: dict[str, float]) -> None:
    lines = [f"q Q0 {doc_id} 0 {score!r} other" for doc_id, score in scores.items()]
    read = read_run(source(*lines))["q"]
    assert list(read) == evaluated(lines)
    assert sorted(read, key=lambda doc_id: -read[doc_id]) == list(read)
    assert all(np.float32(read[doc_id]) == np.float32(score) for doc_id, score in scores.items())


def test_a_run_in_any_line_order_with_any_ranks_is_sorted_by_score() -> None:
    run = read_run(source("q Q0 a 1 1 t", "r Q0 a 1 5 t", "", "q\t0\tb\tx\t3\tu", "q Q0 c 9 3 t"))
    assert {query_id: list(scores.items()) for query_id, scores in run.items()} == {
        "q": [("c", 3.0), ("b", 3.0), ("a", 1.0)],
        "r": [("a", 5.0)],
    }


@pytest.mark.parametrize(
    ("query_id", "doc_ids", "complaint"),
    [
        ("q 1", ["a"], "the query_id 'q 1' is empty or holds white space"),
        ("", ["a"], "the query_id '' is empty"),
        ("q", ["a", "b\u00a0c"], "the doc_id 'b\\xa0c' is empty or holds white space"),
        ("q", ["a", "b", "a"], "the doc_id 'a' is there twice for the query_id 'q': a run needs it once."),
    ],
)
def test_ids_that_a_run_cannot_carry(query_id: str, doc_ids: list[str], complaint: str) -> None:
    with pytest.raises(InputError) as error:
        check_ids(query_id, doc_ids)
    assert complaint in str(error.value)
    check_ids("q", ["a", "b"])


def test_the_place_of_a_judgement(tmp_path: Path) -> None:
    path = tmp_path / "qrels.tsv"
    path.write_text("query-id\tcorpus-id\tscore\n\nq\ta\t1\nr\ta\t2\n", encoding="utf-8")
    assert judgement_place(path, "r", "a") == f"{path}:4"
    assert judgement_place(path, "r", "b") == str(path)
    assert judgement_place(io.BytesIO(b"q 0 a 1"), "q", "a") == "stream"


@pytest.mark.parametrize("score", [1000.0, 1e-3, -1000.0, 0.0])  # near 1000, float32 needs all nine digits
def test_many_ties_stay_apart_on_paper(score: float) -> None:
    scores = {f"{i:02}": score for i in range(60)}
    read = read_run(source(*run_lines("q", scores)))["q"]
    assert list(read) == list(scores)
    assert len({np.float32(value) for value in read.values()}) == 60


def test_the_lowest_and_highest_scores_read_back() -> None:
    scores = {"high": 3.4028234663852886e38, "low": -3.4028234663852886e38, "small": 1e-45}
    assert list(read_run(source(*run_lines("q", scores)))["q"]) == ["high", "small", "low"]


def test_scores_that_tie_in_float32_do_not_contradict_the_order() -> None:
    run = read_run(source("q Q0 a 1 1.00000001 t", "q Q0 b 2 1.0 t"))
    assert list(run["q"].items()) == [("b", 1.0), ("a", 1.0)]


def test_a_run_is_packed_marked_and_ended_as_files_are(tmp_path: Path) -> None:
    content = "\ufeffq Q0 a 1 2 t\r\nq Q0 b 2 1 t\r\n".encode()
    (tmp_path / "run.gz").write_bytes(gzip.compress(content))
    assert read_run(tmp_path / "run.gz") == {"q": {"a": 2.0, "b": 1.0}}
    write_run(tmp_path / "out.trec.gz", {"q": {"b": 1.0, "a": 2.0}}, "tag")
    assert gzip.decompress((tmp_path / "out.trec.gz").read_bytes()) == b"q Q0 a 1 2 tag\nq Q0 b 2 1 tag\n"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("q Q0 a 1 1", "a run has six fields, query_id Q0 doc_id rank score tag; here are 5."),
        ("q Q0 a b 1 1 t", "here are 7."),
        ("q Q0 a 1 nan t", "the score 'nan' is not a finite number."),
        ("q Q0 a 1 -inf t", "the score '-inf' is not a finite number."),
        ("q Q0 a 1 1e39 t", "the score '1e39' is not a finite number."),  # infinite in float32
        ("q Q0 a 1 1_0 t", "the score '1_0' is not a finite number."),
        ("q Q0 a 1 x t", "the score 'x' is not a finite number."),
        ("q Q0 z 1 1 t", "the doc_id 'z' is listed before for the query_id 'q'."),
    ],
)
def test_a_broken_run_names_file_and_line(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "run.trec"
    path.write_text(f"q Q0 z 1 1 t\n\n{line}\n")
    with pytest.raises(InputError) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert str(caught.value).endswith(complaint)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_source_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="there is no run in it"):
        read_run(io.BytesIO(content))
    with pytest.raises(InputError, match="there are no judgements in it"):
        read_qrels(io.BytesIO(content))
    with pytest.raises(InputError, match="there are no judgements in it"):
        read_qrels(io.BytesIO(b"query-id\tcorpus-id\tscore\n"))


@pytest.mark.parametrize(
    ("query_id", "scores", "tag", "complaint"),
    [
        ("a b", {"x": 1.0}, "t", "the query_id 'a b' is empty or holds white space"),
        ("q", {"x\u00a0": 1.0}, "t", "the doc_id 'x\\xa0'"),
        ("q", {"x": 1.0}, "", "the tag ''"),
        ("q", {"x": float("nan")}, "t", "the score nan of the doc_id 'x' is not a finite float32."),
        ("q", {"x": 1e39}, "t", "not a finite float32"),
        ("q", {"x": -3.4028234663852886e38, "y": -3.4028234663852886e38}, "t", "too low to be told apart"),
    ],
)
def test_what_a_run_cannot_carry_leaves_no_file(
    tmp_path: Path, query_id: str, scores: dict[str, float], tag: str, complaint: str
) -> None:
    with pytest.raises(InputError) as caught:
        write_run(tmp_path / "run.trec", {"first": {"fine": 1.0}, query_id: scores}, tag)
    assert complaint in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_trec_lines_keep_the_order_of_a_ranking() -> None:
    ranking = FakeRanker().rank("b", [Document("c", "x"), Document("b", "y"), Document("c", "z")], query_id="q1")
    lines = [line.split() for line in trec_lines(ranking)]
    assert [line[:4] for line in lines] == [["q1", "Q0", "y", "1"], ["q1", "Q0", "x", "2"], ["q1", "Q0", "z", "3"]]
    assert float(lines[1][4]) > float(lines[2][4])
    upside_down = Ranking(ranking.query, ranking.query_id, ranking.ranked[::-1])  # an order that is not by score
    assert evaluated(trec_lines(upside_down)) == ["z", "x", "y"]


@pytest.mark.parametrize(("query_id", "doc_id"), [("a b", "x"), ("a", "x\ty"), ("", "x"), ("a", "")])
def test_a_run_cannot_carry_white_space_in_ids(query_id: str, doc_id: str) -> None:
    ranking = FakeRanker().rank_many([RankRequest("b", [Document("b", doc_id)], query_id)])[0]
    with pytest.raises(InputError, match="a TREC run cannot carry it"):
        trec_lines(ranking)


# Judgements


@pytest.mark.parametrize(
    "lines",
    [
        ("q 0 a 1", "q 0 b 0", "r Q0 a -1"),
        ("q\t0\ta\t1.0", "", "q\t0\tb\t0", "r\t0\ta\t-1\r"),
        ("query-id\tcorpus-id\tscore", "q\ta\t1", "q\tb\t0", "r\ta\t-1"),
        ("query-id\tcorpus-id\tscore\r", "q\ta\t1\r", "q\tb\t0.0\r", "r\ta\t-1\r"),
        ("query-id corpus-id score", "q a 1", "q b 0", "r a -1"),
        ("query-id\tdoc-id\trelevance", "q\ta\t1", "q\tb\t0", "r\ta\t-1"),
        ("query_id iteration doc_id relevance", "q 0 a 1", "q 0 b 0", "r 0 a -1"),
        ("q\ta\t1", "q\tb\t0", "r\ta\t-1"),
        ("\ufeffq a 1", "q b 0", "r a -1"),
    ],
)
def test_judgements_are_read_in_the_forms_that_are_about(lines: tuple[str, ...]) -> None:
    assert read_qrels(source(*lines)) == {"q": {"a": 1, "b": 0}, "r": {"a": -1}}


def test_tabs_keep_ids_with_spaces_together() -> None:
    assert read_qrels(source("query-id\tcorpus-id\tscore", "q 1\ta b\t2")) == {"q 1": {"a b": 2}}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("q 0 a", "judgements have 4 fields, query_id 0 doc_id relevance; here are 3."),
        ("q Q0 a 1 2.5 tag", "here are 6."),
        ("q 0 a 0.5", "the relevance '0.5' is not a whole number."),
        ("q 0 a nan", "the relevance 'nan' is not a finite number."),
        ("q 0 a relevance", "the relevance 'relevance' is not a finite number."),  # a header is the first line
        ("q 0 z 1", "the doc_id 'z' is judged before for the query_id 'q'."),
    ],
)
def test_broken_judgements_name_file_and_line(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "qrels.txt"
    path.write_text(f"q 0 z 1\n{line}\n")
    with pytest.raises(InputError) as caught:
        read_qrels(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert str(caught.value).endswith(complaint)


def test_a_run_is_no_judgements() -> None:
    with pytest.raises(InputError, match=r":1: judgements have four fields, .+, or three, .+; here are 6\."):
        read_qrels(source("q Q0 a 1 2.5 tag"))


def test_an_empty_field_between_tabs_is_missing() -> None:
    with pytest.raises(InputError, match=r":2: judgements have 3 fields, .+; here are 2\."):
        read_qrels(source("query-id\tcorpus-id\tscore", "q\t\t1"))


@pytest.mark.parametrize("name", ["qrels.tsv", "qrels.tsv.gz", "qrels.trec", "qrels.txt.gz"])
@given(qrels=st.dictionaries(IDS, st.dictionaries(IDS, st.integers(-9, 9), min_size=1, max_size=4), min_size=1))
def test_judgements_read_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, qrels: dict[str, dict[str, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    write_qrels(path, qrels)
    assert read_qrels(path) == qrels
    if name == "qrels.trec":
        assert {(item.query_id, item.doc_id, item.relevance) for item in ir_measures.read_trec_qrels(str(path))} == {
            (query_id, doc_id, relevance) for query_id, judged in qrels.items() for doc_id, relevance in judged.items()
        }


def test_judgements_with_white_space_in_ids_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the doc_id 'a b' is empty or holds white space"):
        write_qrels(tmp_path / "qrels.tsv", {"q": {"a": 1, "a b": 1}})
    assert os.listdir(tmp_path) == []
