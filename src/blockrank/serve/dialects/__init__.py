"""The reranking APIs that clients use: how a body is read, and the form of answers and refusals.

Pure functions of JSON: no server here. Sources: the public API pages of Jina, Cohere, Voyage, vLLM, llama.cpp, infinity
and TEI (text-embeddings-inference), and their clients. A key without a value is left out, never null; `index` is the
caller's.
"""

from blockrank.serve.dialects.choice import (
    COHERE,
    JINA,
    SCORE,
    TEI,
    VOYAGE,
    dialect_of,
    dialect_of_path,
    likely_dialect,
)
from blockrank.serve.dialects.dialect import Dialect
from blockrank.serve.dialects.parts import warnings_of

__all__ = [
    "COHERE",
    "JINA",
    "SCORE",
    "TEI",
    "VOYAGE",
    "Dialect",
    "dialect_of",
    "dialect_of_path",
    "likely_dialect",
    "warnings_of",
]
