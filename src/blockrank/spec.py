"""How a checkpoint is to be read: `RankSpec`, saved as `blockrank.json` beside the weights.

Literals that belong to one checkpoint (its layer, its query offset, its prompt) live here and nowhere else.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from blockrank.configfile import build, check_fields, checked, read_json
from blockrank.errors import listed
from blockrank.types import InputError, ModelError

SPEC_FILE = "blockrank.json"
SPEC_VERSION = 1
EMBEDDED = "embedded"  # the name of the embedded model, wherever a folder or a hub name can be

Attend = Literal["causal", "bidirectional"]
_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
# What can be said in each kind of segment.
_FIELDS = {"instruction": {"query"}, "document": {"query", "text", "id"}, "query": {"query"}}


@dataclass(frozen=True)
class Template:
    """The prompt as data: for each kind of segment a tuple of *pieces*, each tokenised on its own.

    A piece is text with the fields `{query}`, `{text}` (the document, title included) and `{id}` (the candidate's
    number, counted from `id_base`). Only what a field brings in is *body*; the rest is *frame* and is never cut.
    `answer` is a piece appended to the query segment; training continues it with the ids of the relevant documents,
    joined by `answer_separator` and closed by `answer_end`.

    Raises `InputError` where a part is of another type, names a field that it cannot have, or `{text}` or `{query}` is
    nowhere: the model would rank without having read it.
    """

    instruction: tuple[str, ...]
    document: tuple[str, ...]
    query: tuple[str, ...]
    answer: str = ""
    answer_separator: str = ", "
    answer_end: str = "]"
    id_base: int = 0

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

    @property
    def reads_query_first(self) -> bool:
        """Whether the instruction segment holds the query, so that every document depends on it."""
        return any("{query}" in piece for piece in self.instruction)

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


@dataclass(frozen=True)
class RankSpec:
    """How to build the prompt of a checkpoint, where to read its attention and how to turn it into scores.

    layer: 0-based decoder layer whose attention is read; no layer above it is loaded.
    template: name of a built-in template, or a `Template`.
    signal_tokens: how many last tokens of the query segment are read (the paper: 2; the later code: 1), or "query"
        for every token of the query segment.
    heads: which heads are read; None means all.
    joined_heads: read the heads as one wide head: their logits are added before the softmax.
    cosine: "both" compares directions only: logits are `logit_scale` times the cosine of query and key, without the
        model's own `1/sqrt(head_dim)`. "keys" normalises keys alone and divides the query by the root of its width, so
        that a query token's length is its weight. "none" is the model's own product.
    logit_scale: factor on the logits.
    length_norm: exponent p in [0, 1]: a document's attention is divided by (its tokens)^p. 0 adds its tokens up (the
        paper), 1 averages them; in between keeps long documents from being favoured.
    signal_pooling: "arithmetic" averages the shares over heads and signal tokens (the paper); "geometric" averages
        their logarithms and normalises again, so that every signal token must find its evidence.
    softmax_over: "documents" (the paper) or "all": the denominator holds instruction and query keys too (later code).
    pattern: "block" (the paper): a document reads the instruction and itself. "causal": full attention, the baseline:
        every segment reads all of its request before it, and positions count on from segment to segment.
    document_attention, query_attention: "causal", or "bidirectional" for models that grew from an encoder.
    query_reads: "all" (the paper), or "own": below the scoring layer the query segment reads only itself and the
        instruction, so that a score depends on no other candidate.
    query_offset: position of the query segment's first token; None continues after the instruction, where documents
        start too. Under the causal pattern documents count on, and the query stands there or after the last of them.
    max_segment_tokens: limit of one document segment, frame included. Longer bodies are cut at the end, and reported.
    max_query_tokens: limit of the query's own tokens.
    long_queries: what happens to a query over that limit: "refuse" raises, "cut" drops its end, logs it and says so in
        the ranking. It is never cut silently.
    prune: (layer, share) pairs: from that layer on only the best share of the documents that a request began with goes
        on, by the read-out there. What leaves is ranked below what stays. Empty: every document reaches the end.
    prune_by: what that read-out reads: the states before the layer through the scoring layer's own norm and projections
        ("lens"), or the queries and keys of the "layer" itself.
    """

    layer: int
    template: str | Template = "blockrank"
    signal_tokens: int | Literal["query"] = 2
    heads: tuple[int, ...] | None = None
    joined_heads: bool = False
    cosine: Literal["none", "keys", "both"] = "none"
    logit_scale: float = 1.0
    length_norm: float = 0.0
    signal_pooling: Literal["arithmetic", "geometric"] = "arithmetic"
    softmax_over: Literal["documents", "all"] = "documents"
    pattern: Literal["block", "causal"] = "block"
    document_attention: Attend = "causal"
    query_attention: Attend = "causal"
    query_reads: Literal["all", "own"] = "all"
    query_offset: int | None = 16384
    max_segment_tokens: int = 384
    max_query_tokens: int = 512
    long_queries: Literal["refuse", "cut"] = "refuse"
    prune: tuple[tuple[int, float], ...] = ()
    prune_by: Literal["layer", "lens"] = "lens"
    notes: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_numbers()
        if isinstance(self.template, str) and self.template not in TEMPLATES:
            raise InputError(f"RankSpec.template {self.template!r} is unknown; built in are {sorted(TEMPLATES)}.")
        self._check_pattern()

    def _check_pattern(self) -> None:
        if self.pattern == "block":
            return
        for name, needed in (("document_attention", "causal"), ("query_attention", "causal"), ("query_reads", "all")):
            if (found := getattr(self, name)) != needed:
                raise InputError(f"RankSpec.pattern 'causal' needs {name} {needed!r}; it is {found!r}.")

    def _check_numbers(self) -> None:
        if self.layer < 0:
            raise InputError(f"RankSpec.layer counts from 0; {self.layer} is negative.")
        if self.signal_tokens != "query" and self.signal_tokens < 1:
            raise InputError(f"RankSpec.signal_tokens must be positive or 'query', not {self.signal_tokens!r}.")
        if self.logit_scale == 0:
            raise InputError("RankSpec.logit_scale is 0: every document would get the same score.")
        if not 0 <= self.length_norm <= 1:
            raise InputError(f"RankSpec.length_norm must lie in [0, 1], not {self.length_norm}.")
        if self.heads is not None and not self.heads:
            raise InputError("RankSpec.heads is empty; use null to read all heads.")
        if self.heads is not None and len(set(self.heads)) < len(self.heads):
            raise InputError(f"RankSpec.heads names a head twice: {list(self.heads)}.")
        if self.query_offset is not None and self.query_offset < 0:
            raise InputError(f"RankSpec.query_offset counts from 0; {self.query_offset} is negative.")
        for name in ("max_segment_tokens", "max_query_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"RankSpec.{name} must be positive, not {getattr(self, name)}.")
        self._check_prune()

    def _check_prune(self) -> None:
        layers, shares = [layer for layer, _ in self.prune], [share for _, share in self.prune]
        if layers != sorted(set(layers)) or not all(0 <= layer < self.layer for layer in layers):
            raise InputError(f"RankSpec.prune names layers {layers}; they must rise and stay below layer {self.layer}.")
        if shares != sorted(shares, reverse=True) or not all(0 < share <= 1 for share in shares):
            raise InputError(f"RankSpec.prune keeps shares {shares}; they must fall and lie in (0, 1].")

    @property
    def prompt(self) -> Template:
        """The template itself."""
        return TEMPLATES[self.template] if isinstance(self.template, str) else self.template

    @property
    def documents_stand_alone(self) -> bool:
        """Whether a document's keys depend on nothing but its own text and the instruction, and nothing below the
        scoring layer depends on them: then they may be computed once and read out for many queries."""
        prompt = self.prompt
        apart = self.pattern == "block" and self.query_reads == "own"
        return apart and not prompt.reads_query_first and not prompt.numbers_documents

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; the template stays a name where it is built in."""
        return {"version": SPEC_VERSION, **asdict(self), "prune": [list(pair) for pair in self.prune]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RankSpec:
        """Inverse of `to_dict`. Raises `InputError` on an unknown key, or a value of another type or out of range."""
        values = dict(values)
        version = checked(int, values.pop("version", SPEC_VERSION), "RankSpec.version")
        if version != SPEC_VERSION:
            raise InputError(f"RankSpec version {version!r} is not supported; this release reads {SPEC_VERSION}.")
        found: RankSpec = build(cls, values, "RankSpec")
        return found

    def save(self, folder: str | Path) -> Path:
        """Write `blockrank.json` into `folder` and return its path."""
        path = Path(folder) / SPEC_FILE
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> RankSpec:
        """Read `blockrank.json` from `folder`. Raises `ModelError` where it is missing or not valid."""
        path = Path(folder) / SPEC_FILE
        if not path.is_file():
            raise ModelError(
                f"{Path(folder)} has no {SPEC_FILE}, so nothing says which layer and tokens to read; "
                "pass spec=RankSpec(...)."
            )
        try:
            values = read_json(path)
        except InputError as error:
            raise ModelError(str(error)) from None
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise ModelError(f"{path} is not a valid RankSpec: {error}") from None


BUILT_IN_SPECS: dict[str, RankSpec] = {
    "quicktensor/blockrank-msmarco-mistral-7b": RankSpec(
        layer=20,
        template="blockrank-mistral",
        signal_tokens=2,
        notes="Trained on 10 % of MS MARCO with 30 candidates and segments of 160 tokens (arXiv 2510.05396).",
    ),
    "blockrank-qwen3-reranker-4b": RankSpec(
        layer=24,
        template="blockrank-qwen3",
        signal_tokens=1,
        softmax_over="all",
        notes="Upstream's later recipe on Qwen/Qwen3-Reranker-4B; no weights are published.",
    ),
}
