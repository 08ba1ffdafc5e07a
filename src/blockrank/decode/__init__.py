"""Generation: document ids after the answer opening, or free text, under the block mask or the causal one."""

from __future__ import annotations

from blockrank.decode.answers import Form
from blockrank.decode.decoding import DEFAULT_BEAMS, Decoded, check_search, decode, decode_layout
from blockrank.decode.generation import Generated, generate
from blockrank.decode.sampling import Sampling
from blockrank.decode.steps import check_spec

__all__ = [
    "DEFAULT_BEAMS",
    "Decoded",
    "Form",
    "Generated",
    "Sampling",
    "check_search",
    "check_spec",
    "decode",
    "decode_layout",
    "generate",
]
