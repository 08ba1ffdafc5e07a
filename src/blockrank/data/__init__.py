"""Files in and out: JSON lines, plain text, TREC runs and judgements, judged collections."""

from blockrank.data.array import json_array
from blockrank.data.collection import (
    Collection,
    Corpus,
    CorpusFile,
    open_collection,
    open_corpus,
    read_queries,
    write_collection,
)
from blockrank.data.files import Source, atomic_file, json_objects, named, packed_file, source_name, text_lines
from blockrank.data.jsonl import (
    as_request,
    json_line,
    positives_of,
    read_documents,
    read_requests,
    read_texts,
    request_line,
)
from blockrank.data.problems import Kind, Problem, Report, validate, validate_run
from blockrank.data.records import RecordFile
from blockrank.data.training import TrainingRequest, read_training_requests, training_line, training_request
from blockrank.data.trec import (
    RUN_TAG,
    Qrels,
    Run,
    evaluation_order,
    read_qrels,
    read_run,
    run_lines,
    strictly_decreasing,
    trec_lines,
    write_qrels,
    write_run,
)

__all__ = [
    "RUN_TAG",
    "Collection",
    "Corpus",
    "CorpusFile",
    "Kind",
    "Problem",
    "Qrels",
    "RecordFile",
    "Report",
    "Run",
    "Source",
    "TrainingRequest",
    "as_request",
    "atomic_file",
    "evaluation_order",
    "json_array",
    "json_line",
    "json_objects",
    "named",
    "open_collection",
    "open_corpus",
    "packed_file",
    "positives_of",
    "read_documents",
    "read_qrels",
    "read_queries",
    "read_requests",
    "read_run",
    "read_texts",
    "read_training_requests",
    "request_line",
    "run_lines",
    "source_name",
    "strictly_decreasing",
    "text_lines",
    "training_line",
    "training_request",
    "trec_lines",
    "validate",
    "validate_run",
    "write_collection",
    "write_qrels",
    "write_run",
]
