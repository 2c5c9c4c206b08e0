"""What is allowed and less safe than it looks: told with its place, and refused by nobody."""

import json
from pathlib import Path

import pytest

from controller.cli.main import main
from controller.policy.cautions import located
from controller.policy.load import load_placed, parse_placed

POLICIES = Path(__file__).parents[2] / "policies"
MODELS = """\
models:
  digits:
    objective: {latency: 60ms, percentile: 99}
    variants:
      wide: {model: digits_wide, quality: 0.927}
"""


def told(triton: str, more: str = "") -> list[str]:
    text = f"version: 1\ntriton: {{{triton}}}\n{more}{MODELS}"
    return [str(one) for one in located(*parse_placed(text.encode(), "p.yaml"))]


@pytest.mark.parametrize(
    ("triton", "more", "start", "words"),
    [
        (
            "grpc: 127.0.0.1:8001, traces: {listen: 0.0.0.0:4318}",
            "",
            "p.yaml:2:49: triton.traces.listen: ",
            "can pretend latencies",
        ),
        (
            "grpc: '[::1]:8001'",
            "prometheus: {listen: '[::]:9464'}\n",
            "p.yaml:3:22: prometheus.listen: ",
            "reads names, rates and latencies",
        ),
        (
            "grpc: triton.example:8001, restricted_key_file: /key",
            "",
            "p.yaml:2:16: triton.grpc: ",
            "model control and the restricted key can be read",
        ),
        (
            "grpc: 127.0.0.1:8001, metrics: 'http://user:pass@127.0.0.1/metrics'",
            "",
            "p.yaml:2:41: triton.metrics: ",
            "has a password in it",
        ),
        (
            "grpc: 127.0.0.1:8001",
            "mqtt: {host: broker.example, username: u, password_file: /password}\n",
            "p.yaml:3:14: mqtt.host: ",
            "commands and the password can be read",
        ),
    ],
)
def test_what_others_can_reach_or_read_is_told_where_it_stands(triton, more, start, words):
    (caution,) = told(triton, more)
    assert caution.startswith(start)
    assert words in caution
    assert "pass@" not in caution


@pytest.mark.parametrize(
    ("triton", "more"),
    [
        ("grpc: localhost:8001, traces: {listen: 127.0.0.1:4318}", ""),
        ("grpc: triton.example:8001, tls: {ca_file: /ca}", ""),
        ("grpc: 127.0.0.1:8001", "mqtt: {host: broker.example, tls_ca_file: /ca}\n"),
        ("grpc: 127.0.0.1:8001", "mqtt: {host: 127.0.0.1}\nprometheus: {listen: '[::1]:9464'}\n"),
    ],
)
def test_what_is_kept_to_this_machine_or_encrypted_is_fine(triton, more):
    assert told(triton, more) == []


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_policies_need_no_caution(path):
    assert located(*load_placed(path)) == []


def test_policy_check_tells_them_and_refuses_nothing(tmp_path, capsys):
    path = tmp_path / "p.yaml"
    path.write_text(f"version: 1\ntriton: {{grpc: triton.example:8001}}\n{MODELS}")
    assert main(["policy", "check", str(path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}:2:16: triton.grpc: ")
    assert first.endswith(" (warning)")
    assert ": fine, " in second
    assert main(["policy", "check", "--json", str(path)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert [(one["line"], one["path"]) for one in answer["warnings"]] == [(2, "triton.grpc")]
