"""Measures of many rankings of the same candidates at once, in numpy.

The values are those of ir-measures for the same order; equal scores keep the order of the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MEASURES = ("nDCG@10", "RR@10", "P@1")
_DEPTH = 10

Floats = NDArray[np.floating]


def measure(scores_XC: Floats, relevance_C: NDArray[np.int64], ideal: Sequence[int]) -> NDArray[np.float64]:
    """(M, X...) values of `MEASURES` for every ranking of the C candidates; NaN where a ranking's scores are NaN.

    scores_XC: any leading axes. relevance_C: graded, not negative. judged: all relevance above zero of the query, with
    that of documents that are no candidates, descending: the ideal ranking of nDCG.
    """
    order_XD = np.argsort(-scores_XC, axis=-1, kind="stable")[..., :_DEPTH]
    gains_XD = relevance_C[order_XD]
    discount_D = 1 / np.log2(np.arange(2, _DEPTH + 2))
    best = np.asarray(ideal[:_DEPTH], dtype=np.float64)
    highest = float(best @ discount_D[: len(best)])
    ndcg_X = gains_XD @ discount_D[: gains_XD.shape[-1]] / highest if highest else np.zeros(gains_XD.shape[:-1])
    hits_XD = gains_XD > 0
    first_X = hits_XD.argmax(-1)
    reciprocal_X = np.where(hits_XD.any(-1), 1 / (first_X + 1), 0.0)
    values_MX = np.stack([ndcg_X, reciprocal_X, hits_XD[..., 0].astype(np.float64)])
    values_MX[:, np.isnan(scores_XC).any(-1)] = np.nan
    return values_MX
