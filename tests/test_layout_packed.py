"""Requests packed into one stream of tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import CPU, tokenised
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layout import spec

from blockrank import RankSpec
from blockrank.attention.reference import dense_mask
from blockrank.layout import PackedLayout, pack, ranges_flat

LENGTHS = st.tuples(st.integers(0, 5), st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 5)).map(
    lambda item: [item[0], *item[1], item[2]]
)


REQUESTS = st.lists(LENGTHS, min_size=1, max_size=3)


READS = st.sampled_from(["all", "own"])


ATTEND = st.sampled_from(["causal", "bidirectional"])


def packed(requests: list[list[int]], of: RankSpec) -> PackedLayout:
    at = iter(range(10_000))
    return pack([tokenised([np.array([next(at) for _ in range(n)], dtype=np.int64) for n in r]) for r in requests], of)


def expected_mask(requests: list[list[int]], of: RankSpec) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The block pattern of the method, token by token."""
    tokens = [
        (r, s, s == 0, s == len(lengths) - 1)
        for r, lengths in enumerate(requests)
        for s, length in enumerate(lengths)
        for _ in range(length)
    ]
    mask = np.zeros((len(tokens), len(tokens)), dtype=bool)
    for t, (request, segment, _, is_query) in enumerate(tokens):
        attention = of.pattern.query_attention if is_query else of.pattern.document_attention
        for p, (other_request, other_segment, is_instruction, _) in enumerate(tokens):
            if other_request != request:
                continue
            if other_segment == segment:
                mask[t, p] = p <= t or attention == "bidirectional"
            elif is_instruction:
                mask[t, p] = True
            else:
                mask[t, p] = is_query and of.pattern.query_reads == "all"
    return mask


@settings(deadline=None, max_examples=25)
@given(requests=REQUESTS, reads=READS, documents=ATTEND, query=ATTEND)
def test_rows_are_those_of_the_method(requests: list[list[int]], reads: str, documents: str, query: str) -> None:
    of = spec(query_reads=reads, document_attention=documents, query_attention=query)
    layout = packed(requests, of)
    mask = dense_mask(layout).numpy()
    assert (mask == expected_mask(requests, of)).all()
    every = np.flatnonzero(layout.ends_S > layout.starts_S)
    rows, counts = layout.key_rows(every)
    assert counts.sum() == len(rows)
    for segment, part in zip(every, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
        last = int(layout.ends_S[segment]) - 1
        assert part.tolist() == np.flatnonzero(mask[last]).tolist()
        own = layout.ends_S[segment] - layout.starts_S[segment]
        assert part[-own:].tolist() == list(range(layout.starts_S[segment], layout.ends_S[segment]))


@settings(deadline=None, max_examples=25)
@given(requests=REQUESTS, offset=st.sampled_from([None, 100, 2]))
def test_positions_are_those_of_the_method(requests: list[list[int]], offset: int | None) -> None:
    layout = packed(requests, spec(query_offset=offset))
    expected: list[int] = []
    for first, *documents, last in requests:
        expected += range(first)
        for length in documents:
            expected += range(first, first + length)
        start = first if offset is None else max(offset, first)
        expected += range(start, start + last)
    assert layout.positions_T.tolist() == expected
    assert layout.ids_T.tolist() == list(range(layout.tokens))
    assert layout.document_request_C.tolist() == [r for r, n in enumerate(requests) for _ in n[1:-1]]


@settings(deadline=None, max_examples=25)
@given(requests=REQUESTS, signals=st.sampled_from([1, 2, "query"]))
def test_signal_tokens_are_the_last_of_the_query(requests: list[list[int]], signals: Any) -> None:
    layout = packed(requests, spec(signal_tokens=signals))
    at, expected, owners = 0, [], []
    for index, lengths in enumerate(requests):
        at += sum(lengths)
        count = lengths[-1] if signals == "query" else min(signals, lengths[-1])
        expected += range(at - count, at)
        owners += [index] * count
    assert layout.signal_G.tolist() == expected
    assert layout.signal_request_G.tolist() == owners


@given(pairs=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5))))
def test_ranges_are_joined(pairs: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in pairs], dtype=np.int64)
    ends = starts + np.array([length for _, length in pairs], dtype=np.int64)
    assert ranges_flat(starts, ends).tolist() == [i for a, b in zip(starts, ends, strict=True) for i in range(a, b)]


@pytest.mark.parametrize("dropped", [[], [2], [1, 2, 5]])
def test_a_layout_knows_what_its_segments_are(dropped: list[int]) -> None:
    """Also after documents have left it, whose layout is another one."""
    whole = packed([[3, 2, 4, 2], [5, 3, 2]], spec())
    assert whole.is_document_S.any()  # asked before: what is kept of it is not handed on
    layout = whole.without(np.isin(np.arange(len(whole.starts_S)), dropped))
    kinds = np.array(layout.kinds_S)
    for kind, found_S in (
        ("instruction", layout.is_instruction_S),
        ("document", layout.is_document_S),
        ("query", layout.is_query_S),
    ):
        assert found_S.tolist() == (kinds == kind).tolist()
    assert layout.document_segment_C.tolist() == np.flatnonzero(layout.is_document_S).tolist()
    assert layout.request_S[layout.document_segment_C].tolist() == layout.document_request_C.tolist()
    for segment_B in (layout.instruction_segment_B, layout.query_segment_B):
        assert layout.request_S[segment_B].tolist() == [0, 1]


@pytest.mark.parametrize("pattern", ["causal", "block"])
@pytest.mark.parametrize("offset", [None, 64])
def test_query_segments_of_one_request_do_not_know_each_other(pattern: str, offset: int | None) -> None:
    """What each reads, and at which positions, is what it reads in a request of its own."""
    generator = np.random.default_rng(0)
    of = RankSpec.of(layer=0, pattern=pattern, query_offset=offset, signal_tokens="query")
    requests = []
    for sizes in ([3, 5, 2, 4], [2, 3, 6], [4, 1, 1, 1, 5]):
        request = tokenised([generator.integers(3, 50, size) for size in sizes])
        other = tokenised([generator.integers(3, 50, size) for size in (1, 1, 7)]).segments[-1]
        requests.append((request, replace(request, segments=(*request.segments, other))))
    layout = pack([both for _, both in requests], of)
    assert layout.signal_request_G.tolist() == [0] * 11 + [1] * 13 + [2] * 12
    mask_TP = dense_mask(layout, CPU).numpy()
    joined_TP = dense_mask(layout.joined(), CPU).numpy()
    assert (joined_TP == mask_TP).all(), "joined segments attend the same"
    at = 0
    for alone, both in requests:
        context, own = sum(len(segment.ids) for segment in both.segments[:-2]), len(both.segments[-2].ids)
        for query in both.segments[-2:]:
            one = pack([replace(alone, segments=(*alone.segments[:-1], query))], of)
            tail = at + context + (own if query is both.segments[-1] else 0)
            rows = [*range(at, at + context), *range(tail, tail + len(query.ids))]
            assert (mask_TP[np.ix_(rows, rows)] == dense_mask(one, CPU).numpy()).all()
            assert mask_TP[rows].sum() == mask_TP[np.ix_(rows, rows)].sum(), "and nothing else"
            assert (layout.positions_T[rows] == one.positions_T).all()
        at += both.length


def test_a_request_under_full_attention_is_one_segment_and_one_for_each_further_query() -> None:
    of = RankSpec.of(layer=0, pattern="causal", query_offset=None)
    request = tokenised([np.arange(3, 3 + size) for size in (3, 5, 2, 4)])
    both = replace(request, segments=(*request.segments, request.segments[-1]))
    assert pack([both, request], of).joined().ends_S.tolist() == [14, 18, 32]
    assert len(pack([both], of.changed(pattern="block")).joined().ends_S) == 5
