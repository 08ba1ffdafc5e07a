"""How good rankings are: measures, paired tests, and evaluations of rerankers on judged collections.

Importing this package brings neither torch nor matplotlib.
"""

from __future__ import annotations

from blockrank.evaluate.compare import Comparison, compare
from blockrank.evaluate.evaluation import evaluate
from blockrank.evaluate.first_stage import FirstStage
from blockrank.evaluate.measures import DEFAULT_MEASURES, aggregate, ceiling, per_query
from blockrank.evaluate.plan import Plan, Reranker
from blockrank.evaluate.results import CollectionResult, EvaluationResult, SystemResult
from blockrank.evaluate.tables import text_table

__all__ = [
    "DEFAULT_MEASURES",
    "CollectionResult",
    "Comparison",
    "EvaluationResult",
    "FirstStage",
    "Plan",
    "Reranker",
    "SystemResult",
    "aggregate",
    "ceiling",
    "compare",
    "evaluate",
    "per_query",
    "text_table",
]
