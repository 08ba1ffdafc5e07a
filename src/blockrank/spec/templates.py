"""The prompt of a checkpoint as data, and the prompts that are built in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from blockrank.configfile import check_fields
from blockrank.errors import InputError, listed

_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
# Fields allowed in each kind of segment.
_FIELDS = {"instruction": {"query", "count"}, "document": {"query", "text", "id"}, "query": {"query", "count"}}
# What an id in brackets looks like, by how documents are called.
_BRACKETED = {"numbers": re.compile(r"\[(\d+)\]"), "letters": re.compile(r"\[([A-Z])\]")}


@dataclass(frozen=True)
class Template:
    """The prompt as data: for each kind of segment a tuple of *pieces*, each tokenised on its own.

    A piece is text with the fields `{query}`, `{text}` (the document, title included) and `{id}` (the candidate's
    number, counted from `id_base`), and outside documents `{count}`, how many documents the prompt holds. Only the
    caller's own text, query or document, is *body*; the rest is *frame* and is never cut.
    `answer` is a piece appended to the query segment; training continues it with the ids of the relevant documents,
    joined by `answer_separator` and closed by `answer_end`.
    `ids`: whether `{id}` is a number or a capital letter; letters are one token in most vocabularies, and there are 26.
    `parentheses`: whether what looks like an id in the caller's own text, as the number in "[3]", stands in parentheses
    there: "(3)". So it is in the prompts that ask for ids in brackets; every character keeps its place.
    `chat`: whether the prompt is the user's turn of a chat. What the tokenizer's chat template writes before that turn
    then comes before the instruction, with `system` as the system's message, and what it writes up to the assistant's
    answer comes between query and `answer`. A tokenizer without a chat template writes its first token alone.
    Where neither `query` nor `answer` holds anything, each document ends a prompt of its own (`ends_in_documents`), and
    what closes the chat is written behind each of them.

    Raises `InputError` where a part has the wrong type or names a field that it cannot have, `id_base` is negative, or
    no part has `{text}` or none has `{query}`: the model would rank without having read it.
    """

    instruction: tuple[str, ...]
    document: tuple[str, ...]
    query: tuple[str, ...]
    answer: str = ""
    answer_separator: str = ", "
    answer_end: str = "]"
    id_base: int = 0
    ids: Literal["numbers", "letters"] = "numbers"
    parentheses: bool = False
    chat: bool = False
    system: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        named = {kind: set(_FIELD.findall(" ".join(getattr(self, kind)))) for kind in _FIELDS}
        for kind, allowed in _FIELDS.items():
            if other := sorted(named[kind] - allowed):
                words = listed([f"{{{name}}}" for name in sorted(allowed)])
                raise InputError(f"Template.{kind} names {{{other[0]}}}; what it can hold is {words}.")
        if "text" not in named["document"]:
            raise InputError("Template.document does not hold {text}, the document (its title included).")
        if not any("query" in names for names in named.values()):
            raise InputError("Template.query does not hold {query}, nor does any other part.")
        if self.id_base < 0:
            raise InputError(f"Template.id_base must not be negative; it is {self.id_base}.")
        if self.ids == "letters" and self.id_base:
            raise InputError(f"Template.id_base is for numbers; letters begin with A, not {self.id_base}.")
        if self.system and not self.chat:
            raise InputError("Template.system is a message of a chat, and Template.chat is false.")

    def id(self, place: int) -> str:
        """What `{id}` is for the document at a place of the prompt, from 0. Raises `InputError` beyond the letters."""
        if self.ids == "numbers":
            return str(self.id_base + place)
        if place >= len(ascii_uppercase):
            raise InputError(
                f"the template calls documents by letters, of which there are {len(ascii_uppercase)}: rank fewer at "
                "once, with a strategy such as 'sliding'."
            )
        return ascii_uppercase[place]

    def shown(self, text: str) -> str:
        """The caller's text as it stands in the prompt; see `parentheses`."""
        return _BRACKETED[self.ids].sub(r"(\1)", text) if self.parentheses else text

    @property
    def reads_query_first(self) -> bool:
        """Whether the instruction segment holds the query, so that every document depends on it."""
        return any("{query}" in piece for piece in self.instruction)

    @property
    def ends_in_documents(self) -> bool:
        """Whether nothing follows a document, so that each, behind the instruction, is a prompt of its own."""
        return not self.query and not self.answer

    @property
    def counts_documents(self) -> bool:
        """Whether the instruction segment holds how many documents there are, so that each depends on that."""
        return any("{count}" in piece for piece in self.instruction)

    @property
    def numbers_documents(self) -> bool:
        """Whether a document's tokens hold its position in the prompt."""
        return any("{id}" in piece for piece in self.document)


_MISTRAL_INSTRUCTION = (
    "You will be given a query and a list of documents. Each document will be formatted as "
    "ID: <id> | CONTENT: <content> | END ID: <id>. You need to read carefully and understand all of them and your "
    "goal is to find all document(s) from the list that can help answer the query."
)
_QUESTION = "Which document is most relevant to answer the query? Print out the ID of the document."
_ANSWER_LEAD = "The following document(s) can help answer the query:"
_QWEN_INSTRUCTION = (
    "You will be given a query and a list of documents. Each document will be formatted as "
    "<Document>: ID: <id> | CONTENT: <content> | END ID: <id>. You need to read and understand carefully the content "
    "of each document and your goal is to give the IDs of the document from the list that can help answer the query."
)
_QWEN_SYSTEM = "Judge whether the Document meets the requirements based on the Query and the Instruct provided."
# What is searched for, as Qwen3-Reranker is told it where nobody says anything else.
SEARCH_TASK = "Given a web search query, retrieve relevant passages that answer the query"


def _listwise(ids: Literal["numbers", "letters"], kind: str, example: str) -> Template:
    """The prompt of RankZephyr's family, in the wording of FIRST's released code."""
    return Template(
        instruction=(
            f"I will provide you with {{count}} passages, each indicated by a {kind} identifier []. Rank the passages "
            "based on their relevance to the search query: {query}.\n\n",
        ),
        document=("[{id}] {text}\n",),
        query=(
            "Search Query: {query}.\nRank the {count} passages above based on their relevance to the search query. All "
            "the passages should be included and listed using identifiers, in descending order of relevance. The "
            f"output format should be [] > [], e.g., {example}, Only respond with the ranking results, do not say any "
            "word or explain.",
        ),
        answer="[",
        answer_separator="] > [",
        id_base=1 if ids == "numbers" else 0,
        ids=ids,
        parentheses=True,
        chat=True,
        system="You are RankLLM, an intelligent assistant that can rank passages based on their relevancy to the query",
    )


TEMPLATES: dict[str, Template] = {
    # The prompt of the released checkpoint, in the chat markup of Mistral-7B-Instruct-v0.3.
    "blockrank-mistral": Template(
        instruction=(f"<s>[INST] {_MISTRAL_INSTRUCTION}\nQuery: {{query}}\n\nDocuments:",),
        document=("\nID: {id} | CONTENT: {text} | END ID: {id}",),
        query=(
            f"\n\n====== Now let's start! ======\n{_QUESTION}\nQuery: {{query}}\n{_ANSWER_LEAD}[/INST] Final Answer: ",
        ),
        answer="[",
        answer_end="]</s>",
    ),
    # The same words without chat markup, for models that have none.
    "blockrank": Template(
        instruction=(f"{_MISTRAL_INSTRUCTION}\nQuery: {{query}}\n\nDocuments:",),
        document=("\nID: {id} | CONTENT: {text} | END ID: {id}",),
        query=(f"\n\n====== Now let's start! ======\n{_QUESTION}\nQuery: {{query}}\n{_ANSWER_LEAD} Final Answer: ",),
        answer="[",
    ),
    # Upstream's later variant for Qwen3-Reranker bases.
    "blockrank-qwen3": Template(
        instruction=(
            f"<|im_start|>system\n{_QWEN_SYSTEM}<|im_end|>\n<|im_start|>user\n"
            f"<Instruct>: {_QWEN_INSTRUCTION}\n<Query>: {{query}}\n",
        ),
        document=("\n<Document>: ID: {id} | CONTENT: {text} | END ID: {id}",),
        query=(
            "\n<|im_end|>\n<|im_start|>assistant\n<think>I need to give the IDs of the most relevant documents in the "
            "list for the query: {query} formatted as list [...].</think>\n<Answer>: ",
        ),
        answer="[",
        answer_end="]<|im_end|>",
    ),
    # The order of all passages, or its first id alone.
    "listwise": _listwise("numbers", "numerical", "[2] > [1]"),
    "listwise-letters": _listwise("letters", "alphabetical", "[B] > [A]"),
    # Whether a document fits, yes or no: the prompt that Qwen3-Reranker was trained with, in the markup of its chats.
    "pointwise": Template(
        instruction=(f"<Instruct>: {SEARCH_TASK}\n<Query>: {{query}}\n",),
        document=("<Document>: {text}",),
        query=(),
        chat=True,
        system=f'{_QWEN_SYSTEM} Note that the answer can only be "yes" or "no".',
    ),
    # The best of some passages, by its label.
    "setwise": Template(
        instruction=("Here is a search query, and passages that may answer it.\n\nQuery: {query}\n",),
        document=('Passage {id}: "{text}"\n',),
        query=(
            'Which of the {count} passages above answers the query "{query}" best? Say the label of that passage, and '
            "nothing else.",
        ),
        answer="Passage:",
        answer_end="",
        ids="letters",
        chat=True,
    ),
    # Documents depend on neither the query nor their place: exact order invariance, reusable states.
    "query-free": Template(
        instruction=("Judge which of the following documents answers the question that comes last.\n",),
        document=("\nDocument: {text}",),
        query=("\n\nQuestion: {query}\nThe document that answers it:",),
    ),
    # The same for BERT vocabularies: every text is framed as the encoder was pre-trained to see it.
    "query-free-bert": Template(instruction=(), document=("[CLS]{text}[SEP]",), query=("[CLS]{query}[SEP]",)),
    # BERT with the query in the first segment, as in the paper.
    "query-first-bert": Template(
        instruction=("[CLS]{query}[SEP]",), document=("{text}[SEP]",), query=("[CLS]{query}[SEP]",)
    ),
}
