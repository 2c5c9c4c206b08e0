"""Replay: files in, policies compared on equal terms, scores that mean what they say."""

import json
import math

import numpy as np
import pytest

from controller.cli.main import main
from controller.twin.contest import DISPATCHERS, LATE, LATE_COLD, possible
from controller.twin.drive import Outcome
from controller.twin.ladder import Ladder, LadderFormatError, TwinVariant, interpolate, load_ladder
from controller.twin.oracle import fluid_quality
from controller.twin.plan import Plan, ReplayError
from controller.twin.plot import draw
from controller.twin.replay import replay, run_one
from controller.twin.rivals import Setting, View
from controller.twin.rivals.alert import Alert
from controller.twin.rivals.backlog import Backlog
from controller.twin.rivals.infaas import Infaas
from controller.twin.rivals.infadapter import InfAdapter
from controller.twin.rivals.jellyfish import Jellyfish
from controller.twin.rivals.model_switching import ModelSwitching, bears_rps
from controller.twin.rivals.pressure import Pressure
from controller.twin.rivals.proteus import Proteus
from controller.twin.scoring import score
from controller.twin.trace import Trace, TraceFormatError, load_trace

ROWS = np.arange(1, 17)
LADDER = Ladder(
    "three",
    (
        TwinVariant("large", 0.95, 0.0060 + 0.0040 * ROWS),
        TwinVariant("middle", 0.92, 0.0030 + 0.0015 * ROWS),
        TwinVariant("little", 0.85, 0.0010 + 0.0004 * ROWS),
    ),
)
LIMIT_S = 0.150
SETTING = Setting(LADDER.variants, LIMIT_S, 0.01)

YAML = """
variants:
  - {name: large, accuracy: 95.0, latency_ms: {1: 10, 8: 38, 16: 70}}
  - {name: little, accuracy: 85.0, latency_ms: {1: 1.4, 8: 4.2, 16: 7.4}, p99_ms: {1: 2}}
"""


@pytest.fixture
def bursty():
    """A minute that goes from calm to a burst and back, every twenty seconds."""
    second = np.arange(60)
    return Trace("bursty", np.where(second % 20 < 5, 300.0, 60.0), 1.0)


# --- files


def test_a_ladder_is_read_and_interpolated(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(YAML)
    ladder = load_ladder(path)
    assert [variant.name for variant in ladder.variants] == ["large", "little"]
    large = ladder.variants[0]
    assert large.quality == pytest.approx(0.95)
    assert large.service_s(1) == pytest.approx(0.010)
    assert large.service_s(12) == pytest.approx(0.054)
    assert large.max_batch == 16


def test_a_larger_batch_never_takes_less():
    assert interpolate({1: 5.0, 2: 4.0, 4: 6.0}).tolist() == [0.005, 0.005, 0.0055, 0.006]


def test_capacity_is_the_most_within_half_of_the_objective():
    # Batches up to 6 fit 30 ms: 6 / 0.030.
    assert LADDER.variants[0].capacity_rps(0.060) == pytest.approx(6 / 0.030)
    assert LADDER.variants[0].capacity_rps(0.010) == 0.0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[", "while parsing"),
        ("models: []", "no list of `variants`"),
        ("variants: [{accuracy: 3}]", "needs a `name`"),
        ("variants: [{name: a, accuracy: 140, latency_ms: {1: 2}}]", "must be a percentage"),
        ("variants: [{name: a, accuracy: 90, latency_ms: {1: 2}}]", "one batch size"),
        ("variants: [{name: a, accuracy: 90, latency_ms: {0: 2, 1: 3}}]", "is no batch size"),
        ("variants: [{name: a, accuracy: 90, latency_ms: {1: -2, 2: 3}}]", "is no latency"),
        ("variants: [{name: a, accuracy: 90, latency_ms: {1: .nan, 2: 3}}]", "is no latency"),
    ],
)
def test_a_ladder_that_cannot_be_used_is_refused_with_the_place(tmp_path, text, problem):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(LadderFormatError, match=problem) as caught:
        load_ladder(path)
    assert "broken.yaml" in str(caught.value)


def test_traces_of_all_formats_give_requests_a_second(tmp_path):
    files = {
        "plain.csv": "second,requests\n0,3\n1,5\n",
        "slow_60S.csv": "second,requests\n0,120\n60,60\n",
        "llm.csv": "t_s,input_tokens,output_tokens\n0,10,2\n0.5,8,1\n2.25,9,9\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert load_trace(tmp_path / "plain.csv").rate_rps.tolist() == [3.0, 5.0]
    slow = load_trace(tmp_path / "slow_60S.csv")
    assert (slow.rate_rps.tolist(), slow.duration_s) == ([2.0, 1.0], 120.0)
    assert load_trace(tmp_path / "llm.csv").rate_rps.tolist() == [2.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ":1: expected"),
        ("time,count\n1,2\n", ":1: expected"),
        ("second,requests\n", "no rows"),
        ("second,requests\n0,1\n1,-3\n", ":3: '1,-3'"),
        ("second,requests\n0,1\n1\n", ":3: '1'"),
        ("t_s,input_tokens,output_tokens\nnan,1,1\n", ":2: 'nan,1,1'"),
        ("t_s,input_tokens,output_tokens\n1e8,1,1\n", "longer than"),
    ],
)
def test_a_trace_that_cannot_be_used_is_refused_with_its_line(tmp_path, text, problem):
    path = tmp_path / "broken.csv"
    path.write_text(text)
    with pytest.raises(TraceFormatError, match=problem):
        load_trace(path)


def test_a_trace_is_scaled_to_its_busy_seconds_and_capped(bursty):
    assert bursty.scaled(150.0, 1000.0).rate_rps.max() == pytest.approx(150.0)
    assert bursty.scaled(500.0, 400.0).rate_rps.max() == pytest.approx(400.0)
    arrivals_s = bursty.arrivals_s(seed=1)
    assert len(arrivals_s) == pytest.approx(bursty.rate_rps.sum(), rel=0.03)
    assert (np.diff(arrivals_s) >= 0.0).all()
    assert (bursty.arrivals_s(seed=1) == arrivals_s).all()
    with pytest.raises(TraceFormatError, match="in it"):
        bursty.window(500.0, 600.0)


# --- the oracle


def test_the_oracle_mixes_as_brute_force_does():
    rng = np.random.default_rng(2)
    for _ in range(20):
        quality, capacity = rng.uniform(0.5, 1.0, 4), rng.uniform(10.0, 200.0, 4)
        rate = float(rng.uniform(1.0, 250.0))
        best = 0.0
        shares = np.linspace(0.0, 1.0, 401)
        for i in range(4):
            for j in range(4):
                done = shares * capacity[i] + (1.0 - shares) * capacity[j]
                worth = shares * capacity[i] * quality[i] + (1 - shares) * capacity[j] * quality[j]
                # Of what both complete, no more than arrives; idle time scales down.
                fits = np.minimum(rate / np.maximum(done, 1e-9), 1.0)
                best = max(best, float((worth * fits).max()) / rate)
        found = fluid_quality(np.array([rate]), quality, capacity)
        assert found == pytest.approx(best, rel=0.01)


def test_the_oracle_serves_the_best_when_there_is_room():
    quality, capacity = np.array([0.95, 0.85]), np.array([100.0, 400.0])
    assert fluid_quality(np.array([50.0, 90.0]), quality, capacity) == pytest.approx(0.95)
    assert fluid_quality(np.array([800.0]), quality, capacity) == pytest.approx(0.85 / 2)


# --- scores


def test_effective_quality_counts_what_was_in_time_over_everything():
    outcome = Outcome(
        np.array([0.1, 0.1, 0.3, math.inf]), np.array([0, 1, 0, -1]), 3, np.array([0.001])
    )
    found = score(outcome, np.array([0.9, 0.8]), limit_s=0.2)
    assert found.slo_attainment == pytest.approx(0.5)
    assert found.effective_quality == pytest.approx((0.9 + 0.8) / 4)
    assert found.mean_quality == pytest.approx((0.9 + 0.8 + 0.9) / 3)
    assert found.p99_ms == math.inf


# --- rivals: a property that each source claims


def _view(arrived, pending=(0, 0, 0), serving=0, now_s=1.0):
    return View(now_s, serving, arrived, pending)


def test_jellyfish_takes_the_most_accurate_that_bears_the_load():
    capacities = [variant.capacity_rps(LIMIT_S) for variant in LADDER.variants]
    assert Jellyfish(SETTING).choose(_view(10)) == 0
    assert Jellyfish(SETTING).choose(_view(int(capacities[0]))) == 1  # within 5 %: not enough
    assert Jellyfish(SETTING).choose(_view(10**6)) == 2


def test_model_switching_leaves_the_budget_under_the_load_of_its_table():
    bears = [bears_rps(v.table_s.tobytes(), LIMIT_S, 0.01) for v in LADDER.variants]
    capacities = [variant.capacity_rps(LIMIT_S) for variant in LADDER.variants]
    assert bears == sorted(bears)
    assert all(0.3 * c < b <= c for b, c in zip(bears, capacities, strict=True))
    policy = ModelSwitching(SETTING)
    assert policy.choose(_view(int(bears[0]) - 5)) == 0
    assert policy.choose(_view(int(bears[0]) - 5 + int(bears[1]) - 5, now_s=2.0)) == 1


def test_a_backlog_of_work_is_answered_by_a_faster_variant():
    policy = Backlog(SETTING)
    assert policy.choose(_view(1)) == 0
    assert policy.choose(_view(2, pending=(40, 0, 0), now_s=1.05)) != 0


def test_pressure_moves_to_cheaper_variants_as_the_queue_grows():
    policy = Pressure(SETTING)
    choices = [
        policy.choose(_view(tick, (waiting, 0, 0), now_s=0.02 * tick))
        for tick, waiting in enumerate((0, 2, 4, 8, 16, 32, 64), start=1)
    ]
    assert choices[0] == 0
    assert choices[-1] == 2
    assert choices == sorted(choices)


def test_infaas_goes_down_in_quality_at_once_and_up_after_twenty_calm_seconds():
    policy, arrived = Infaas(SETTING), 10**4
    assert policy.choose(_view(arrived, serving=0)) == 2
    wishes = []
    for second in range(2, 27):
        arrived += 5
        wishes.append(policy.choose(_view(arrived, serving=2, now_s=float(second))))
    assert wishes[:19] == [None] * 19
    assert wishes[19] == 0


@pytest.mark.parametrize(("policy", "period"), [(InfAdapter, 30), (Proteus, 10)])
def test_a_programme_is_solved_in_its_period_only(policy, period):
    solver = policy(SETTING)
    views = [_view(5 * second, now_s=float(second)) for second in range(1, 62)]
    wishes = [solver.choose(view) for view in views]
    solved = [second for second, wish in enumerate(wishes) if wish is not None]
    assert solved == list(range(0, 61, period))


def test_a_programme_takes_the_most_accurate_that_bears_the_demand():
    for policy in (InfAdapter, Proteus):
        assert policy(SETTING).choose(_view(5)) == 0
        assert policy(SETTING).choose(_view(10**6)) == 2


def test_alert_follows_a_slow_down_within_some_batches():
    policy, arrived = Alert(SETTING), 0
    usual_s = LADDER.variants[0].service_s(4)
    choices = []
    for tick, factor in enumerate((1.0,) * 20 + (8.0,) * 20, start=1):
        arrived += 2
        ended = [(0, 4, factor * usual_s)] * 2
        choices.append(policy.choose(View(0.05 * tick, 0, arrived, (0, 0, 0), ended)))
    assert choices[19] == 0
    assert choices[-1] != 0


# --- the whole


def test_a_replay_compares_all_policies_on_the_same_arrivals(bursty):
    plan = Plan(bursty.window(0.0, 20.0), LADDER, LIMIT_S)
    policies = possible(plan)
    document = replay(plan, policies, (1, 2), jobs=1)
    found = {one["name"]: one for one in document["policies"]}
    assert tuple(found) == policies
    json.dumps(document, allow_nan=False)
    assert found["fixed:fastest"]["headroom_captured"] == pytest.approx(0.0)
    assert found["fixed:fastest"]["slo_attainment"] > 0.99
    assert found["fixed:best"]["slo_attainment"] < 0.9  # it is buried
    assert found["governor"]["slo_attainment"] > 0.99
    assert 0.97 < found["governor"]["coverage"] <= 1.0
    assert found["governor"]["stated_over_p99"] > 0.5
    assert found["backlog"]["coverage"] is None  # it states nothing
    assert found["governor"]["effective_quality"] > found["fixed:fastest"]["effective_quality"]
    others = {*DISPATCHERS, LATE, LATE_COLD}  # what binds late can be better than any alias
    same_hands = [one for one in document["policies"] if one["name"] not in others]
    best = max(one["effective_quality"] for one in same_hands)
    assert found["clairvoyant"]["effective_quality"] == best
    assert all(found[name]["idealised"] for name in (*DISPATCHERS, "clairvoyant"))
    for one in document["policies"]:
        assert one["effective_quality"] < document["oracle"]["effective_quality"] + 0.005
    assert 0.0 < found["governor"]["ci95"]["effective_quality"] < 0.5  # two seeds


def test_a_replay_is_the_same_every_time(bursty):
    plan = Plan(bursty.window(0.0, 20.0), LADDER, LIMIT_S)
    first, again = (replay(plan, ("governor",), (3,), jobs=1) for _ in range(2))
    for document in (first, again):
        del document["policies"][0]["decision_ms"]
    assert first == again


def test_a_drift_costs_those_who_do_not_follow_it(bursty):
    calm = replay(Plan(bursty, LADDER, LIMIT_S), ("jellyfish",), (1,), jobs=1)
    drift = Plan(bursty, LADDER, LIMIT_S, slowdown=1.5)
    slowed = replay(drift, ("jellyfish",), (1,), jobs=1)
    before, after = (d["policies"][0]["slo_attainment"] for d in (calm, slowed))
    assert after < before
    assert slowed["oracle"]["effective_quality"] < calm["oracle"]["effective_quality"]


def test_what_cannot_be_replayed_is_said(bursty):
    with pytest.raises(ReplayError, match="fewer than two variants"):
        replay(Plan(bursty, LADDER, 0.001), ("governor",), (1,))
    with pytest.raises(ReplayError, match="unknown policy 'clever'"):
        replay(Plan(bursty, LADDER, LIMIT_S), ("clever",), (1,))


def test_a_timeline_agrees_with_the_score(bursty):
    plan = Plan(bursty, LADDER, LIMIT_S)
    load = plan.load()
    run = run_one(plan, load, "fixed:best", 1)
    arrivals_s = load.arrivals_s(1)
    step = (arrivals_s / load.duration_s * len(run.effective_quality)).astype(int)
    weights = np.bincount(step, minlength=len(run.effective_quality))
    mean = np.nansum(weights * run.effective_quality) / weights.sum()
    assert mean == pytest.approx(run.score.effective_quality)
    assert run.effective_quality[0] < run.effective_quality[-1]  # the first burst buries it


def test_the_picture_is_drawn(bursty, tmp_path):
    plan = Plan(bursty.window(0.0, 20.0), LADDER, LIMIT_S)
    document = replay(plan, ("governor", "jellyfish"), (1, 2), jobs=1)
    rates = document["timeline"]["load_rps"]
    assert sum(rates) / len(rates) == pytest.approx(plan.load().rate_rps.mean())
    draw(tmp_path / "replay.png", document)
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    ladder, trace, out = tmp_path / "two.yaml", tmp_path / "t.csv", tmp_path / "out.json"
    ladder.write_text(YAML)
    trace.write_text("second,requests\n" + "".join(f"{i},{20 + 5 * i}\n" for i in range(10)))
    arguments = ["replay", "--trace", str(trace), "--ladder", str(ladder), "--slo", "150ms"]
    options = ["--policies", "governor,fixed:best", "--seeds", "2", "--jobs", "1"]
    assert main([*arguments, *options, "--json", str(out), "--drift", "1.2@50%"]) == 0
    printed = capsys.readouterr().out
    assert "| governor |" in printed
    document = json.loads(out.read_text())
    assert [one["name"] for one in document["policies"]] == ["governor", "fixed:best"]
    assert (document["trace"], document["ladder"], document["slo_ms"]) == ("t", "two", 150.0)
    assert main([*arguments, *options, "--json", str(tmp_path / "none" / "out.json")]) == 1
    assert "none/out.json" in capsys.readouterr().err
    assert main([*arguments, *options, "--plot", str(tmp_path / "out.what")]) == 1
    assert "out.what" in capsys.readouterr().err
    assert main([*arguments, "--policies", "fixed:best", "--seeds", "2"]) == 0  # on all cores
    assert main([*arguments, "--window", "50:60"]) == 1
    assert "no 50:60 in it" in capsys.readouterr().err
    assert main([*arguments, "--drift", "a lot"]) == 2
    assert "is not a number and a share; write 1.3@50%" in capsys.readouterr().err
