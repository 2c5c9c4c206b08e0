"""Scalers of replicas, and replays with several GPUs and with trouble."""

import json
from dataclasses import replace

import numpy as np
import pytest

from controller.cli.main import main
from controller.twin.contest import SCALERS, possible
from controller.twin.ladder import Ladder, TwinVariant
from controller.twin.plan import Plan, ReplayError
from controller.twin.replay import replay
from controller.twin.rivals import Setting
from controller.twin.rivals.dynamo import Dynamo
from controller.twin.rivals.hpa import Hpa
from controller.twin.rivals.llmd import LlmD
from controller.twin.rivals.scaling import ScalerView
from controller.twin.trace import Trace

ROWS = np.arange(1, 17)
LADDER = Ladder(
    "two",
    (
        TwinVariant("large", 0.95, 0.0060 + 0.0040 * ROWS),
        TwinVariant("little", 0.85, 0.0010 + 0.0004 * ROWS),
    ),
)
LIMIT_S = 0.150
SETTING = Setting(LADDER.variants, LIMIT_S, 0.01, gpus=4)
EACH_RPS = LADDER.variants[0].capacity_rps(LIMIT_S)


def _view(replicas=2, load_rps=0.0, pending=0, latency_s=()):
    return ScalerView(replicas, load_rps, pending, np.array(latency_s))


def test_dynamo_adds_one_over_the_objective_and_takes_one_within_four_fifths():
    assert Dynamo(SETTING).replicas(_view(2, 1.5 * EACH_RPS, latency_s=[0.2, 0.3])) == 3
    assert Dynamo(SETTING).replicas(_view(2, 0.9 * EACH_RPS, latency_s=[0.02])) == 2
    assert Dynamo(SETTING).replicas(_view(2, 0.7 * EACH_RPS, latency_s=[0.02])) == 1
    assert Dynamo(SETTING).replicas(_view(1, 0.0)) == 1


def test_dynamo_follows_the_load_with_a_slope_that_is_never_negative():
    rising, falling = Dynamo(SETTING), Dynamo(SETTING)
    for load_rps, latency_s in ((20.0, 0.05), (40.0, 0.10), (60.0, 0.14)):
        assert rising.replicas(_view(1, load_rps, latency_s=[latency_s])) == 1
        assert falling.replicas(_view(1, load_rps, latency_s=[0.19 - latency_s])) == 1
    assert rising.replicas(_view(1, 100.0)) == 2  # though none was so slow yet
    assert falling.replicas(_view(1, 100.0)) == 1


@pytest.mark.parametrize(("strain", "wanted"), [(0.3, 1), (0.5, 2), (0.56, 3), (1.1, 4), (5.0, 8)])
def test_llm_d_scales_by_how_far_the_ninetieth_percentile_is_up(strain, wanted):
    assert LlmD(SETTING).replicas(_view(2, latency_s=[strain * LIMIT_S] * 5)) == wanted


def test_hpa_goes_up_at_once_and_down_after_five_minutes():
    policy, target = Hpa(SETTING), 16
    assert policy.replicas(_view(2, pending=2 * target)) == 2
    assert policy.replicas(_view(2, pending=4 * target)) == 4
    held = [policy.replicas(_view(4, pending=0)) for _ in range(20)]
    assert held[:18] == [4] * 18
    assert held[-1] == 1


@pytest.fixture
def plan():
    """Three minutes that go from calm to busy, on four GPUs."""
    rate = np.concatenate([np.full(60, 40.0), np.full(120, 150.0)])
    return Plan(Trace("step", rate, 1.0), LADDER, LIMIT_S, gpus=4)


def test_scalers_follow_the_load_with_their_delay_and_use_less_than_everything(plan):
    names = ("fixed:best", "fixed:fastest", *SCALERS)
    found = {one["name"]: one for one in replay(plan, names, (1,), jobs=1)["policies"]}
    assert found["fixed:best"]["gpus"] == 4.0
    for name in SCALERS:
        assert 1.0 <= found[name]["gpus"] < 4.0
        # A replica takes a minute to come; until then requests are late.
        assert found[name]["slo_attainment"] < found["fixed:best"]["slo_attainment"]
        assert found[name]["mean_quality"] == pytest.approx(0.95)


def test_several_gpus_bear_so_much_more_and_are_not_for_everybody(plan):
    alone = replace(plan, gpus=1)
    assert plan.load().rate_rps == pytest.approx(4 * alone.load().rate_rps)
    assert "dynamo" in possible(plan)
    assert "dynamo" not in possible(alone)
    with pytest.raises(ReplayError, match="governor cannot do with --gpus 4; these can"):
        replay(plan, ("governor",), (1,), jobs=1)
    with pytest.raises(ReplayError, match="hpa cannot do with --gpus 1"):
        replay(alone, ("hpa",), (1,), jobs=1)


def test_stragglers_and_co_tenants_cost_the_same_load_its_latency():
    plan = Plan(Trace("calm", np.full(60, 30.0), 1.0), LADDER, LIMIT_S)

    def p99_ms(troubled):
        return replay(troubled, ("fixed:fastest",), (1,), jobs=1)["policies"][0]["p99_ms"]

    usual = p99_ms(plan)
    assert p99_ms(replace(plan, straggler_ratio=0.05, straggler_factor=10.0)) > 2.0 * usual
    assert p99_ms(replace(plan, cotenants=2.0)) > 2.0 * usual
    both = replace(plan, cotenants=2.0, slowdown=2.0, slowdown_from=0.25)
    assert [
        (change.from_s, change.slowdown, change.cotenants)
        for change in both.physics(plan.load()).changes
    ] == [(15.0, 2.0, 0.0), (30.0, 2.0, 2.0)]


def test_what_a_ladder_says_of_memory_and_loading_reaches_the_server():
    known = [replace(v, memory_bytes=2.0**30, load_s=3.0) for v in LADDER.variants]
    plan = Plan(Trace("calm", np.full(60, 30.0), 1.0), Ladder("known", tuple(known)), LIMIT_S)
    assert [(v.memory_bytes, v.load_s) for v in plan.variants] == [(2.0**30, 3.0)] * 2


def test_trouble_is_asked_for_on_the_command_line(tmp_path, capsys):
    trace, ladder = tmp_path / "t.csv", tmp_path / "l.yaml"
    trace.write_text("second,requests\n" + "".join(f"{i},5\n" for i in range(20)))
    ladder.write_text(
        "variants:\n"
        "  - {name: a, accuracy: 95, latency_ms: {1: 10, 8: 40}, load_s: 3, memory_mib: 100}\n"
        "  - {name: b, accuracy: 85, latency_ms: {1: 2, 8: 5}}\n"
    )
    given = ["replay", "--trace", str(trace), "--ladder", str(ladder), "--slo", "150ms"]
    given += ["--seeds", "1", "--jobs", "1", "--policies", "fixed:fastest", "--json", "-"]
    p99_ms = []
    for trouble in ([], ["--stragglers", "5%x10"], ["--cotenants", "3@0%"]):
        assert main([*given, *trouble]) == 0
        p99_ms.append(json.loads(capsys.readouterr().out)["policies"][0]["p99_ms"])
    assert p99_ms[1] > p99_ms[0] < p99_ms[2]
    for wrong in (["--stragglers", "5"], ["--cotenants", "1@200%"], ["--gpus", "0"]):
        assert main([*given, *wrong]) == 2
    ladder.write_text("variants: [{name: a, accuracy: 95, latency_ms: {1: 1, 2: 2}, load_s: -1}]")
    assert main(given) == 1
    assert "`load_s` must be a number from 0 on" in capsys.readouterr().err
