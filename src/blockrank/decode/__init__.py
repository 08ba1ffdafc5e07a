"""Decode inference: document ids generated after the answer opening, under the block mask or the causal one."""

from __future__ import annotations

from blockrank.decode.answers import Form
from blockrank.decode.decoding import DEFAULT_BEAMS, Decoded, check_search, check_spec, decode, decode_layout

__all__ = ["DEFAULT_BEAMS", "Decoded", "Form", "check_search", "check_spec", "decode", "decode_layout"]
