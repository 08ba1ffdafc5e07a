"""Ranking and serving on a local Ray of two workers: the output of one process, whatever dies on the way.

Ray brings half a gigabyte of packages: `make ray` installs it and runs this file. Elsewhere it is skipped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import httpx
from serving import BODY, wait_until
from test_cli_resume import write_requests

from blockrank import Document, InputError, ModelError, Ranker, RankRequest
from blockrank.data import write_collection
from blockrank.serve.settings import ServeSettings

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
ray = pytest.importorskip("ray", reason="make ray installs it")
from blockrank.integrations.ray_rank import ClusterError, RayRanker, ray_session  # noqa: E402
from blockrank.integrations.ray_serve import application, deployment  # noqa: E402

SOURCE = str(Path(__file__).parents[1] / "src")
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCE, "HF_HUB_OFFLINE": "1"}
pytestmark = pytest.mark.filterwarnings("default")  # Ray's own


def load() -> Ranker:
    return Ranker.from_pretrained(device="cpu")


def requests(count: int) -> list[RankRequest]:
    words = ("harbour", "engine", "willow", "copper", "lantern")
    return [RankRequest(f"{words[i % 5]} {i}", [f"{word} {i}" for word in words], f"q{i}") for i in range(count)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["PYTHONPATH"] = f"{SOURCE}:{Path(__file__).parent}"
    with ray_session():
        yield


@pytest.fixture
def workers(cluster: None) -> RayRanker:
    return RayRanker(load, workers=2, use_gpu=False)


def test_rankings_are_those_of_one_process(workers: RayRanker, mini: Ranker) -> None:
    stream = requests(200)
    assert list(workers.rank_iter(iter(stream))) == mini.rank_many(stream)
    groups = [stream[at : at + 7] for at in range(0, 70, 7)]
    assert list(workers.rank_groups([*groups, []])) == [*map(mini.rank_many, groups), []]
    assert next(workers.rank_groups(groups)) == mini.rank_many(groups[0]), "a stream that is not read to its end"
    assert list(workers.rank_groups(groups[1:3])) == list(map(mini.rank_many, groups[1:3]))
    documents = [document for request in stream[:5] for document in request.candidates]
    workers.remember(documents, 1 << 26)
    mini.remember(documents, 1 << 26)
    assert list(workers.rank_groups(groups)) == list(map(mini.rank_many, groups))
    workers.forget()
    mini.forget()


def test_a_killed_worker_costs_nothing(workers: RayRanker, mini: Ranker) -> None:
    stream = requests(240)
    groups = [stream[at : at + 8] for at in range(0, 240, 8)]
    found = []
    for place, rankings in enumerate(workers.rank_groups(groups)):
        found += rankings
        if place in (2, 12):
            victim = next(iter(workers._busy))
            ray.kill(victim)
    assert found == mini.rank_many(stream)
    assert [ranking.query_id for ranking in found] == [f"q{i}" for i in range(240)], "in order, none twice"


class Deadly:
    """A ranker that ends its process at one query."""

    def rank_many(self, group: Sequence[RankRequest]) -> Any:
        if any(request.query == "poison" for request in group):
            os._exit(1)
        return load().rank_many(group)

    def identity(self) -> dict[str, Any]:
        return {"ranker": "deadly", "of": load().identity()}

    @property
    def model(self) -> Any:
        return type("Model", (), {"name": ""})

    def forget(self) -> None:
        """Nothing is kept."""


def fails() -> Ranker:
    raise ModelError("there is no such model.")


def test_what_cannot_be_ranked_is_told(cluster: None) -> None:
    with pytest.raises(ModelError, match=r"^there is no such model\.$"):
        RayRanker(fails, workers=1, use_gpu=False).rank("q", ["a"])
    with pytest.raises(InputError, match="query is"):
        RayRanker(load, workers=1, use_gpu=False).rank("word " * 9000, ["a"])
    poisoned = [[RankRequest("poison", ["a"], "bad")], [RankRequest("q", ["a"], "good")]]
    with pytest.raises(ClusterError, match=r"^4 workers died with the requests from query_id 'bad' to 'bad'"):
        list(RayRanker(Deadly, workers=1, use_gpu=False).rank_groups(poisoned))  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match=r"no worker could be started in 3 s: one needs .*99"):
        RayRanker(load, workers=1, cpus=99, use_gpu=False, patience_s=3).rank("q", ["a"])


# The commands


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "blockrank", *arguments]


def test_a_killed_driver_goes_on(tmp_path: Path) -> None:
    path = str(write_requests(tmp_path / "r.jsonl", 3000))
    plain, output = tmp_path / "plain.jsonl", tmp_path / "ray.jsonl"
    subprocess.run(command("rank", "--requests", path, "--json", "-o", str(plain)), env=ENVIRONMENT, check=True)
    arguments = command("rank", "--requests", path, "--json", "-o", str(output), "--ray", "--ray-workers", "2")
    journal = tmp_path / "ray.jsonl.resume" / "rankings.jsonl"
    with subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as driver:
        wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 2, 120)
        driver.send_signal(signal.SIGKILL)
    finished = journal.read_bytes().count(b"\n")
    assert (output.exists(), finished < 47) == (False, True)
    done = subprocess.run(arguments, env=ENVIRONMENT, check=False, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert output.read_bytes() == plain.read_bytes()
    assert not journal.exists()


def test_an_evaluation_is_that_of_one_process(tmp_path: Path) -> None:
    documents = [Document(f"{word} {i}", f"d{i}") for i, word in enumerate(["harbour", "engine", "copper"] * 30)]
    queries = {f"q{i}": f"{word} {i}" for i, word in enumerate(["harbour", "engine", "copper"] * 20)}
    write_collection(tmp_path / "small", documents, queries, {f"q{i}": {f"d{i}": 1} for i in range(60)})
    for name, options in (("one", ()), ("ray", ("--ray", "--ray-workers", "2"))):
        arguments = command("eval", str(tmp_path / "small"), "-o", str(tmp_path / name), "--no-report", *options)
        done = subprocess.run(arguments, env=ENVIRONMENT, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "nDCG@10" in done.stdout.splitlines()[0] + done.stdout
    runs = [sorted((tmp_path / name / "small" / "runs").iterdir()) for name in ("one", "ray")]
    assert [path.read_bytes() for path in runs[0]] == [path.read_bytes() for path in runs[1]]
    settings = [json.loads((tmp_path / name / "settings.json").read_bytes()) for name in ("one", "ray")]
    assert settings[0] == settings[1], "one may be gone on with by the other"


# The server


def test_the_server_on_ray(cluster: None, mini: Ranker) -> None:
    from ray import serve

    app = deployment(load, ServeSettings(keys=("k",)), min_replicas=1, max_replicas=2, target_requests=1)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": 8765})
        serve.run(app)
        with httpx.Client(base_url="http://127.0.0.1:8765", timeout=60) as client:
            assert client.post("/v1/rerank", json=BODY).status_code == 401
            client.headers["authorization"] = "Bearer k"
            answer = client.post("/v1/rerank", json=BODY)
            assert answer.status_code == 200
            expected = mini.rank(BODY["query"], BODY["documents"])
            assert [entry["index"] for entry in answer.json()["results"]] == [entry.index for entry in expected]
            large = {"query": "rivers", "documents": [f"{i} " + "river and sea " * 30 for i in range(60)]}
            end = time.monotonic() + 60
            with ThreadPoolExecutor(8) as pool:
                while replicas(serve) < 2:
                    assert time.monotonic() < end, "it never grew"
                    answers = pool.map(lambda _: client.post("/v1/rerank", json=large), range(16))
                    codes = {found.status_code for found in answers}
                    assert codes == {200}
            name = next(name for name in named_actors() if "blockrank" in name)
            ray.kill(ray.get_actor(name, namespace="serve"))
            codes = [client.post("/v1/rerank", json=BODY).status_code for _ in range(20)]
            assert codes[-1] == 200
            assert codes.count(200) >= 10, "the other copy answers"
            wait_until(lambda: name not in named_actors() and replicas(serve) >= 1, 60)
    finally:
        serve.shutdown()


def named_actors() -> list[str]:
    return [found["name"] for found in ray.util.list_named_actors(all_namespaces=True)]


def replicas(serve: Any) -> int:
    found = serve.status().applications["default"].deployments["blockrank"]
    return int(found.replica_states.get("RUNNING", 0))


def test_arguments_of_the_application(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="argument 'modle' is unknown"):
        application({"modle": "x"})
    with pytest.raises(InputError, match="max_replicas must be a number, not 'many'"):
        application({"max_replicas": "many"})
    (tmp_path / "keys").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no key"):
        application({"key_file": tmp_path / "keys"})
    assert application({"max_replicas": "2", "max_documents": "5"}) is not None
