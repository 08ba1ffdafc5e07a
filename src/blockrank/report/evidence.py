"""Evidence by words: what tokens are to a model, words are to its readers."""

from __future__ import annotations

from dataclasses import replace

from blockrank.text.words import end_of_marks, is_inside_word
from blockrank.types import Evidence, RankedDocument


def evidence_words(entry: RankedDocument) -> list[Evidence]:
    """Tokens of one word put together, their shares added up; of scripts without spaces the tokens as they are."""
    joined: list[Evidence] = []
    for item in entry.evidence:
        field = entry.document.title if item.field == "title" else entry.text
        text = field[item.start : item.end]
        # A tokenizer may leave out marks.
        item = replace(item, start=item.end - len(text.lstrip()), end=end_of_marks(field, item.end))
        last = joined[-1] if joined else None
        if last and last.field == item.field and item.start <= last.end and is_inside_word(field, item.start):
            joined[-1] = replace(last, end=max(last.end, item.end), share=last.share + item.share)
        elif item.start < item.end:
            joined.append(item)
    return joined
