"""Long documents: only as much is encoded as can matter, and what is read is what it would be of the whole text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import Ranker, RankRequest, RankSpec, Template
from blockrank.layout import PromptTokenizer, Segment
from blockrank.layout.encoder import PieceEncoder
from blockrank.layout.encoding import Encoded
from blockrank.layout.excerpts import FIRST_ROOM, LAST_ROOM, settled
from blockrank.layout.prompt import Piece

FRAMES = [("{text}",), ("\nID: {id} | {text} | END",), ("[SEP]{text}[SEP]",), ("{text}.\n", "({query})"), (" {text}s",)]
WORDS = st.sampled_from(
    [*"\n\t.,;-'", "  ", "\n\n", " the", " fox", "quick", " 12345", "678", "it's", "FooBar", "如果忘记了", "，", "पानी",
     "e\u0301", "\U0001f98a", "\u200b", "<|im_", "[SEP]", "<|im_end|>", " \n \n ", "----", "café", "a" * 30 + " ",
     "7" * 40]
)  # fmt: skip
# White space, digits, contractions and added tokens that a gap may cut anywhere.
EVERYTHING = (
    "The fox, it's 1234567 quick FooBarBaz \n \n \n 12 345678901 如果忘记了密码，请点击。 पानी e\u0301te\u0301 "
    f"\U0001f98a--- === <|im_end|> [SEP]x[SEP] ab   cd {'12345' * 9} fox aaaa\u200bbbbb 's 't don't\t\t\n"
) * 2
TEXTS = st.tuples(st.lists(WORDS, min_size=1, max_size=40), st.integers(1, 30), st.lists(WORDS, max_size=12)).map(
    lambda parts: "x" + "".join(parts[0]) * parts[1] + "".join(parts[2])
)


def segment(kind: str, frame: tuple[str, ...], text: str, limit: int, room: int) -> Segment:
    spec = RankSpec.of(layer=0, template=Template(("t",), frame, ("{query}",)), max_segment_tokens=limit)
    request = RankRequest("q", ["x", text], evidence=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockrank.layout.tokens.FIRST_ROOM", room)
        return tokenizer(kind).tokenise_request(request, spec).documents[1]


def tokenizer(kind: str) -> PromptTokenizer:
    return PromptTokenizer(vocabularies.tokenizer(kind))


@pytest.mark.parametrize("kind", vocabularies.KINDS)
@settings(deadline=None, max_examples=30)
@given(frame=st.sampled_from(FRAMES), text=TEXTS, limit=st.integers(25, 60), room=st.sampled_from([1, 2, 8]))
def test_what_is_read_is_that_of_the_whole_text(
    kind: str, frame: tuple[str, ...], text: str, limit: int, room: int
) -> None:
    found, whole = (segment(kind, frame, text, limit, characters) for characters in (room, 10**9))
    assert found.ids.tolist() == whole.ids.tolist()
    assert found.body_tokens == whole.body_tokens
    assert found.spans_L2 is not None
    assert whole.spans_L2 is not None
    assert found.spans_L2.tolist() == whole.spans_L2.tolist()
    assert (found.cut > 0) is (whole.cut > 0)
    assert not whole.cut_is_estimate
    if not found.cut_is_estimate:
        assert found.cut == whole.cut


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_tokens_before_any_gap_are_those_of_the_whole_text(kind: str) -> None:
    encoder = PieceEncoder(vocabularies.tokenizer(kind))

    def encoded(text: str) -> Encoded:
        return encoder.pieces([Piece(text, ((0, len(text)),), content=0)], ["a text"])[0]

    whole, most = encoded(EVERYTHING).ids_L.tolist(), 0
    for gap in range(1, len(EVERYTHING)):
        part = encoded(EVERYTHING[:gap])
        count = settled(part, gap, encoder, is_last=False)
        assert part.ids_L[:count].tolist() == whole[:count], gap
        most = max(most, count)
    assert most > len(whole) / 2


def test_little_is_encoded_and_little_at_once(mini: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer's own record takes a hundred times the size of a text."""
    assert mini.model.tokenizer is not None
    sizes: list[int] = []
    encode = PieceEncoder.pieces

    def recorded(self: PieceEncoder, pieces: Sequence[Piece], names: Sequence[str]) -> list[Encoded]:
        sizes.append(sum(len(piece.text) for piece in pieces))
        return encode(self, pieces, names)

    monkeypatch.setattr(PieceEncoder, "pieces", recorded)
    limit = mini.spec.limits.max_segment_tokens
    for text, room in (("." * 50_000, FIRST_ROOM), ("a" * 50_000, FIRST_ROOM + LAST_ROOM)):
        sizes.clear()
        found = mini.model.tokenizer.tokenise_request(RankRequest("q", [text] * 200), mini.spec)
        assert sum(sizes) <= 200 * (room * limit + 1000)
        assert max(sizes) <= 1 << 18
        assert all(segment.cut for segment in found.documents)
