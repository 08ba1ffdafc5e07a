"""The spans of a document that received its attention: Cohere's `relevant_spans`, from evidence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from blockrank.report.evidence import evidence_words
from blockrank.serve.fields import Fields
from blockrank.serve.refusals import invalid
from blockrank.types import Evidence, RankedDocument

THRESHOLD = 0.1  # Cohere's defaults
_ROUNDING = 1 - 1e-9  # of the mean of equal shares
_KNOWN = frozenset({"mode", "threshold", "max_spans"})


@dataclass(frozen=True, slots=True)
class SpanOptions:
    """threshold: least score of a span, in [0, 1]. max_spans: most spans of a document; None gives all."""

    threshold: float = THRESHOLD
    max_spans: int | None = None


def read_span_options(fields: Fields) -> SpanOptions | None:
    """What the field `relevant_spans` asks for; None where it is left out or its mode is `disabled`."""
    value = fields.value("relevant_spans")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise invalid("relevant_spans must be an object with 'mode'.", "relevant_spans")
    inner = Fields(value, _KNOWN, within="relevant_spans.")
    mode = inner.text("mode")
    if mode not in ("enabled", "disabled"):
        raise invalid("relevant_spans.mode must be 'enabled' or 'disabled'.", "relevant_spans.mode")
    threshold = inner.number("threshold", 0.0, 1.0)
    options = SpanOptions(THRESHOLD if threshold is None else threshold, inner.integer("max_spans", 1))
    return options if mode == "enabled" else None


def relevant_spans(entry: RankedDocument, options: SpanOptions) -> list[dict[str, Any]]:
    """Spans `{start, end, score}` of a document's text, best first, in characters (code points).

    A word stands out that received at least the mean share of the text's words. Adjacent words that stand out form one
    span; its score is its part of the document's attention. The title has no spans: a client would take their positions
    for positions in the text.
    """
    items = [item for item in evidence_words(entry) if item.field == "text"]
    items = [item for item in items if any(map(str.isalnum, entry.text[item.start : item.end]))]
    least = sum(item.share for item in items) / max(len(items), 1)
    spans: list[Evidence] = []
    is_open = False
    for item in items:
        stands_out = item.share >= least * _ROUNDING > 0
        if stands_out and is_open:
            spans[-1] = _joined(spans[-1], item)
        elif stands_out:
            spans.append(item)
        is_open = stands_out
    best = sorted((span for span in spans if span.share >= options.threshold), key=lambda span: -span.share)
    return [{"start": span.start, "end": span.end, "score": min(span.share, 1.0)} for span in best[: options.max_spans]]


def _joined(first: Evidence, second: Evidence) -> Evidence:
    return replace(first, end=max(first.end, second.end), share=first.share + second.share)
