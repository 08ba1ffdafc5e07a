"""What is kept on disk: identities of rankers, settings, digests, and folders that earlier versions saved."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockrank import FakeRanker, InputError, Ranker, Ranking, RankRequest
from blockrank.cli.resume import _identity
from blockrank.data import open_collection
from blockrank.evaluate.evaluation import evaluate
from blockrank.evaluate.first_stage import FirstStage
from blockrank.evaluate.plan import Plan, Reranker
from blockrank.evaluate.settings import RankingSettings
from blockrank.keep.files import new_folder
from blockrank.keep.folders import KeptFolder
from blockrank.keep.identity import digest, json_ready, ranker_identity
from blockrank.keep.lines import write_records
from blockrank.types import RequestRanker

SAVED = Path(__file__).parent / "kept"  # an evaluation of version 0.1.0 that was ended in its second shard


class Window(RequestRanker):
    """Ranks through another ranker under a setting of its own."""

    def __init__(self, ranker: RequestRanker, size: Any, fails_after: int | None = None) -> None:
        self.ranker, self.size, self.left = ranker, size, fails_after

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        for request in requests:
            if self.left is not None:
                if not self.left:
                    raise TimeoutError
                self.left -= 1
            yield self.ranker.rank_many([replace(request, top_k=None)])[0]

    def identity(self) -> dict[str, Any]:
        return {"ranker": "Window", "size": self.size, "of": self.ranker.identity()}


def plan(load: Callable[[], RequestRanker]) -> Plan:
    return Plan((Reranker("fake", load),), FirstStage("runs/given.trec"), (4,), ("nDCG@10",), latency_queries=0)


def test_wrappers_in_wrappers_are_told_apart() -> None:
    inner = Window(Window(FakeRanker(), 10), 5)
    assert ranker_identity(inner) == {
        "ranker": "Window",
        "size": 5,
        "of": {"ranker": "Window", "size": 10, "of": {"ranker": "FakeRanker"}},
    }
    assert ranker_identity(inner) != ranker_identity(Window(Window(FakeRanker(), 20), 5))


def test_an_evaluation_does_not_mix_windows(tmp_path: Path) -> None:
    collection, out = open_collection(SAVED / "small"), tmp_path / "out"
    with pytest.raises(TimeoutError):
        evaluate([collection], plan(lambda: Window(Window(FakeRanker(), 10), 4, 18)), out)
    with pytest.raises(InputError, match=r"other settings of fake: of\.size was 10, now 20\. Choose another --output"):
        evaluate([collection], plan(lambda: Window(Window(FakeRanker(), 20), 4)), out)
    evaluate([collection], plan(lambda: Window(Window(FakeRanker(), 10), 4)), out)
    assert (out / "results.json").exists()


def test_a_ranker_without_identity_cannot_be_made() -> None:
    class Nameless(RequestRanker):
        def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
            return iter(())

    with pytest.raises(TypeError, match=r"Nameless.* identity"):
        Nameless()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (
            deque([1]),
            r"Window\.identity\(\): size is of type deque, which JSON cannot hold: give its settings",
        ),
        (float("nan"), r"Window\.identity\(\): size is nan: numbers of JSON are finite\."),
        ({"a": [1, {2: 3}]}, r"Window\.identity\(\): size\.a\[1\] has the key 2: keys of JSON are strings\."),
    ],
)
def test_an_identity_that_json_cannot_hold_is_refused(size: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        ranker_identity(Window(FakeRanker(), size))


def test_what_holds_itself_or_is_no_mapping_is_refused(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InputError, match="nested too deeply, or holds itself"):
        json_ready(endless, "x")
    ranker = Window(FakeRanker(), 1)
    ranker.identity = lambda: ["Window"]  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(InputError, match=r"Window\.identity\(\) must give a dict"):
        ranker_identity(ranker)
    tmp_path.joinpath("out").mkdir()
    with pytest.raises(InputError, match=r"^mine: path is of type PosixPath, which JSON cannot hold"):
        RankingSettings(tmp_path / "out").claim("systems", "mine", {"path": Path("/x")})


def test_score_functions_are_told_apart() -> None:
    one, two = FakeRanker(lambda *_: 1.0), FakeRanker(str.__len__)  # type: ignore[arg-type]
    found = [ranker_identity(ranker) for ranker in (FakeRanker(), one, two)]
    assert found[0] == {"ranker": "FakeRanker"}, "as earlier versions saved it"
    assert len({digest(item) for item in found}) == 3


def test_the_identity_of_a_ranker_names_its_files(mini: Ranker, tmp_path: Path) -> None:
    found = ranker_identity(mini)
    assert {"model.safetensors", "blockrank.json"} <= set(found["files"])
    assert found["products"] is None
    assert ranker_identity(mini.with_spec(max_segment_tokens=64)) != found
    int8 = Ranker.from_pretrained(device="cpu", dtype="int8", probe=False)
    assert ranker_identity(int8)["products"] == "int8"
    # As earlier versions saved it: without files and products, which are added and then compared.
    settings, saved = RankingSettings(tmp_path), dict(found)
    del saved["files"], saved["products"]
    settings.claim("loaded", "mini", saved)
    settings.claim("loaded", "mini", found)
    with pytest.raises(InputError, match=r"files\.model\.safetensors was .*, now 'other'"):
        settings.claim("loaded", "mini", {**found, "files": {**found["files"], "model.safetensors": "other"}})


def test_an_evaluation_of_an_earlier_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, ranker = tmp_path / "out", FakeRanker()
    shutil.copytree(SAVED / "out", out)
    saved = json.loads((out / "settings.json").read_text())["evaluation"]["all systems"]
    monkeypatch.setattr("blockrank.evaluate.evaluation.__version__", saved["blockrank"])
    monkeypatch.setattr("blockrank.evaluate.evaluation.installed", saved.__getitem__)
    journal = (out / "small" / "fake.journal.jsonl").read_bytes()
    evaluate([open_collection(SAVED / "small")], plan(lambda: ranker), out)
    assert len(ranker.calls) == 4, "the second shard alone"
    assert (out / "small" / "fake.journal.jsonl").read_bytes().startswith(journal)


def test_digests_that_are_saved_stay_what_they_are() -> None:
    request = RankRequest("Öl \u2603", ["a", {"title": "é", "text": "b"}], "q", 3)
    assert _identity(request) == "69912452eda3f45205cccff3"
    queries = json.loads((SAVED / "out" / "settings.json").read_text())["collections"]["small"]["queries"]
    assert digest(list(open_collection(SAVED / "small").queries.items())) == queries["content"]


def test_folders_named_by_earlier_versions_are_removed(tmp_path: Path) -> None:
    former, other = tmp_path / f"thing-{'0' * 16}-{'1' * 32}", tmp_path / f"else-{'0' * 16}-{'1' * 32}"
    former.mkdir()
    other.mkdir()
    kept = KeptFolder(tmp_path, "thing", "owner", 1)
    kept.write(lambda folder: write_records(folder, "values", [1]))
    assert kept.is_whole()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((kept.path.name, other.name))


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    def failing(part: Path) -> None:
        (part / "a").write_text("1")
        raise TimeoutError

    with pytest.raises(TimeoutError), new_folder(tmp_path / "x") as part:
        failing(part)
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "x") as part:
        (part / "a").write_text("1")
    with pytest.raises(InputError, match="is there already"), new_folder(tmp_path / "x"):
        pass
