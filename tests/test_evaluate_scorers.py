"""An evaluation of scorers and strategies that is killed goes on, and ends with the bytes of one that was not."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE_S
from everyscorer import ranker_of
from test_evaluation import files, plan, write

from blockrank import RequestRanker
from blockrank.data import open_collection
from blockrank.evaluate import Reranker, evaluate
from blockrank.evaluate.journal import Journal, Outcome
from blockrank.evaluate.work import SHARD_QUERIES
from blockrank.strategies import STRATEGIES

QUERIES = SHARD_QUERIES + 4  # some of which are not ranked
DEPTH = 5


def setwise_and_heap() -> RequestRanker:
    return STRATEGIES.make("heap:size=3,top=2", ranker_of("setwise"))


def groupwise_and_partition() -> RequestRanker:
    sampled = ranker_of("groupwise:temperature=1.5,top_p=0.9,max_new_tokens=2,seed=5")
    return STRATEGIES.make("partition:size=3,seed=3", sampled)


def icr() -> RequestRanker:
    return ranker_of("icr")


class Mortal(Journal):
    """Ends the process when the second shard is ranked, with a part of its record on disk."""

    def append_shard(self, outcomes: Sequence[Outcome]) -> None:
        if self.shards:
            with self.path.open("ab") as stream:
                stream.write(b'{"shard": 1, "outco')
            os.kill(os.getpid(), signal.SIGKILL)
        super().append_shard(outcomes)


def run(folder: Path, place: Path, load: Callable[[], RequestRanker]) -> None:
    evaluate([open_collection(folder)], plan(DEPTH, rankers=[Reranker("it", load)]), place)


def killed(folder: Path, place: Path, load: Callable[[], RequestRanker]) -> None:
    """In a process of its own."""
    from blockrank.evaluate import work

    work.Journal = Mortal  # type: ignore[attr-defined, misc]
    run(folder, place, load)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("collections") / "small", QUERIES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it forks, which CUDA does not allow")
@pytest.mark.parametrize("load", [setwise_and_heap, groupwise_and_partition, icr])
def test_it_ends_with_the_same_bytes(folder: Path, tmp_path: Path, load: Callable[[], RequestRanker]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the child starts none
        process = multiprocessing.get_context("fork").Process(target=partial(killed, folder, broken, load))
        process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    assert (broken / "small" / "it.journal.jsonl").read_bytes().count(b"\n") == 1
    assert not (broken / "small" / "runs" / "it.trec").exists()
    for place in (broken, whole):
        run(folder, place, load)
    assert files(broken) == files(whole)
    assert files(whole)["small/runs/it.trec"] != files(whole)["small/runs/given.trec"]
