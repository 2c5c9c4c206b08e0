"""A journal as something to replay: the load as recorded, the service times as learned."""

import json
import math
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from statistics import fmean

import pytest

from controller.cli.main import main
from controller.journal import Journal
from controller.journal.records import DecisionRow, Stamp, insertion
from controller.planning.core import GovernorCore
from controller.planning.decision import Decision, Reason
from controller.policy.load import load_policy
from controller.policy.model import Objective
from controller.prediction.service import ServiceTimes
from controller.telemetry.observation import BatchSample, Observation
from controller.twin.plan import Plan
from controller.twin.recorded import RecordedError, RecordedLoad, from_journal
from controller.twin.replay import replay

POLICY = """
version: 1
triton: {grpc: "127.0.0.1:8001", metrics: "http://127.0.0.1:8002/metrics"}
models:
  asked:
    objective: {latency: 100ms, percentile: 99}
    client_max_batch: 8
    variants:
      large: {model: m_large, quality: 0.95}
      little: {model: m_little, quality: 0.85}
      unseen: {model: m_unseen, quality: 0.80}
"""
TIMES_S = {"m_large": (0.004, 0.003), "m_little": (0.001, 0.0005)}


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return load_policy(path)


@pytest.fixture
def learned(policy):
    core = GovernorCore(policy)
    samples = [
        BatchSample(model, rows, 5, fixed_s + row_s * rows, 0.1)
        for model, (fixed_s, row_s) in TIMES_S.items()
        for rows in range(1, 9)
    ]
    nothing = Observation(now_s=0.0, sequence=0, models={}, variants={}, window_s=0.0)
    for tick in range(20):
        core.step(replace(nothing, now_s=tick * 0.5, batch_samples=tuple(samples)))
    return json.loads(json.dumps(core.state()))


def _loads(rates, start_s=1_700_000_000.2):
    return [
        RecordedLoad(start_s + second, rate, 2.0)
        for second, rate in enumerate(rates)
        if rate is not None
    ]


def test_load_and_service_times_are_those_that_were_recorded(policy, learned):
    found = from_journal(_loads([10.0, 20.0, 60.0]), learned, policy, "asked")
    assert found.trace.rate_rps.tolist() == [10.0, 20.0, 60.0]
    assert found.rows_per_request == 2.0
    assert found.left_out == ("unseen",)
    assert [variant.name for variant in found.ladder.variants] == ["large", "little"]
    for variant, (fixed_s, row_s) in zip(found.ladder.variants, TIMES_S.values(), strict=True):
        assert variant.max_batch == 8
        for rows in (1, 4, 8):
            assert variant.service_s(rows) == pytest.approx(fixed_s + row_s * rows, rel=0.05)
    assert [v.name for v in found.policy.models[0].variants] == ["large", "little"]
    assert found.policy.tick_s == policy.tick_s


def test_batches_larger_than_a_request_are_simulated_where_they_were_seen(policy, learned):
    core = GovernorCore(policy)
    core.restore(learned)
    sample = BatchSample("m_little", 16, 5, 0.009, 0.1)
    nothing = Observation(now_s=100.0, sequence=1, models={}, variants={}, window_s=0.0)
    core.step(replace(nothing, batch_samples=(sample,)))
    found = from_journal(_loads([10.0, 20.0]), core.state(), policy, "asked")
    assert [variant.max_batch for variant in found.ladder.variants] == [8, 16]


def test_a_variant_too_slow_for_the_objective_is_left_out(policy, learned):
    model = policy.models[0]
    quick = replace(policy, models=(replace(model, objective=Objective(0.010, 99.0)),))
    with pytest.raises(RecordedError, match="1 are known to serve a row within half"):
        from_journal(_loads([10.0, 20.0]), learned, quick, "asked")


def test_a_short_gap_is_bridged_and_a_long_one_left_out(policy, learned):
    rates = [10.0, None, None, 20.0, *[None] * 30, 40.0]
    found = from_journal(_loads(rates), learned, policy, "asked")
    assert found.trace.rate_rps.tolist() == [10.0, 10.0, 10.0, 20.0, *[20.0] * 5, 40.0]
    assert found.unknown_s == 25


@pytest.mark.parametrize(
    ("rates", "state", "words"),
    [
        ([10.0], "learned", "fewer than two seconds"),
        ([math.nan, -1.0, 5.0], "learned", "fewer than two seconds"),
        ([10.0, 20.0], "none", "no service times learned for asked"),
        ([10.0, 20.0], "broken", "no service times learned for asked"),
        ([10.0, 20.0], "one", "of the policy's 3 variants 1 are known"),
    ],
)
def test_what_cannot_be_replayed_is_said(policy, learned, rates, state, words):
    one = ServiceTimes(("m_large",), 8)
    one.observe([BatchSample("m_large", 1, 5, 0.007, 0.1)], 0.0)
    states = {
        "learned": learned,
        "none": None,
        "broken": {"service": {"models": {"m_large": {"mean": "many"}}}},
        "one": {"service": one.state(), "models": {"asked": {"limits": {}}}},
    }
    with pytest.raises(RecordedError, match=words):
        from_journal(_loads(rates), states[state], policy, "asked")


def test_a_recorded_load_is_replayed_as_it_was(policy, learned):
    found = from_journal(_loads([20.0] * 20 + [150.0] * 20), learned, policy, "asked")
    objective = policy.models[0].objective
    plan = Plan(
        found.trace,
        found.ladder,
        objective.latency_s,
        as_recorded=True,
        rows_per_request=found.rows_per_request,
        policy=found.policy,
    )
    document = replay(plan, ("governor", "fixed:best", "fixed:fastest"), (1,), jobs=1)
    by_name = {one["name"]: one for one in document["policies"]}
    # 150 requests of 2 rows are 300 rows a second: the large one bears 286 at most.
    assert by_name["fixed:best"]["slo_attainment"] < 0.8
    assert by_name["governor"]["slo_attainment"] > 0.98
    best = max(by_name, key=lambda name: by_name[name]["effective_quality"])
    assert best == "governor"
    assert sum(document["timeline"]["load_rps"]) / 240 == pytest.approx(85.0)


def _decision(second, rate_rps):
    return Decision(
        now_s=float(second),
        sequence=second,
        model="asked",
        serving="little",
        desired="little",
        target="little",
        reason=Reason.STEADY,
        candidates=(),
        rate_rps=rate_rps,
        rate_p95_rps=2.0 * rate_rps,
        rows_per_request=2.0,
        backlog_requests=0,
        backlog_s=0.0,
        drift_ratio=1.0,
    )


@pytest.mark.usefixtures("policy")
def test_the_command_reads_a_journal(learned, tmp_path, capsys):
    path, out = tmp_path / "journal.sqlite3", tmp_path / "out.json"
    journal = Journal(path, 10_000_000)
    journal.open()
    journal.save_learned("core", learned)
    assert journal.close()
    now_s = time.time()
    with closing(sqlite3.connect(path)) as connection, connection:
        for second in range(30):
            decision = _decision(second, 20.0 if second < 20 else 100.0)
            # An hour ago, and now.
            ago_s = 3630.0 - second if second < 20 else 30.0 - second
            stamp = Stamp(now_s - ago_s, float(second))
            connection.execute(*insertion(DecisionRow(stamp, decision)))
    policy = ["--policy", str(tmp_path / "policy.yaml")]
    arguments = ["replay", "--journal", str(path), *policy, "--seeds", "1", "--jobs", "1"]
    assert main([*arguments, "--json", str(out)]) == 0
    told = capsys.readouterr().err
    assert "unseen is left out: never measured" in told
    assert "s in between were not recorded" in told
    document = json.loads(out.read_text())
    names = [one["name"] for one in document["policies"]]
    assert names == [
        *("governor", "governor:cold", "governor:late", "governor:late-cold"),
        *("fixed:best", "fixed:fastest"),
    ]
    early = {
        name: fmean(
            one for one in document["timeline"]["effective_quality"][name][:10] if one is not None
        )
        for name in ("governor", "governor:cold")
    }
    assert early["governor"] > early["governor:cold"]  # it need not learn first
    assert document["timeline"]["load_rps"][0] == pytest.approx(20.0)
    assert document["timeline"]["load_rps"][-1] == pytest.approx(100.0)
    assert main([*arguments, "--since", "10m", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["timeline"]["load_rps"][0] == pytest.approx(100.0)
    capsys.readouterr()
    for wrong, status, words in (
        (["--model", "other"], 1, "no model 'other': asked"),
        (["--policies", "jellyfish"], 1, "jellyfish cannot do with requests of several rows"),
        (["--percentile", "95"], 2, "--percentile does not go with --journal"),
        (["--slo", "100ms"], 2, "either --trace, --ladder and --slo, or --journal and --policy"),
    ):
        assert main([*arguments, *wrong]) == status
        assert words in capsys.readouterr().err
    file = tmp_path / "policy.yaml"
    file.write_text(f"{file.read_text()}hosts: {{h: {{models: {{asked: null, its: {{}}}}}}}}\n")
    assert main([*arguments, "--host", "h"]) == 1
    assert "models.its" in capsys.readouterr().err
    assert main(["replay", "--trace", "t", "--ladder", "l", "--slo", "1s", "--host", "h"]) == 2
    assert "--host does not go with --trace" in capsys.readouterr().err
    assert main(["replay", "--journal", str(tmp_path / "none"), *policy]) == 1
    assert "there is no journal" in capsys.readouterr().err
