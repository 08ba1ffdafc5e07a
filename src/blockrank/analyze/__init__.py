"""What a model's attention shows: where it goes, which of it ranks, and what to read of a checkpoint."""

from __future__ import annotations

from blockrank.analyze.analysis import analyze
from blockrank.analyze.loading import Analysed, load_analysed
from blockrank.analyze.report import write_analysis
from blockrank.analyze.result import Analysis
from blockrank.analyze.settings import AnalysisSettings

__all__ = ["Analysed", "Analysis", "AnalysisSettings", "analyze", "load_analysed", "write_analysis"]
