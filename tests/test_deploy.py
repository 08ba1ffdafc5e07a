"""The files in deploy/ against the server that they deploy: options, routes, metrics, times. No engine runs here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from serving import running
from starlette.datastructures import Headers

from blockrank import Ranker
from blockrank.cli import app
from blockrank.serve.hosts import HostCheck
from blockrank.serve.settings import OPEN_PATHS, ServeSettings

DEPLOY = Path(__file__).parents[1] / "deploy"
YAML = sorted(path for path in DEPLOY.rglob("*") if path.suffix in (".yaml", ".yml"))
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "blockrank.json").read_bytes())
LABEL = re.compile(r"(\w+)\s*=~?\s*\"|by \(([\w, ]+)\)")
# Labels that Prometheus adds, not the server.
ADDED = {"instance", "job"}


def documents(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def pod() -> dict[str, Any]:
    return dict(documents("kubernetes/deployment.yaml")["spec"]["template"]["spec"])


def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def command_lines() -> dict[str, list[str]]:
    """Every command line of `blockrank serve` in these files."""
    entry = json.loads(re.findall(r"^ENTRYPOINT (\[.*\])$", dockerfile(), re.MULTILINE)[0])
    assert entry[:2] == ["blockrank", "serve"]
    more = {"Dockerfile": [], "compose": documents("compose.yaml")["services"]["server"]["command"],
            "kubernetes": pod()["containers"][0]["args"]}  # fmt: skip
    return {name: entry[2:] + arguments for name, arguments in more.items()}


def option(arguments: list[str], name: str) -> float:
    return float(arguments[arguments.index(name) + 1])


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_yaml_is_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize("place", ["Dockerfile", "compose", "kubernetes"])
def test_the_server_takes_these_options(place: str) -> None:
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    found = serve.make_context("serve", list(command_lines()[place])).params
    assert (found["host"], found["port"]) == ("0.0.0.0", 8100)
    assert (found["key_file"] is not None) == (place != "Dockerfile"), "without a key it does not start"
    assert found["no_key"] is False


def test_probes_ask_what_answers_without_a_key() -> None:
    container = pod()["containers"][0]
    assert container["ports"] == [{"name": "http", "containerPort": 8100}]
    probes = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    (health,) = re.findall(r"http://127\.0\.0\.1:8100(/\w+)", dockerfile())
    assert {health, *probes.values()} <= OPEN_PATHS


@pytest.mark.parametrize("place", ["compose", "kubernetes"])
def test_they_answer_under_every_name(place: str) -> None:
    """Probes by a pod's address, clients by a service's name, and pages that come through a proxy."""
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    found = serve.make_context("serve", list(command_lines()[place])).params
    settings = ServeSettings(bound_host=found["host"], allowed_hosts=tuple(found["allowed_host"] or ()), keys=("k",))
    scope = {"type": "http", "method": "POST", "server": ("10.1.2.3", 8100)}
    for host in (
        "10.1.2.3:8100",
        "blockrank",
        "blockrank.ns.svc.cluster.local",
        "server:8100",
        "rank.example.org",
    ):
        HostCheck(settings)(scope, Headers({"host": host, "origin": "https://rank.example.org"}))


def test_there_is_time_to_drain() -> None:
    lines = command_lines()
    sleep = pod()["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["terminationGracePeriodSeconds"] > sleep + option(lines["kubernetes"], "--drain")
    grace = documents("compose.yaml")["services"]["server"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > option(lines["compose"], "--drain")


def test_nothing_runs_as_root_or_writes_its_files() -> None:
    spec, container, server = pod(), pod()["containers"][0], documents("compose.yaml")["services"]["server"]
    user = re.findall(r"^USER (\d+):", dockerfile(), re.MULTILINE)
    assert user == [str(spec["securityContext"]["runAsUser"])]
    assert user != ["0"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is server["read_only"] is True
    assert container["securityContext"]["capabilities"]["drop"] == server["cap_drop"] == ["ALL"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/etc/blockrank", "/tmp"}
    written = re.findall(r"(?:HF_HOME|TRITON_CACHE_DIR)=(\S+)", dockerfile())
    assert all(place.startswith("/tmp/") for place in written)
    assert server["tmpfs"] == ["/tmp"]


def test_manifests_name_each_other() -> None:
    deployment = documents("kubernetes/deployment.yaml")
    kustomization = documents("kubernetes/kustomization.yaml")
    there = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == there
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        documents("kubernetes/service.yaml")["spec"]["selector"],
        documents("kubernetes/disruption.yaml")["spec"]["selector"]["matchLabels"],
        documents("kubernetes/network.yaml")["spec"]["podSelector"]["matchLabels"],
    ]
    assert selectors == [labels] * 4
    assert documents("kubernetes/autoscaler.yaml")["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert kustomization["secretGenerator"][0]["name"] == pod()["volumes"][0]["secret"]["secretName"]


def test_the_image_is_of_pinned_versions() -> None:
    root = DEPLOY.parent
    copied = [
        name for line in re.findall(r"^COPY (?!--)(.*)$", dockerfile(), re.MULTILINE) for name in line.split()[:-1]
    ]
    assert all((root / name).exists() for name in copied)
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert {f"!{name}" for name in copied} <= {*allowed}
    assert "grep '^torch==' constraints.txt" in dockerfile()
    assert 'pip install -c constraints.txt ".[serve]"' in dockerfile()


def expressions() -> Iterator[tuple[str, str]]:
    """Where every expression of Prometheus's language stands, and the expression."""
    for panel in DASHBOARD["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for group in documents("prometheus/alerts.yml")["groups"]:
        yield from ((rule["alert"], rule["expr"]) for rule in group["rules"])


def test_dashboard_and_alerts_name_what_the_server_has(mini: Ranker) -> None:
    with running(mini) as server:
        assert server.post().status_code == 200
        text = server.client.get("/metrics").text
    samples = re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE)
    names = {name for name, _ in samples}
    labels = {label for _, found in samples for label in re.findall(r"(\w+)=", found or "")} | ADDED
    asked = list(expressions())
    assert len(asked) > 25
    for where, expression in asked:
        used = set(re.findall(r"\b(?:blockrank|process)_\w+", expression))
        assert used <= names, f"{where}: {used - names}"
        assert used or expression.startswith("up{"), where
        groups = {
            name for pair in LABEL.findall(expression) for part in pair for name in part.replace(",", " ").split()
        }
        assert groups <= labels, f"{where}: {groups - labels}"
    causes = set(re.findall(r'cause="(\w+)"', " ".join(expression for _, expression in asked)))
    assert causes <= set(re.findall(r'cause="(\w+)"', text))
