"""What a tokenizer's chat template writes around the user's turn."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from blockrank.spec import Template
from blockrank.types import InputError

_MARK = "(user's turn)"
# Some templates write the day into the prompt, where they know it: rankings would change overnight.
_FIXED = {"date_string": "01 Jan 2025", "enable_thinking": False}


def _closed(pieces: tuple[str, ...], after: str) -> tuple[str, ...]:
    *earlier, last = pieces or ("",)
    return (*earlier, last + after)


class ChatMarkup:
    """Templates with the markup of one tokenizer's chats written out.

    Models that think before they answer are asked not to, where their chat template can say so: what is read right
    after the prompt is then the answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: a Hugging Face tokenizer."""
        self._tokenizer = tokenizer
        self.written = lru_cache(maxsize=16)(self._written)

    def _written(self, template: Template) -> Template:
        """The template as it is tokenised: with chat markup in its first piece and in its last, or in each document's
        last where the prompt ends there, if it is a chat.

        Raises `InputError` where the tokenizer's chat template cannot be used.
        """
        if not template.chat:
            return template
        before, after = self._around(template.system)
        first, *others = template.instruction or ("",)
        opened = replace(template, instruction=(before + first, *others), chat=False, system="")
        if template.ends_in_documents:
            return replace(opened, document=_closed(template.document, after))
        return replace(opened, query=_closed(template.query, after))

    def _around(self, system: str) -> tuple[str, str]:
        """What comes before and after the user's turn."""
        if not self._tokenizer.chat_template:
            adds_first = self._tokenizer("")["input_ids"][:1] == [self._tokenizer.bos_token_id]
            return (self._tokenizer.bos_token if adds_first else "") + (f"{system}\n\n" if system else ""), ""
        turns = [{"role": "user", "content": _MARK}]
        whole = self._rendered([{"role": "system", "content": system}, *turns]) if system else self._rendered(turns)
        if whole is None or (system and system.strip() not in whole):  # a template without system messages
            whole = self._rendered([{"role": "user", "content": f"{system}\n\n{_MARK}" if system else _MARK}])
        if whole is None or whole.count(_MARK) != 1:
            raise InputError("the tokenizer's chat template does not write the user's turn once, as it is.")
        before, after = whole.split(_MARK)
        return before, after

    def _rendered(self, messages: list[dict[str, str]]) -> str | None:
        """A chat up to the assistant's answer, None where the template refuses it."""
        from jinja2.exceptions import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **_FIXED)
        except TemplateError:
            return None
        return str(text)
