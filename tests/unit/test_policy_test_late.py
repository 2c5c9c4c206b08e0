"""`governor policy test` of a policy with a dispatcher: its requests are bound late there, too."""

import json
from dataclasses import replace

import numpy as np
import pytest

from controller.cli.main import main
from controller.policy.load import parse_policy
from controller.twin.drive import policy_for
from controller.twin.ladder import TwinVariant, load_ladder
from controller.twin.late import drive_late, late_policy
from controller.twin.load import Load
from controller.twin.rehearsal import cast, rehearse
from controller.twin.scene import from_files
from controller.twin.server import Physics, SimulatedTriton
from controller.twin.trace import Trace

ALIAS = """
version: 1
triton: {grpc: "127.0.0.1:8001", metrics: "http://127.0.0.1:8002/metrics"}
models:
  chat:
    objective: {latency: 60ms, percentile: 99}
    client_max_batch: 8
    variants:
      large: {model: m_large, quality: 0.95}
      little: {model: m_little, quality: 0.85}
"""
LATE = ALIAS.replace(
    "    client_max_batch: 8\n",
    "    client_max_batch: 8\n    dispatcher: {model: chat_dispatcher, key_file: /dev/null}\n",
)
OTHER = """
  vision:
    objective: {latency: 150ms, percentile: 95}
    variants: {only: {model: m_only, quality: 0.9}}
"""
LADDER = """
variants:
  - {name: large, accuracy: 95, latency_ms: {1: 7, 8: 28}}
  - {name: little, accuracy: 85, latency_ms: {1: 1.5, 8: 5}}
  - {name: only, accuracy: 90, latency_ms: {1: 2, 8: 8}}
"""
TABLES_S = {"large": 0.004 + 0.003 * np.arange(1, 9), "little": 0.001 + 0.0005 * np.arange(1, 9)}


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ladder") / "ladder.yaml"
    path.write_text(LADDER)
    return path


def told_of(text, ladder, rate_rps, seconds=20, in_force=()):
    policy = parse_policy(text, "p.yaml")
    trace = Trace("t", np.full(seconds, float(rate_rps)), 1.0)
    under = from_files([policy], {None: trace}, {None: load_ladder(ladder)}, None)
    of = cast(policy, under, in_force)
    (document,) = rehearse([of], under, [1], jobs=1)["policies"]
    return document


def test_it_is_bound_late_where_the_policy_says_so(ladder):
    # 250 requests a second are as many as the large one bears with whole batches only.
    late, alias = (told_of(text, ladder, 250.0)["models"][0] for text in (LATE, ALIAS))
    assert late["bound_late"]
    assert not alias["bound_late"]
    assert late["slo_attainment"] >= 0.99
    assert late["effective_quality"] > alias["effective_quality"] + 0.01
    assert sum(late["variants"].values()) == pytest.approx(1.0)


def test_its_answers_are_told_by_requests_and_not_by_time(ladder, tmp_path, capsys):
    seconds = "\n".join(f"{second},100" for second in range(20))
    (tmp_path / "trace.csv").write_text(f"second,requests\n{seconds}\n")
    (tmp_path / "p.yaml").write_text(LATE)
    files = ["--trace", str(tmp_path / "trace.csv"), "--ladder", str(ladder), "--seeds", "1"]
    assert main(["policy", "test", str(tmp_path / "p.yaml"), *files, "--jobs", "1"]) == 0
    told = capsys.readouterr().out
    assert "answered by large" in told
    assert "time on" not in told


def test_beside_other_models_it_is_said_that_it_is_not(ladder):
    both = told_of(LATE + OTHER, ladder, 50.0)
    assert "dispatcher of chat: tested as if the alias led to a variant" in both["not_simulated"]
    assert [model["bound_late"] for model in both["models"]] == [False, False]
    assert told_of(LATE, ladder, 50.0)["not_simulated"] == []


def test_schedules_hold(ladder):
    night = 'schedules: {n: {from: "00:00", to: "23:59", models: {chat: {variants: [little]}}}}\n'
    (model,) = told_of(LATE + night, ladder, 100.0, in_force=["n"])["models"]
    # Until the first plan is there, the variant of the least quality serves: it is the little one.
    assert model["variants"] == {"large": 0.0, "little": 1.0}


def simulated(seconds=10.0, rate_rps=3000.0):
    """Return a server, and how often it is asked: twice what the little one bears."""
    rng = np.random.default_rng(1)
    came_s = np.sort(rng.random(int(rate_rps * seconds)) * seconds)
    variants = tuple(
        TwinVariant(name, quality, TABLES_S[name])
        for name, quality in (("large", 0.95), ("little", 0.85))
    )
    load = Load(variants, came_s, 1, 0.060, None)
    return SimulatedTriton.shared([load], physics=Physics(), seed=1)


@pytest.mark.parametrize("queue", ["{timeout: 50ms}", "{max_size: 40}"])
def test_the_queue_s_limits_hold(queue):
    server = simulated()
    text = LATE.replace("variants:", f"queue: {queue}\n    variants:", 1)
    (model,) = parse_policy(text, "p.yaml").models
    policy = late_policy(policy_for(server, 0.060, 99.0))
    limited = replace(policy, models=(replace(policy.models[0], queue=model.queue),))
    outcome = drive_late(server, limited, rows=None, profiled=True, duration_s=10.0, seed=1)
    free = drive_late(simulated(), policy, rows=None, profiled=True, duration_s=10.0, seed=1)
    answered = np.isfinite(outcome.latency_s)
    assert np.isfinite(free.latency_s).all()
    assert 0.3 < answered.mean() < 0.7  # twice what it bears
    assert (outcome.served_by[~answered] == -1).all()
    # Who was answered waited 50 ms at most (forty are less), and then for a batch or two.
    assert outcome.latency_s[answered].max() < 0.1
    assert free.latency_s.max() > 1.0


def test_another_policy_is_in_force_from_its_second_on():
    server = simulated(rate_rps=100.0)
    policy = late_policy(policy_for(server, 0.060, 99.0))
    (model,) = policy.models
    night = replace(policy, models=(replace(model, allowed=frozenset({"little"})),))
    told = {"rows": None, "profiled": True, "duration_s": 10.0, "seed": 1}
    outcome = drive_late(server, policy, **told, later=[(5.0, night)])
    came_s = server.arrivals_s()
    large, little = 0, 1
    assert (outcome.served_by[came_s < 4.9] == large).mean() > 0.9
    assert (outcome.served_by[came_s > 5.3] == little).all()


def test_the_report_is_ready_for_json(ladder):
    json.dumps(told_of(LATE, ladder, 50.0))
