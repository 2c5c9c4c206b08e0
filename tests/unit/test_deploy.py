"""What is in deploy/ names metrics that exist, and every alert has its part of the runbook."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from controller.cli.main import build_parser
from controller.policy.load import load_policy

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "governor-rules.yml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((DEPLOY / "grafana" / "governor.json").read_text(encoding="utf-8"))
GOLDEN = (Path(__file__).with_name("golden") / "metrics.txt").read_text(encoding="utf-8")


def rules(kind: str) -> Iterator[dict[str, Any]]:
    return (rule for group in RULES["groups"] for rule in group["rules"] if kind in rule)


def expressions() -> Iterator[str]:
    for kind in ("record", "alert"):
        yield from (rule["expr"] for rule in rules(kind))
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in DASHBOARD["templating"]["list"]:
        yield str(variable.get("definition", ""))


def known() -> set[str]:
    samples = {
        sample.name
        for family in text_string_to_metric_families(GOLDEN)
        for sample in family.samples
    }
    return samples | {rule["record"] for rule in rules("record")}


def test_every_metric_that_is_asked_for_exists():
    asked = {
        name
        for expression in expressions()
        for name in re.findall(r"[a-z_:]*governor_[a-z0-9_:]+", expression)
    }
    assert len(asked) > 30
    assert asked <= known()


def test_every_metric_is_in_the_docs():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(governor_\w+)` \|", text, re.MULTILINE))
    counted = {
        line.split()[2] for line in GOLDEN.splitlines() if line.startswith("# HELP governor_")
    }
    assert listed == counted


def test_every_alert_has_its_part_of_the_runbook_and_a_test():
    headings = re.findall(
        r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    alerts = {rule["alert"]: rule for rule in rules("alert")}
    assert sorted(headings) == sorted(alerts)
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"warning", "critical"}
    tested = (DEPLOY / "prometheus" / "governor-rules-test.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"alertname: (\w+)", tested)) == set(alerts)


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_every_panel_asks_the_chosen_data_source_and_has_a_place(panel):
    place = panel["gridPos"]
    assert place["x"] + place["w"] <= 24
    for target in panel.get("targets", ()):
        assert target["datasource"]["uid"] == "${datasource}"
    overlapping = [
        other["title"]
        for other in DASHBOARD["panels"]
        if other["id"] != panel["id"] and _overlap(place, other["gridPos"])
    ]
    assert overlapping == []


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size]
        for at, size in (("x", "w"), ("y", "h"))
    )


SIDECAR = list(
    yaml.safe_load_all((DEPLOY / "kubernetes" / "sidecar.yaml").read_text(encoding="utf-8"))
)
CONTAINERFILE = (ROOT / "packaging" / "Containerfile").read_text(encoding="utf-8")


def of_kind(kind: str) -> dict[str, Any]:
    return next(document for document in SIDECAR if document["kind"] == kind)


def container(name: str) -> dict[str, Any]:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    return next(one for one in pod["containers"] if one["name"] == name)


def test_the_policy_of_the_pod_is_sound_and_fits_the_ports_beside_it(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(of_kind("ConfigMap")["data"]["policy.yaml"], encoding="utf-8")
    policy = load_policy(path)
    ports = {port["containerPort"] for port in container("triton")["ports"]}
    assert int(policy.triton.grpc.rpartition(":")[2]) in ports
    assert policy.prometheus is not None
    (metrics,) = container("governor")["ports"]
    assert policy.prometheus.listen.endswith(f":{metrics['containerPort']}")
    assert policy.triton.traces_listen in " ".join(container("triton")["args"])


def test_the_pod_has_every_volume_that_its_containers_mount():
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    mounted = {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    folders = {mount["mountPath"] for mount in container("governor")["volumeMounts"]}
    for needed in ("/var/lib/triton-governor", "/run/triton-governor", "/etc/triton-governor"):
        assert needed in folders


def test_what_the_recipes_run_are_commands_of_ours():
    probe = container("governor")["livenessProbe"]["exec"]["command"]
    healthcheck = re.search(r"HEALTHCHECK[^\n]*\n +CMD (.*?) >/dev/null", CONTAINERFILE)
    command = re.search(r"^CMD (\[.*\])$", CONTAINERFILE, re.MULTILINE)
    assert healthcheck
    assert command
    for words in (probe[1:], healthcheck[1].split()[1:], json.loads(command[1])):
        assert build_parser().parse_args(words).run


def test_the_container_runs_as_the_pod_says():
    user = container("governor")["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in CONTAINERFILE
