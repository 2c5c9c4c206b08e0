"""The pure core: what it decides, why, and what it never does."""

import json
from dataclasses import replace

import numpy as np
import pytest
from bench_server import bursts, run
from hypothesis import given, settings
from hypothesis import strategies as st
from taught_core import LIMIT_S, POLICY, QUALITY, SERVERS, observation, taught

from controller.planning.core import GovernorCore
from controller.planning.decision import Excluded, Reason
from controller.policy.model import (
    Objective,
    StabilityPolicy,
)
from controller.telemetry.observation import (
    BatchSample,
    HostReading,
    ModelReading,
    ProbeDone,
    VariantReading,
)


def test_a_quiet_model_is_served_by_the_best_quality():
    decision = taught().step(observation(5.0))[0]
    assert decision.target == "big"
    assert decision.reason is Reason.STEADY


def test_a_backlog_on_the_serving_variant_is_escaped_at_once():
    core = taught()
    variants = {k: VariantReading(k, ready=True, pending_requests=0) for k in SERVERS}
    variants["m_big"] = VariantReading("m_big", ready=True, pending_requests=25)
    decision = core.step(observation(5.0, variants=variants))[0]
    assert decision.target != "big"
    assert decision.urgent
    assert decision.reason in {Reason.ESCAPE, Reason.RECOVERY}


@pytest.mark.parametrize(
    ("change", "pressing"),
    [
        ({}, True),
        ({"serving": "m_tiny"}, False),  # nothing faster is there
        ({"serving": None}, False),
        ({"switching": True}, False),
        ({"paused": True}, False),
        ({"pinned": "big"}, False),
        ({"held": "moved by hand"}, False),
        ({"advised": True}, False),  # nobody would act on it
    ],
)
def test_what_waits_is_pressing_where_a_faster_variant_could_be_taken(change, pressing):
    core = taught()
    models = {"m": replace(ModelReading("m", "m_big", 0.0, ready=True), **change)}
    waiting = dict.fromkeys(SERVERS, 5)  # 5 rows of 2.8 ms, where 6 ms is a tenth of the objective
    assert core.is_pressing(models, waiting) is pressing
    assert not core.is_pressing(models, dict.fromkeys(SERVERS, 1))
    assert not core.is_pressing(models, {})
    assert not core.is_pressing({}, waiting)


def test_nothing_is_pressing_before_the_variants_are_known():
    models = {"m": ModelReading("m", "m_big", 0.0, ready=True)}
    assert not GovernorCore(POLICY).is_pressing(models, dict.fromkeys(SERVERS, 500))


def test_a_variant_that_cannot_keep_up_with_a_rising_load_is_not_taken():
    def targets(requests: int) -> set[str | None]:
        core, found = taught(), []
        for tick in range(40):
            served = dict.fromkeys(SERVERS, 0) | {"m_tiny": requests}
            variants = {
                k: VariantReading(k, True, 0, completed_requests=n, completed_rows=2 * n)
                for k, n in served.items()
            }
            models = {"m": ModelReading("m", "m_tiny", 0.0, ready=True)}
            found.append(
                core.step(observation(5.0 + tick * 0.02, variants=variants, models=models))
            )
        return {decision[0].target for decision in found[20:]}

    # 2 rows of 1.2 ms: it is full at some 400 requests a second, 8 a tick of 20 ms. A little
    # beyond, it may take turns with a faster one: glances tell when to leave.
    assert "mid" in targets(6)
    assert "mid" not in targets(14)


def test_nothing_known_means_the_fastest_by_rank():
    decision = GovernorCore(POLICY).step(observation(0.0))[0]
    assert decision.target == "tiny"
    assert decision.reason is Reason.IGNORANCE


def test_when_nothing_meets_the_objective_the_fastest_drains_the_backlog():
    core = taught()
    variants = {k: VariantReading(k, ready=True, pending_requests=400) for k in SERVERS}
    decision = core.step(observation(5.0, variants=variants))[0]
    assert (decision.target, decision.reason) == ("tiny", Reason.RECOVERY)


@pytest.mark.parametrize(
    ("reading", "target", "reason"),
    [
        (ModelReading("m", "m_big", pinned="mid"), "mid", Reason.PINNED),
        (ModelReading("m", "m_mid", paused=True), None, Reason.PAUSED),
        (ModelReading("m", "m_mid", paused=True, released=True), None, Reason.RELEASED),
        (ModelReading("m", "m_mid", held="foreign change"), None, Reason.HELD),
        (ModelReading("m", "m_mid", pinned="big", held="foreign change"), None, Reason.HELD),
        (ModelReading("m", "m_mid", pinned="big", paused=True), "big", Reason.PINNED),
    ],
)
def test_operators_and_foreign_changes_come_before_the_choice(reading, target, reason):
    decision = taught().step(observation(5.0, models={"m": reading}))[0]
    assert (decision.target, decision.reason) == (target, reason)


def test_advice_that_nobody_follows_is_given_again_and_uses_up_no_limit():
    # The wish stays the same: neither dwell nor rate limit answer for what was not done.
    core = taught()
    core.set_policy(replace(POLICY, stability=StabilityPolicy(min_dwell_s=0.5)))
    reading = ModelReading("m", "m_tiny", 0.0, ready=True)
    told = [
        core.step(observation(5.0 + 0.02 * i, models={"m": replace(reading, advised=True)}))[0]
        for i in range(5)
    ]
    assert {(d.target, d.reason, d.advised) for d in told} == {("big", Reason.BEST_FEASIBLE, True)}
    acted = [core.step(observation(6.0 + 0.02 * i, models={"m": reading}))[0] for i in range(2)]
    assert [d.reason for d in acted] == [Reason.BEST_FEASIBLE, Reason.DWELL]
    assert not any(d.advised for d in acted)


def test_old_readings_change_nothing():
    decision = taught().step(observation(5.0, readings_age_s=3.0))[0]
    assert (decision.target, decision.reason) == (None, Reason.STALE_DATA)


def test_a_variant_that_is_not_ready_or_unusable_is_never_chosen():
    variants = {k: VariantReading(k, ready=k != "m_big", pending_requests=0) for k in SERVERS}
    reading = ModelReading("m", "m_tiny", 0.0, unusable=frozenset({"m_mid"}))
    decision = taught().step(observation(9.0, variants=variants, models={"m": reading}))[0]
    assert decision.target == "tiny"
    assert {c.variant: c.excluded for c in decision.candidates} == {
        "tiny": None,
        "mid": Excluded.UNUSABLE,
        "big": Excluded.NOT_READY,
    }


def test_bounds_that_leave_nothing_are_said():
    reading = ModelReading("m", None, unusable=frozenset(SERVERS))
    decision = taught().step(observation(9.0, models={"m": reading}))[0]
    assert (decision.target, decision.reason) == (None, Reason.NO_CHOICE)


def test_the_serving_variant_may_stay_while_an_operation_on_it_is_under_way():
    reading = ModelReading("m", "m_tiny", 0.0, unusable=frozenset(SERVERS))
    decision = taught().step(observation(9.0, models={"m": reading}))[0]
    assert (decision.target, decision.reason) == ("tiny", Reason.STEADY)


def test_an_overload_ends_on_the_fastest_and_stays_there():
    """A slower variant with an empty queue must not tempt: it would build a second backlog."""
    core = taught()
    variants = {
        "m_tiny": VariantReading("m_tiny", True, 300, completed_requests=40, completed_rows=80),
        "m_mid": VariantReading("m_mid", True, 0),
        "m_big": VariantReading("m_big", True, 0),
    }
    models = {"m": ModelReading("m", "m_tiny", 4.0, ready=True)}
    host = HostReading(cpu_ratio=0.97, cpu_count=2)
    for tick in range(30):
        seen = observation(5.0 + tick * 0.02, variants=variants, models=models, host=host)
        decision = core.step(seen)[0]
        assert decision.target == "tiny", decision
    assert decision.reason is Reason.RECOVERY


def test_a_moment_without_arrivals_does_not_end_an_escape_while_requests_wait():
    """While full batches are executed the counters show few arrivals, however many there are."""
    core = taught()
    models = {"m": ModelReading("m", "m_tiny", 4.0, ready=True)}
    targets = []
    for tick in range(60):
        dip = tick % 10 > 6
        waiting, done = (30, 0) if dip else (30, 20)
        variants = {k: VariantReading(k, True, 0) for k in SERVERS}
        variants["m_tiny"] = VariantReading("m_tiny", True, waiting, done, 2 * done, done // 4)
        seen = observation(5.0 + tick * 0.02, variants=variants, models=models)
        targets.append(core.step(seen)[0].target)
    assert set(targets) == {"tiny"}


def _one_ends(variants, name):
    """Return readings in which a request ended on one variant, and nobody waits."""
    ended = {"completed_requests": 1, "completed_rows": 1, "executions": 1, "compute_s": 0.003}
    calm = {k: replace(one, pending_requests=0) for k, one in variants.items()}
    return {**calm, name: replace(calm[name], **ended)}


def test_dwell_holds_a_move_towards_quality_but_never_an_escape():
    policy = replace(POLICY, stability=StabilityPolicy(min_dwell_s=10.0))
    core = GovernorCore(policy)
    core.restore(taught().state())
    loaded = {k: VariantReading(k, ready=True, pending_requests=0) for k in SERVERS}
    loaded["m_big"] = replace(loaded["m_big"], pending_requests=25)
    for tick in range(100):  # else who comes after the escape came in a lull
        core.step(observation(2.9 + tick * 0.02, variants=_one_ends(loaded, "m_big")))
    escape = core.step(observation(5.0, variants=loaded))[0]
    assert escape.urgent
    fast = {"m": ModelReading("m", f"m_{escape.target}", 5.0, ready=True)}
    held, goes_on = None, _one_ends(loaded, f"m_{escape.target}")
    for tick in range(100):
        held = core.step(observation(5.1 + tick * 0.02, models=fast, variants=goes_on))[0]
    assert held is not None
    assert held.reason is Reason.DWELL
    assert held.target == escape.target
    jammed = {k: VariantReading(k, ready=True, pending_requests=0) for k in SERVERS}
    jammed[f"m_{escape.target}"] = replace(jammed[f"m_{escape.target}"], pending_requests=200)
    again = core.step(observation(7.5, models=fast, variants=jammed))[0]
    assert again.urgent


@pytest.mark.parametrize("seed", [1, 2])
def test_under_bursts_it_beats_every_fixed_variant_and_meets_the_objective(seed):
    def load():
        return bursts(25.0, 70.0, 900.0, seed)

    fixed = {}
    for name in SERVERS:
        result = run(POLICY, SERVERS, load(), core=None, serving=name, seed=seed)
        fixed[name] = result.effective_quality(LIMIT_S, QUALITY)
    core = GovernorCore(POLICY)
    result = run(POLICY, SERVERS, load(), core=core, serving="m_tiny", seed=seed)
    assert result.attainment(LIMIT_S) >= 0.99
    assert result.effective_quality(LIMIT_S, QUALITY) > max(fixed.values())


@pytest.mark.parametrize("ablation", ["frozen", "shuffled"])
def test_a_predictor_that_does_not_learn_does_worse(ablation):
    load = bursts(25.0, 70.0, 900.0, 1)
    learned = run(POLICY, SERVERS, load, core=GovernorCore(POLICY), serving="m_tiny")
    with_learning = learned.effective_quality(LIMIT_S, QUALITY)
    load = bursts(25.0, 70.0, 900.0, 1)
    core = GovernorCore(POLICY, ablation=ablation)
    crippled = run(POLICY, SERVERS, load, core=core, serving="m_tiny")
    assert crippled.effective_quality(LIMIT_S, QUALITY) < with_learning


def test_shuffled_mixes_up_times_not_which_variants_were_measured():
    core = GovernorCore(POLICY, ablation="shuffled")
    samples = (BatchSample("m_tiny", 1, 5, 0.002, 0.1),)
    decision = core.step(observation(1.0, batch_samples=samples))[0]
    assert {c.variant: c.known for c in decision.candidates} == {
        "tiny": True,
        "mid": False,
        "big": False,
    }


def test_the_same_observations_give_the_same_decisions():
    def decide():
        load = bursts(6.0, 70.0, 900.0, 3)
        return run(POLICY, SERVERS, load, core=GovernorCore(POLICY), serving="m_tiny").decisions

    assert decide() == decide()


def test_what_was_learned_survives_as_json_and_broken_parts_are_told():
    learned = json.loads(json.dumps(taught().state()))
    core = GovernorCore(POLICY)
    assert core.restore(learned) == ()
    assert core.step(observation(5.0))[0].reason is Reason.STEADY
    learned["service"] = {"models": 7}
    problems = GovernorCore(POLICY).restore(learned)
    assert len(problems) == 1
    assert "service times" in problems[0]
    assert GovernorCore(POLICY).restore({"format": 99}) != ()


def test_a_new_policy_keeps_what_was_learned():
    core = taught()
    strict = replace(POLICY.models[0], objective=Objective(0.030, 99.0))
    core.set_policy(replace(POLICY, models=(strict,)))
    assert all(c.known for c in core.step(observation(5.0))[0].candidates)


_counts = st.integers(-5, 10**7)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "pending": st.lists(st.none() | st.integers(0, 10**7), min_size=3, max_size=3),
                "done": st.lists(st.integers(0, 10**7), min_size=3, max_size=3),
                "ready": st.lists(st.sampled_from([True, False, None]), min_size=3, max_size=3),
                "serving": st.sampled_from([None, *SERVERS, "foreign"]),
                "window": st.floats(0.0, 100.0),
                "age": st.none() | st.floats(0.0, 10.0),
            }
        ),
        max_size=12,
    )
)
def test_whatever_is_observed_a_decision_stays_within_its_bounds(steps):
    core = GovernorCore(POLICY)
    for i, step in enumerate(steps):
        names = list(SERVERS)
        variants = {
            k: VariantReading(
                k, step["ready"][j], step["pending"][j], step["done"][j], step["done"][j]
            )
            for j, k in enumerate(names)
        }
        seen = observation(
            i * 0.02,
            variants=variants,
            models={"m": ModelReading("m", step["serving"])},
            window_s=step["window"],
            readings_age_s=step["age"],
        )
        decision = core.step(seen)[0]
        usable = {k[2:] for j, k in enumerate(names) if step["ready"][j] is not False}
        assert decision.target is None or decision.target in usable | {decision.serving}
        assert isinstance(decision.reason, Reason)
        assert len(decision.candidates) == len(names)
        assert np.isfinite(decision.rate_rps)


@pytest.mark.parametrize("probed", [False, True])
def test_without_traces_the_mean_latency_of_a_tick_calibrates(probed):
    core = taught()
    for tick in range(100):
        variants = {k: VariantReading(k, ready=True, pending_requests=0) for k in SERVERS}
        variants["m_big"] = VariantReading(
            "m_big", True, 0, completed_requests=2, completed_rows=2, queue_s=0.080, compute_s=0.010
        )
        # What a probe of ours took tells nothing of a client's request.
        probes = (ProbeDone("m_big", 2),) if probed and tick % 10 == 0 else ()
        core.step(observation(5.0 + tick * 0.02, variants=variants, probes=probes))
    _, factors = core.calibration("m")
    assert (factors["m_big"] > 1.5) is not probed


@pytest.mark.parametrize("shown_before_their_answer", [(), (8,), (1, 3), (1, 3, 8)])
def test_a_probe_is_no_clients_request_whichever_tells_of_it_first(shown_before_their_answer):
    core, sizes = GovernorCore(POLICY), []
    idle = {k: VariantReading(k, ready=True, pending_requests=0) for k in SERVERS}
    for tick in range(0, 600, 3):
        asked_of = core.probes(observation(tick * 0.1))
        shown, answers, measured = dict(idle), (), ()
        for probe in asked_of:
            shown[probe.model] = VariantReading(
                probe.model, True, 0, completed_requests=1, completed_rows=probe.rows, executions=1
            )
            answers = (ProbeDone(probe.model, probe.rows),)
            taken_s = SERVERS[probe.model].service_s(probe.rows)
            measured = (BatchSample(probe.model, probe.rows, 1, taken_s, 0.1),)
            sizes.append(probe.rows)
        first, second = {"variants": shown}, {"probes": answers, "batch_samples": measured}
        if sizes and sizes[-1] not in shown_before_their_answer:
            first, second = second, first
        core.step(observation((tick + 1) * 0.1, **first))
        decision = core.step(observation((tick + 2) * 0.1, **second))[0]
    assert sizes.count(8) == sizes.count(1) == 9
    assert decision.rows_per_request == pytest.approx(1.0)


def test_a_probe_that_was_lost_takes_no_clients_request_away():
    core = GovernorCore(POLICY)
    asked = {p.model for tick in range(20) for p in core.probes(observation(tick * 0.5))}
    assert "m_big" in asked  # and no counter ever showed it
    variants = {k: VariantReading(k, ready=True, pending_requests=0) for k in SERVERS}
    variants["m_big"] = VariantReading("m_big", True, 0, 1, completed_rows=8, executions=1)
    decision = core.step(observation(30.0, variants=variants))[0]
    assert decision.rows_per_request == pytest.approx(8.0)


def test_a_probe_of_a_variant_that_a_new_policy_drops_is_forgotten_and_others_are_not():
    core = GovernorCore(POLICY)
    asked = {p.model for tick in range(20) for p in core.probes(observation(tick * 0.5))}
    assert asked == set(SERVERS)
    (model,) = POLICY.models
    fewer = replace(model, variants=model.variants[1:])  # without m_tiny
    core.set_policy(replace(POLICY, models=(fewer,)))
    variants = {k: VariantReading(k, ready=True, pending_requests=0) for k in SERVERS}
    variants["m_big"] = VariantReading("m_big", True, 0, 1, completed_rows=8, executions=1)
    decision = core.step(observation(10.0, variants=variants))[0]
    assert [c.model for c in decision.candidates] == ["m_mid", "m_big"]
    assert decision.rows_per_request == pytest.approx(1.0)  # it is taken for the probe


def test_samples_that_wait_to_be_learned_outlive_a_new_policy():
    core = GovernorCore(POLICY)
    first, last = (BatchSample(model, 1, 5, 0.004, 0.1) for model in ("m_big", "m_mid"))
    core.step(replace(observation(0.0), batch_samples=(*[first] * 500, last)))
    core.set_policy(replace(POLICY, sha256="another"))
    known = {c.model: c.known for c in core.step(observation(0.02))[0].candidates}
    assert known["m_mid"]  # it was the last of more than are learned at once


def test_reasons_are_append_only():
    # Journals of the past hold these words: never rename or remove one.
    assert [reason.value for reason in Reason][:13] == [
        "best_feasible",
        "escape",
        "recovery",
        "ignorance",
        "fallback",
        "stale_data",
        "dwell",
        "rate_limit",
        "pinned",
        "paused",
        "held",
        "no_choice",
        "steady",
    ]
