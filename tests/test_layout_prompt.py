"""From a request to the text of its segments."""

from __future__ import annotations

from dataclasses import replace

from conftest import byte_tokenizer
from test_layout import BYTES, spec, text, tokenise

from blockrank import RankRequest
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
