"""Policies: what they mean, and that everything wrong with one is said at once, in its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from controller.policy import model
from controller.policy.load import MAX_PROBLEMS, PolicyError, load_policy, parse_policy
from controller.policy.render import policy_to_yaml

MINIMAL = """\
version: 1
triton: {grpc: 127.0.0.1:8001}
models:
  digits:
    objective: {latency: 60ms, percentile: 99}
    variants:
      wide: {model: digits_wide, quality: 0.927}
"""
FULL = """\
version: 1
triton:
  grpc: "[::1]:8001"
  metrics: https://triton.example:8002/metrics
  traces: {listen: 127.0.0.1:4318}
  restricted_key_file: /etc/key
  restricted_key_name: governor
  tls: {ca_file: /etc/ca.pem, cert_file: /etc/us.pem, key_file: /etc/us.key, server_name: t.example}
  metrics_tls: {ca_file: /etc/proxy.pem}
gpu: {source: nvml, devices: [0, 2]}
interval: 50ms
models:
  digits:
    objective: {latency: 60ms, percentile: 99.5}
    alias: repository
    client_max_batch: 8
    min_quality: 0.85
    variants:
      wide: {model: digits_wide, quality: 0.927}
      narrow: {model: digits_narrow, quality: 0.884, memory: {host: 1GiB, gpu: 2GiB}}
  twin:
    objective: {latency: 1s, percentile: 90}
    variants: {narrow: {model: digits_narrow, quality: 1}}
memory: {reserve: 1GiB}
stability: {min_dwell: 0s, max_switches_per_minute: 30, foreign_hold: 1h, stale_after: 500ms}
probing: {enabled: false, max_busy: 2.5%, batches: [1, 8]}
journal: {path: /var/tmp/journal.db, max_size: 1GiB}
mqtt:
  host: broker.example
  port: 8883
  node: box-1
  topic_prefix: fleet/governor
  username: "on # off"
  password_file: "/etc/se cret\\"\\u00e9"
  tls_ca_file: /etc/ca.pem
  tls_cert_file: /etc/us.pem
  tls_key_file: /etc/us.key
mode: advise
on_stop: revert
"""


def problems(text):
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p.yaml")
    return str(caught.value).splitlines()


def changed(old, new, text=MINIMAL):
    assert old in text
    return problems(text.replace(old, new))


def test_a_minimal_policy_has_the_defaults_of_the_model():
    policy = parse_policy(MINIMAL, "p.yaml")
    assert policy == model.Policy(
        triton=model.TritonPolicy("127.0.0.1:8001", None, None),
        models=(
            model.ModelPolicy(
                "digits",
                model.Objective(0.06, 99),
                (model.VariantPolicy("wide", "digits_wide", 0.927),),
            ),
        ),
        sha256=policy.sha256,
    )


def test_every_key_reaches_the_model_in_si_units():
    policy = parse_policy(FULL, "p.yaml")
    assert policy == model.Policy(
        triton=model.TritonPolicy(
            "[::1]:8001",
            "https://triton.example:8002/metrics",
            "127.0.0.1:4318",
            "/etc/key",
            "governor",
            model.TlsPolicy("/etc/ca.pem", "/etc/us.pem", "/etc/us.key", "t.example"),
            model.TlsPolicy("/etc/proxy.pem", prefix="triton.metrics_tls."),
        ),
        gpu=model.GpuPolicy(model.GpuSource.NVML, (0, 2)),
        interval_s=0.05,
        models=(
            model.ModelPolicy(
                "digits",
                model.Objective(0.06, 99.5),
                (
                    model.VariantPolicy("wide", "digits_wide", 0.927),
                    model.VariantPolicy("narrow", "digits_narrow", 0.884, 2**30, 2**31),
                ),
                model.AliasKind.REPOSITORY,
                8,
                0.85,
            ),
            model.ModelPolicy(
                "twin",
                model.Objective(1.0, 90),
                (model.VariantPolicy("narrow", "digits_narrow", 1.0),),
            ),
        ),
        memory=model.MemoryPolicy(2**30),
        stability=model.StabilityPolicy(0.0, 30, 3600.0, 0.5),
        probing=model.ProbingPolicy(enabled=False, max_busy_ratio=0.025, batches=(1, 8)),
        journal=model.JournalPolicy("/var/tmp/journal.db", 2**30),  # noqa: S108 - not opened
        mqtt=model.MqttPolicy(
            "broker.example",
            8883,
            "box-1",
            "fleet/governor",
            "on # off",
            '/etc/se cret"é',
            "/etc/ca.pem",
            "/etc/us.pem",
            "/etc/us.key",
        ),
        mode=model.Mode.ADVISE,
        on_stop=model.OnStop.REVERT,
        sha256=policy.sha256,
    )


@pytest.mark.parametrize(
    "name",
    [".inf", ".nan", ".5", "1.5", "1e5", "0xff", "0b1", "on", "Null", "-", "2024-01-01"],
)
def test_a_name_that_yaml_would_read_as_something_else_is_quoted(name):
    text = MINIMAL.replace("digits_wide", json.dumps(name)).replace("wide:", f"{json.dumps(name)}:")
    policy = parse_policy(text, "p.yaml")
    assert policy.models[0].variants[0].model == name
    written = policy_to_yaml(policy)
    again = parse_policy(written, "again.yaml")
    assert replace(again, sha256=policy.sha256) == policy
    (seen,) = yaml.safe_load(written)["models"]["digits"]["variants"].items()
    assert (seen[0], seen[1]["model"]) == (name, name)  # for a reader of YAML 1.1, too


@pytest.mark.parametrize("text", [MINIMAL, FULL, FULL.replace("on # off", "\\u2028\\U0001F600")])
def test_a_policy_written_out_in_full_reads_back_as_the_same_policy(text):
    policy = parse_policy(text, "p.yaml")
    again = parse_policy(policy_to_yaml(policy), "again.yaml")
    assert replace(again, sha256=policy.sha256) == policy


def test_a_section_with_everything_commented_out_has_its_defaults():
    empty = MINIMAL + "gpu:\nmemory:\nstability:\nprobing:\njournal:\nmqtt:\n"
    assert replace(parse_policy(empty, "p"), sha256="") == replace(
        parse_policy(MINIMAL, "p"), sha256=""
    )


def test_a_changed_text_has_another_digest():
    first = parse_policy(MINIMAL, "p.yaml").sha256
    assert len(first) == 64
    assert parse_policy(MINIMAL + "\n", "p.yaml").sha256 != first


def test_all_problems_are_said_at_once_in_the_order_of_the_file():
    text = """\
version: 2
triton: {grpc: http://127.0.0.1:8001}
intervall: 20ms
models:
  digits:
    objective: {latency: 60, percentile: 100}
    min_quality: 0.95
    variants:
      wide: {model: digits_wide, quality: 0.9}
      same: {model: digits_wide, quality: 0.8}
      self: {model: digits, quality: 92.7}
      self: {model: x, quality: 0.5}
probing: {enabled: yes}
mode: advice
"""
    assert problems(text) == [
        "p.yaml:1:10: version: must be 1, the only version of this format so far",
        (
            "p.yaml:2:16: triton.grpc: must be HOST:PORT such as 127.0.0.1:8001, not "
            "'http://127.0.0.1:8001' (without http:// and without a path)"
        ),
        "p.yaml:3:1: intervall: unknown key (did you mean interval?)",
        "p.yaml:6:26: models.digits.objective.latency: 60 has no unit: write 60ms or 60s or 60m",
        "p.yaml:6:42: models.digits.objective.percentile: must be less than 100, not 100",
        (
            "p.yaml:10:21: models.digits.variants.same.model: 'digits_wide' is the variant 'wide' "
            "already"
        ),
        (
            "p.yaml:11:21: models.digits.variants.self.model: 'digits' is the name that clients "
            "call and becomes an alias: the alias would point at itself; give the model another "
            "name"
        ),
        (
            "p.yaml:11:38: models.digits.variants.self.quality: must be at most 1, not 92.7 "
            "(did you mean 0.927?)"
        ),
        "p.yaml:12:7: models.digits.variants.self: duplicate key, first used in line 11",
        "p.yaml:13:20: probing.enabled: must be true or false, not 'yes' (did you mean true?)",
        "p.yaml:14:7: mode: must be one of act, advise, not 'advice' (did you mean advise?)",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 1\n", "", "p.yaml:1:1: version: is missing"),
        ("triton: {grpc: 127.0.0.1:8001}\n", "", "p.yaml:1:1: triton: is missing"),
        ("latency: 60ms, ", "", "p.yaml:5:5: models.digits.objective.latency: is missing"),
        ("60ms", "0ms", "must be between 100us and 1h, not 0ms"),
        ("60ms", "[60ms]", "must be a duration such as 60ms, 2s or 10m, not a list"),
        ("percentile: 99", "percentile: 0", "must be greater than 0, not 0"),
        ("percentile: 99", "percentile: .nan", "must be a finite number, not nan"),
        ("percentile: 99", "percentile: 99%", "not '99%' (did you mean 99?)"),
        ("percentile: 99", "percentile: true", "must be a number, not true"),
        ("quality: 0.927", "quality: .inf", "must be a finite number, not inf"),
        ("quality: 0.927", "quality: 1e999", "must be a finite number, not inf"),
        ("quality: 0.927", "quality: '0.927'", "must be a number, not '0.927'"),
        ("quality: 0.927", "quality: ", "has no value: write a number"),
        ("wide: {model", "wi/de: {model", "p.yaml:7:7: models.digits.variants.'wi/de': must be a"),
        ("digits_wide", "..", "must be a name of letters"),
        ("digits_wide", "12", 'write it in quotes, "12", if that is meant'),
        ("{grpc: 127.0.0.1:8001}", "{grpc: 127.0.0.1}", "must be HOST:PORT"),
        ("8001}", "70000}", "port 70000 is not between 1 and 65535"),
        ("127.0.0.1:8001", "'[1::2::3]:80'", "is no IPv6 address"),
        ("8001}", "8001, metrics: 'localhost:8002'}", "must be a URL such as http://"),
        ("8001}", "8001, metrics: 'http://[x/'}", "must be a URL such as http://"),
        ("8001}", "8001, traces: {}}", "triton.traces.listen: is missing"),
        ("8001}", "8001, restricted_key_file: key}", "must be an absolute path"),
        ("8001}", "8001, tls: {}}", "triton.tls.ca_file: is missing: certificates of the auth"),
        (
            "8001}",
            "8001, tls: {ca_file: /ca, cert_file: /us}}",
            "p.yaml:2:52: triton.tls.cert_file: needs key_file beside it",
        ),
        ("8001}", "8001, tls: {ca_file: /ca, key_file: /us}}", "needs cert_file beside it"),
        (
            "8001}",
            "8001, metrics: 'http://h/m', metrics_tls: {ca_file: /ca}}",
            "triton.metrics_tls: needs a triton.metrics that is an https URL",
        ),
        (
            "models:\n",
            "mqtt: {host: h, tls_cert_file: /us, tls_key_file: /k}\nmodels:\n",
            "mqtt.tls_cert_file: needs tls_ca_file beside it",
        ),
        ("models:\n", "interval: 5ms\nmodels:\n", "must be between 20ms and 1s, not 5ms"),
        ("models:\n", "interval: 2s\nmodels:\n", "must be between 20ms and 1s, not 2s"),
        ("models:\n", "gpu: {devices: 0}\nmodels:\n", "must be `all` or a list of NVML indices"),
        ("models:\n", "gpu: {devices: []}\nmodels:\n", "to watch no GPU write `source: none`"),
        ("models:\n", "gpu: {devices: [0, 0]}\nmodels:\n", "names a number twice"),
        ("models:\n", "probing: {max_busy: 5}\nmodels:\n", "5 has no unit: write 5%"),
        ("models:\n", "journal: {max_size: 512M}\nmodels:\n", "(did you mean MiB?)"),
        ("models:\n", "min_dwell: 1s\nmodels:\n", "(did you mean stability.min_dwell?)"),
        (
            "models:\n",
            "mode:\nmodels:\n",
            "p.yaml:3:1: mode: must be one of act, advise, not nothing",
        ),
        ("models:\n", "stability: []\nmodels:\n", "must be a mapping of keys to values, not a"),
        ("models:\n", "mqtt: {}\nmodels:\n", "mqtt.host: is missing: the broker's host name"),
        (
            "models:\n",
            "mqtt: {host: h, topic_prefix: 'a/#'}\nmodels:\n",
            "must be an MQTT topic",
        ),
        (
            "models:\n",
            "stability: {max_switches_per_minute: }\nmodels:\n",
            "has no value: write a whole number or remove the key for the default, 600",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_one_sentence_that_helps(old, new, message):
    (problem,) = changed(old, new)
    assert message in problem


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.85", "0.99", "p.yaml:17:18: models.digits.min_quality: no variant has a quality of"),
        ("model: digits_narrow, quality: 1}", "model: digits, quality: 1}", "is a model of this"),
        ("model: digits_narrow, quality: 0.8", "model: digits_wide, quality: 0.8", "already"),
        ('  username: "on # off"\n', "", "needs a username beside it"),
        ("interval: 50ms", "interval: 600ms", "must be longer than the interval, 600ms"),
        ("source: nvml", "source: none", "names devices while `source: none` watches none"),
    ],
)  # fmt: skip
def test_values_that_contradict_each_other_are_refused(old, new, message):
    (problem,) = changed(old, new, FULL)
    assert message in problem


@pytest.mark.parametrize("queue", ["{}", "{timeout: null}", "{timeout: null, max_size: ~}"])
def test_a_queue_in_which_no_value_is_set_is_refused(queue):
    text = MINIMAL.replace("    variants:", f"    queue: {queue}\n    variants:")
    (problem,) = problems(text)
    assert "models.digits.queue: says nothing" in problem


BUDGET = """\
version: 1
triton: {grpc: 127.0.0.1:8001}
memory: {gpu_budget: 6GiB}
models:
  chat:
    objective: {latency: 60ms, percentile: 99}
    variants:
      big: {model: big, quality: 0.9, memory: {gpu: 5GiB}}
      small: {model: small, quality: 0.8, memory: {gpu: 2GiB}}
  other:
    objective: {latency: 60ms, percentile: 99}
    variants:
      tiny: {model: tiny, quality: 0.9, memory: {gpu: 4GiB}}
      small: {model: small, quality: 0.8, memory: {gpu: 2GiB}}
"""


def test_a_memory_budget_is_read_and_shown():
    memory = parse_policy(BUDGET, "p.yaml").memory
    assert (memory.gpu_budget_bytes, memory.host_budget_bytes) == (6 << 30, None)
    assert memory.is_limited


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # One Triton model is loaded once, for both.
        ("6GiB", "1GiB", "p.yaml:3:22: memory.gpu_budget: is too small: one variant of each model"),
        ("models:\n", "gpu: {source: none}\nmodels:\n", "is a budget of GPUs, and `source: none`"),
        ("6GiB", "6G", "did you mean"),
    ],
)  # fmt: skip
def test_a_memory_budget_in_which_nothing_fits_is_refused(old, new, message):
    (problem,) = changed(old, new, BUDGET)
    assert message in problem


def test_two_models_may_share_a_variant():
    users = [
        policy_model.name
        for policy_model in parse_policy(FULL, "p.yaml").models
        if any(variant.model == "digits_narrow" for variant in policy_model.variants)
    ]
    assert users == ["digits", "twin"]


def test_a_model_without_variants_is_refused():
    (problem,) = problems(MINIMAL.split("    variants:", maxsplit=1)[0] + "    variants: {}\n")
    assert problem == "p.yaml:6:5: models.digits.variants: needs at least one entry"


def test_contradictions_are_said_even_while_values_are_wrong():
    said = problems(FULL.replace("0.85", "0.99").replace("mode: advise", "mode: maybe"))
    assert [line.split(":")[1] for line in said] == ["17", "38"]


def test_a_key_cannot_forge_a_line_of_output():
    (problem,) = changed("version: 1", 'version: 1\n"x\\nfake.yaml:1:1: y": 1')
    assert r"'x\nfake.yaml:1:1: y'" in problem


def test_a_refused_value_is_not_refused_again_for_its_type():
    (problem,) = changed("{latency: 60ms, percentile: 99}", "*objective")
    assert "alias `*objective`" in problem


def test_a_file_full_of_mistakes_is_answered_with_a_bounded_list():
    said = problems(MINIMAL + "".join(f"kee{index}: 1\n" for index in range(20_000)))
    assert len(said) == MAX_PROBLEMS + 1
    assert said[-1].endswith(f"and {20_000 - MAX_PROBLEMS} more problems after this")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version: 1\nx: \xff\n", "byte 0xFF is not UTF-8"),
        (MINIMAL.encode("utf-16"), "byte 0xFF is not UTF-8"),
        (b"#" * (1 << 20) + "é".encode(), "larger than 1024 KiB"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, message):
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    (problem,) = caught.value.problems
    assert message in problem.message
    assert problem.line >= 1


def test_a_byte_order_mark_is_no_problem(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(MINIMAL, encoding="utf-8-sig")
    assert load_policy(path).models[0].name == "digits"


@pytest.mark.parametrize("name", ["missing.yaml", ".", "nul\0"])
def test_a_file_that_cannot_be_read_is_a_problem_and_no_crash(tmp_path, name):
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(Path(f"{tmp_path}/{name}"))
