"""Prompts that are a chat: what the tokenizer's own template writes around the user's turn is written, and no more."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from conftest import byte_tokenizer

from blockrank import InputError, RankRequest, RankSpec, Template
from blockrank.layout import PromptTokenizer
from blockrank.layout.chat import ChatMarkup

CHATML = (
    "{% for m in messages %}{{ '<|im_end|>' + m.role + ':' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|>assistant:' }}{% endif %}"
    "{% if not enable_thinking|default(true) %}{{ '(thought)' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
DROPS_SYSTEM = CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
TWICE = "{% for turn in (1, 2) %}{{ messages[-1].content }}{% endfor %}"
REFUSES = "{{ raise_exception('no') }}"
TEMPLATE = Template(("Rank. ",), ("[{id}] {text} ",), ("Query: {query}",), answer="[", chat=True, system="Be exact.")


def tokenizer(template: str | None) -> Any:
    found = copy.deepcopy(byte_tokenizer())
    found.chat_template = template
    return found


def prompt(template: Template, chat: str | None) -> str:
    own = PromptTokenizer(tokenizer(chat))
    request = RankRequest("q", ["one", "two"])
    made = own.tokenise_request(request, RankSpec.of(layer=0, template=template, pattern="causal"))
    return str(byte_tokenizer().decode([int(i) for segment in made.segments for i in segment.ids]))


def test_the_prompt_is_the_users_turn_and_the_answer_follows_the_assistants_opening() -> None:
    body = "Rank. [0] one [1] two Query: q"
    expected = f"<|im_end|>system:Be exact.<|im_end|>user:{body}<|im_end|>assistant:(thought)["
    assert prompt(TEMPLATE, CHATML) == expected
    messages = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": body}]
    library = tokenizer(CHATML).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert expected == library + "["


@pytest.mark.parametrize("chat", [NO_SYSTEM, DROPS_SYSTEM])
def test_where_a_template_takes_no_system_message_the_user_says_it(chat: str) -> None:
    assert prompt(TEMPLATE, chat).startswith("<|im_end|>user:Be exact.\n\nRank. [0] one")


def test_without_a_chat_template_the_text_stands_alone() -> None:
    assert prompt(TEMPLATE, None) == "Be exact.\n\nRank. [0] one [1] two Query: q["


def test_a_first_token_that_the_tokenizer_adds_is_written() -> None:
    class Adds:
        chat_template, bos_token, bos_token_id = None, "<s>", 7

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [7]}

    assert ChatMarkup(Adds()).written(TEMPLATE).instruction == ("<s>Be exact.\n\nRank. ",)


def test_where_the_prompt_ends_in_documents_each_is_closed() -> None:
    bare = Template((), ("{text}{query}",), (), chat=True)
    assert prompt(bare, CHATML) == "<|im_end|>user:oneq<|im_end|>assistant:(thought)twoq<|im_end|>assistant:(thought)"


@pytest.mark.parametrize("chat", [TWICE, "nothing", REFUSES])
def test_a_template_that_cannot_be_used_is_one_sentence(chat: str) -> None:
    with pytest.raises(InputError, match="chat template does not write the user's turn once"):
        prompt(TEMPLATE, chat)


def test_a_system_message_needs_a_chat() -> None:
    with pytest.raises(InputError, match=r"Template\.system is a message of a chat"):
        Template((), ("{text}{query}",), (), system="x")


def test_documents_are_called_by_letters() -> None:
    letters = Template(("{query}",), ("[{id}] {text}",), (), answer="!", ids="letters")
    assert prompt(letters, None) == "q[A] one[B] two!"
    assert [letters.id(0), letters.id(25)] == ["A", "Z"]
    with pytest.raises(InputError, match="of which there are 26: rank fewer at once"):
        letters.id(26)
    with pytest.raises(InputError, match="letters begin with A"):
        Template((), ("{text}{query}",), (), ids="letters", id_base=1)
