"""What an answer may be, token by token: document ids as they are tokenised in their place, each at most once.

Tokenizers split numbers: "1" and "10" may begin with the same token, and only what follows tells them apart. So ids are
leaves and inner nodes of a trie, and an id is complete when the separator or the end follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Literal

from blockrank.layout import PromptTokenizer
from blockrank.spec import Template
from blockrank.types import InputError

Form = Literal["first", "list", "full"]
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The parts of an answer as tokens.

    first: each id right after the opening; later: each id after a separator, with what of the separator itself is
    tokenised in another way for some ids.
    """

    first: tuple[Tokens, ...]
    later: tuple[Tokens, ...]
    separator: Tokens
    end: Tokens


def answer_tokens(tokenizer: PromptTokenizer, template: Template, count: int) -> AnswerTokens:
    """Tokens of the ids of `count` candidates under a template.

    Raises `InputError` where the template asks for no ids, or the tokenizer merges them with what stands around them or
    cannot tell them apart: digits that are not in its vocabulary are one unknown token.
    """
    if not (template.answer and template.answer_separator and template.answer_end and template.numbers_documents):
        raise InputError("decoding needs a template that numbers documents, and an answer with separator and end.")
    opening, separator, end = template.answer, template.answer_separator, template.answer_end
    names = [template.id(index) for index in range(count)]
    alone = [_parts(tokenizer, [opening, name, end]) for name in names]
    pairs = [_parts(tokenizer, [opening, name, separator, name, end]) for name in names]
    opened, last = tuple(tokenizer.encode(opening).tolist()), alone[0][2]
    for name, single, pair in zip(names, alone, pairs, strict=True):
        as_first = [opened, single[1], last]
        if not all([*as_first, *pair]) or single != as_first or [*pair[:2], pair[4]] != as_first:
            raise InputError(f"this tokenizer merges the document id {name!r} with what stands around it in an answer.")
    columns = zip(*(pair[2] for pair in pairs), strict=False)
    shared = tuple(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
    if not shared:
        raise InputError("the separator of the template's answer begins differently before each id.")
    later = tuple(pair[2][len(shared) :] + pair[3] for pair in pairs)
    first = tuple(single[1] for single in alone)
    for ids in (first, later):
        _check_distinct(names, ids)
    return AnswerTokens(first, later, shared, last)


def _check_distinct(names: Sequence[str], tokens: Sequence[Tokens]) -> None:
    """Raise `InputError` where two ids are the same tokens."""
    found: dict[Tokens, str] = {}
    for name, own in zip(names, tokens, strict=True):
        if (other := found.setdefault(own, name)) != name:
            raise InputError(f"this tokenizer makes the same tokens of the document ids {other!r} and {name!r}.")


def _parts(tokenizer: PromptTokenizer, parts: Sequence[str]) -> list[Tokens]:
    return [tuple(ids.tolist()) for ids in tokenizer.encode_parts(parts)]


@dataclass(slots=True, eq=False)
class Node:
    """A place in a trie. index: the candidate whose id ends here, if any; below: candidates whose ids go through."""

    index: int | None = None
    below: list[int] = field(default_factory=list)
    children: dict[int, Node] = field(default_factory=dict)


def trie(sequences: Sequence[Tokens]) -> Node:
    """The root of a trie of distinct token sequences, each the id of the candidate of its index."""
    root = Node()
    for index, tokens in enumerate(sequences):
        node = root
        node.below.append(index)
        for token in tokens:
            node = node.children.setdefault(token, Node())
            node.below.append(index)
        assert node.index is None, "ids differ"
        node.index = index
    return root


@dataclass(frozen=True, slots=True)
class AnswerState:
    """How far an answer is: the ids it holds, where in the trie its next one is, tokens that the model has not read
    yet, and whether it is complete."""

    ids: tuple[int, ...]
    node: Node
    unread: Tokens = ()
    done: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """One way on: the tokens that take it (their probabilities add up), and the state there, before the tokens that
    follow without a choice."""

    tokens: Tokens
    state: AnswerState
    closes: bool = False


class Grammar:
    """The answers to a request of `count` candidates.

    "first": one id; "list": any number, each at most once; "full": all of them, or `top`, each once. Raises
    `InputError` where nothing could tell how long a list is.
    """

    def __init__(self, tokens: AnswerTokens, count: int, form: Form, top: int | None = None) -> None:
        if form == "list" and tokens.separator[0] == tokens.end[0]:
            raise InputError("separator and end of the template's answer cannot be told apart by their first token.")
        self.count, self.form, self._tokens = count, form, tokens
        self._most = 1 if form == "first" else min(top or count, count)
        self._later = trie(tokens.later[:count])
        self.start = AnswerState((), trie(tokens.first[:count]))

    @property
    def longest_step(self) -> int:
        """Most tokens between two choices. Where a list cannot end, what is left of an id may leave no choice, nor the
        beginning of the next."""
        return self._further + (self._longest_id if self.form == "full" else 0)

    @property
    def longest(self) -> int:
        """Most tokens of an answer that the model reads."""
        return self._longest_id + (self._most - 1) * self._further

    @property
    def _further(self) -> int:
        """Most tokens of an id with the separator before it."""
        return len(self._tokens.separator) + self._longest_id

    @property
    def _longest_id(self) -> int:
        return max(map(len, (*self._tokens.first[: self.count], *self._tokens.later[: self.count])))

    def options(self, state: AnswerState) -> list[Option]:
        """All ways on from a state that is not complete; at least one."""
        node, end, separator = state.node, self._tokens.end, self._tokens.separator
        options = [
            Option((token,), AnswerState(state.ids, child, (token,)))
            for token, child in node.children.items()
            if any(index not in state.ids for index in child.below)
        ]
        if node.index is None or node.index in state.ids:
            return options
        ids = (*state.ids, node.index)
        done = AnswerState(ids, node, done=True)
        if len(ids) < self._most:
            options.append(Option((separator[0],), AnswerState(ids, self._later, separator)))
            return [*options, Option((end[0],), done, closes=True)] if self.form == "list" else options
        goes_on = separator[: self.form != "list" and len(ids) < self.count]  # if the model were let
        return [*options, Option(tuple(dict.fromkeys([end[0], *goes_on])), done, closes=True)]

    def settle(self, state: AnswerState) -> AnswerState:
        """Go on from a state for as long as there is one way: nothing has to be asked for that."""
        while not state.done and len(options := self.options(state)) == 1:
            state = replace(options[0].state, unread=state.unread + options[0].state.unread)
        return state
