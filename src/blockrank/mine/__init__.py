"""Training requests from judged collections: negatives, removal of false negatives, teacher scores, statistics."""

from blockrank.mine.denoise import DropRule
from blockrank.mine.encoder import CachingEncoder, nearest
from blockrank.mine.judged import Judged, JudgedQuery
from blockrank.mine.negatives import KINDS, Negatives, RequestPlan, parse_negatives
from blockrank.mine.pool import Pool
from blockrank.mine.requests import RequestMaker
from blockrank.mine.rows import Titles
from blockrank.mine.sources import open_judged
from blockrank.mine.split import split_file
from blockrank.mine.statistics import RequestStatistics, Spread, StatisticsCollector
from blockrank.mine.teach import CrossEncoderTeacher, EncoderTeacher, RankerTeacher, Teacher, drop, teach
from blockrank.mine.unjudged import open_unjudged

__all__ = [
    "KINDS",
    "CachingEncoder",
    "CrossEncoderTeacher",
    "DropRule",
    "EncoderTeacher",
    "Judged",
    "JudgedQuery",
    "Negatives",
    "Pool",
    "RankerTeacher",
    "RequestMaker",
    "RequestPlan",
    "RequestStatistics",
    "Spread",
    "StatisticsCollector",
    "Teacher",
    "Titles",
    "drop",
    "nearest",
    "open_judged",
    "open_unjudged",
    "parse_negatives",
    "split_file",
    "teach",
]
