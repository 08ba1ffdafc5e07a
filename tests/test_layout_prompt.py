"""From a request to the text of its segments."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import byte_tokenizer
from test_layout import BYTES, spec, text, tokenise

from blockrank import InputError, RankRequest, RankSpec, Template
from blockrank.layout import pack
from blockrank.layout.prompt import segments
from blockrank.spec import TEMPLATES


def test_braces_are_plain_text() -> None:
    found = tokenise("{text}{0}", ["{id} {query} {", "}{text}"], spec())
    assert [text(segment) for segment in found.segments] == [
        "Judge.<|im_end|>",
        "\nD0: {id} {query} {<|im_end|>",
        "\nD1: }{text}<|im_end|>",
        "\nQ: {text}{0}</think>",
    ]


def test_prompt_of_the_released_checkpoint() -> None:
    request = RankRequest(" who? ", [{"title": "T", "text": "one "}, "two"])
    texts = segments(TEMPLATES["blockrank-mistral"], request)
    assert [[piece.text for piece in item.pieces] for item in texts] == [
        [
            "<s>[INST] You will be given a query and a list of documents. Each document will be formatted as ID: <id> "
            "| CONTENT: <content> | END ID: <id>. You need to read carefully and understand all of them and your goal "
            "is to find all document(s) from the list that can help answer the query.\nQuery: who?\n\nDocuments:"
        ],
        ["\nID: 0 | CONTENT: T one | END ID: 0"],
        ["\nID: 1 | CONTENT: two | END ID: 1"],
        [
            "\n\n====== Now let's start! ======\nWhich document is most relevant to answer the query? Print out the ID "
            "of the document.\nQuery: who?\nThe following document(s) can help answer the query:[/INST] Final Answer: ",
            "[",
        ],
    ]


def test_an_answer_follows_the_signal_tokens() -> None:
    of = spec(template="blockrank", signal_tokens=2)
    texts = segments(of.prompt, RankRequest("q", ["a", "b", "c"]), answer=(2, 0))
    query = BYTES.tokenise(texts, of).segments[-1]
    assert text(query).endswith("Final Answer: [2, 0]")
    assert text(replace(query, ids=query.ids[: query.signal_end])).endswith("Final Answer: [")
    layout = pack([BYTES.tokenise(texts, of)], of)
    assert byte_tokenizer().decode(layout.ids_T[layout.signal_G]) == " ["


def test_a_prompt_says_how_many_documents_it_holds() -> None:
    """The number is the template's own, and is that of the documents that can be read."""
    template = Template(("{count} for {query}:",), ("{text}",), ("of {count}",))
    first, *_, last = segments(template, RankRequest("q{count}", ["{count}", " ", "b"]))
    assert [item.pieces[0].text for item in (first, last)] == ["2 for q{count}:", "of 2"]
    assert first.pieces[0].bodies == ((6, 14),)
    with pytest.raises(InputError, match=r"Template.document names \{count\}"):
        Template((), ("{text}{count}",), ("{query}",))


def test_documents_behind_their_number_do_not_stand_alone() -> None:
    def stands(instruction: str) -> bool:
        template = Template((instruction,), ("{text}",), ("{query} of {count}",))
        return RankSpec.of(layer=0, template=template, query_reads="own").documents_stand_alone

    assert stands("Judge.")
    assert not stands("Judge {count}.")


@pytest.mark.parametrize(
    ("ids", "shown"), [("numbers", "a [B] (3) [x] (12)[][(7)]"), ("letters", "a (B) [3] [x] [12][][[7]]")]
)
def test_what_looks_like_an_id_may_stand_in_parentheses(ids: str, shown: str) -> None:
    given = "a [B] [3] [x] [12][][[7]]"
    template = Template(("{query}|",), ("[{id}] {text}",), (), ids=ids, parentheses=True)  # type: ignore[arg-type]
    texts = segments(template, RankRequest(given, [given]))
    name = template.id(0)
    assert [item.pieces[0].text for item in texts[:2]] == [f"{shown}|", f"[{name}] {shown}"]
    assert [len(shown), texts[1].pieces[0].bodies] == [len(given), ((4, 4 + len(given)),)], "each keeps its place"
    plain = segments(replace(template, parentheses=False), RankRequest(given, [given]))
    assert plain[1].pieces[0].text == f"[{name}] {given}"
