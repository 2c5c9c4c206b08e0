"""An overload: what the policy says of queues, what is refused, and how it is counted and told."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest

from controller.actuation.queueing import (
    is_pending,
    look_at_folder,
    may_reload,
    queue_view,
    set_up,
    take_back,
)
from controller.actuation.remembered import Memory, Override
from controller.actuation.state import Timing, Variant
from controller.daemon.alarms import Alarms
from controller.interfaces.views import health_view
from controller.planning.scorekeeper import Scorekeeper
from controller.policy.load import PolicyError, parse_policy
from controller.policy.model import QueuePolicy
from controller.policy.render import policy_to_yaml
from controller.telemetry.observation import VariantReading

TEXT = """\
version: 1
triton: {grpc: 127.0.0.1:8001}
models:
  chat:
    objective: {latency: 60ms, percentile: 99}
    queue: {timeout: 40ms, max_size: 100, priority_levels: 3, default_priority_level: 2}
    variants: {best: {model: best, quality: 0.95}}
  other:
    objective: {latency: 60ms, percentile: 99}
    variants: {only: {model: only, quality: 0.9}}
"""


def test_a_policys_queue_is_read_and_told_as_it_is():
    policy = parse_policy(TEXT, "p.yaml")
    assert policy.model("chat").queue == QueuePolicy(0.04, 100, None, 3, 2)
    assert policy.model("other").queue is None
    again = parse_policy(policy_to_yaml(policy), "p.yaml")
    assert replace(again, sha256="") == replace(policy, sha256="")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("default_priority_level: 2", "default_priority_level: 4", "6:"),
        (", priority_levels: 3", "", "needs priority_levels"),
        (
            "{timeout: 40ms, max_size: 100, priority_levels: 3, default_priority_level: 2}",
            "{}",
            "says nothing",
        ),
        ("{model: only,", "{model: best,", "another queue"),
        ("40ms", "40", "unit"),
    ],
)
def test_a_queue_that_cannot_be_is_refused_with_its_place(old, new, told):
    with pytest.raises(PolicyError, match=told):
        parse_policy(TEXT.replace(old, new), "p.yaml")


def test_two_models_may_share_a_variant_that_both_want_the_same_of():
    text = TEXT.replace("{model: only,", "{model: best,").replace(
        "    variants: {only", "    queue: {max_size: 9}\n    variants: {only"
    )
    with pytest.raises(PolicyError, match="another queue"):
        parse_policy(text, "p.yaml")
    queue = TEXT.splitlines()[5].strip()
    parse_policy(text.replace("queue: {max_size: 9}", queue), "p.yaml")


DISK = {
    "name": "best",
    "max_batch_size": 8,
    "instance_group": [{"count": 1}],
    "dynamic_batching": {
        "preferred_batch_size": [4, 8],
        "default_queue_policy": {"allow_timeout_override": True},
        "priority_queue_policy": {"1": {}},
    },
}
QUEUE = QueuePolicy(timeout_s=0.04, priority_levels=3)


def server(*, alias_ready: bool = True, acts: bool = True) -> SimpleNamespace:
    return SimpleNamespace(
        memory=Memory(None),
        users=lambda _: iter([SimpleNamespace(ready=alias_ready)]),
        clock=lambda: 100.0,
        acted_on=lambda: {"best"} if acts else set(),
        aims={},
        free_memory=None,
    )


def loaded(variant: Variant) -> None:
    """What a load of its override leaves."""
    variant.config = dict(variant.override.sent)
    variant.override = replace(variant.override, expected=variant.config)
    variant.reapply = False


def test_the_queue_is_laid_over_the_config_in_the_folder_and_taken_off_again():
    there = server()
    variant = Variant("best", ready=True, config=DISK)
    assert not is_pending(there, variant)
    assert queue_view(there, variant) is None
    variant.queue = QUEUE
    assert is_pending(there, variant)
    assert "pending" in queue_view(there, variant)
    assert set_up(there, variant)
    sent = variant.override.sent
    assert sent["dynamic_batching"] == {
        "preferred_batch_size": [4, 8],
        "default_queue_policy": {
            "allow_timeout_override": True,
            "default_timeout_microseconds": "40000",
        },
        "priority_levels": "3",
        "default_priority_level": "3",
    }
    assert {k: v for k, v in sent.items() if k != "dynamic_batching"} == {
        k: v for k, v in DISK.items() if k != "dynamic_batching"
    }
    assert there.memory.overrides["best"] == variant.override
    assert "pending" in queue_view(there, variant)  # until it is loaded
    loaded(variant)
    assert queue_view(there, variant) == "set"
    assert not is_pending(there, variant)
    assert not set_up(there, variant)
    # A day later, with other words for the same: nothing is to be done after the file was read.
    kept = json.loads(json.dumps(variant.override.sent))
    variant.override = replace(variant.override, sent=kept)
    assert not is_pending(there, variant)
    variant.queue = None
    assert set_up(there, variant)
    assert variant.override.sent == DISK


def test_what_operators_programs_changed_beside_it_is_kept():
    there = server()
    two = [{"count": 2}]
    variant = Variant("best", ready=True, config={**DISK, "instance_group": two}, queue=QUEUE)
    variant.override = Override({**DISK, "instance_group": two}, {}, DISK)
    assert set_up(there, variant)
    loaded(variant)
    assert variant.config["instance_group"] == two
    look_at_folder(there, variant)
    assert variant.override is not None  # of it not all is the policy's
    take_back(there, variant, variant.override, "no")
    assert variant.override.sent == {**DISK, "instance_group": two}
    assert "does not load it" in queue_view(there, variant)
    assert not is_pending(there, variant)
    variant.queue = replace(QUEUE, timeout_s=0.05)
    assert is_pending(there, variant)


@pytest.mark.parametrize("served", [True, False])
def test_a_folder_that_may_have_changed_is_looked_at_where_clients_need_not_wait_for_it(served):
    there = server(alias_ready=served)
    variant = Variant("best", config=DISK, queue=QUEUE)
    assert set_up(there, variant)
    loaded(variant)
    look_at_folder(there, variant)
    assert (variant.override is None) is served
    assert ("best" in there.memory.overrides) is not served


def test_a_config_without_batching_has_no_queue_to_limit():
    config = {key: value for key, value in DISK.items() if key != "dynamic_batching"}
    there = server()
    variant = Variant("best", ready=True, config=config, queue=QUEUE)
    assert not is_pending(there, variant)
    assert "no dynamic_batching" in queue_view(there, variant)


def a_server(**alias) -> SimpleNamespace:
    """best serves since long, fast is its way out; both are loaded, and QUEUE is wanted."""
    chat = SimpleNamespace(
        **{
            "ready": True,
            "known": True,
            "switching": False,
            "unsettled": None,
            "proof": None,
            "held": None,
            "order": ("fast", "best"),
            "target": "best",
            "since_s": 0.0,
            **alias,
        }
    )
    variants = {
        name: Variant(name, ready=True, proven=True, config={**DISK, "name": name}, queue=QUEUE)
        for name in ("fast", "best")
    }
    return SimpleNamespace(
        memory=Memory(None),
        users=lambda _: iter([chat]),
        clock=lambda: 100.0,
        acted_on=lambda: {"fast", "best"},
        serving=lambda: {chat.target},
        variants=variants,
        timing=Timing(),
        free_memory=None,
        held=list,
        aims={},
    )


def test_an_idle_variant_is_reloaded_for_its_queue_in_calm_only():
    calm = a_server()
    assert may_reload(calm, calm.variants["fast"])
    assert not may_reload(calm, calm.variants["best"])  # it serves
    for state in (
        {"switching": True},
        {"proof": object()},
        {"unsettled": object()},
        {"held": "foreign change"},
        {"known": False},
        {"ready": False},
        {"since_s": 99.0},  # it may be needed again: it is the only way out
    ):
        there = a_server(**state)
        assert not may_reload(there, there.variants["fast"]), state
    # The slower one is no way out: it need not wait.
    there = a_server(target="fast", since_s=99.0)
    assert may_reload(there, there.variants["best"])
    # With another way out the fastest need not wait either.
    there = a_server(order=("fast", "fair", "best"), since_s=99.0)
    there.variants["fair"] = Variant("fair", ready=True, proven=True, config=DISK)
    assert may_reload(there, there.variants["fast"])


def test_where_there_is_no_memory_for_two_a_variant_stays_a_way_out_as_it_is():
    there = a_server()
    there.free_memory = SimpleNamespace(why_not=lambda *_: "memory is short", lost=frozenset())
    assert not may_reload(there, there.variants["fast"])
    assert there.variants["fast"].error is None
    assert not there.variants["fast"].reapply


def test_what_is_not_acted_on_is_not_said_to_be_on_its_way():
    there = server(acts=False)
    assert "only advised on" in queue_view(there, Variant("best", config=DISK, queue=QUEUE))


def test_a_queue_that_was_refused_is_tried_again_as_it_may_have_been_for_another_reason():
    there = server()
    variant = Variant("best", ready=True, config=DISK, queue=QUEUE)
    assert set_up(there, variant)
    take_back(there, variant, variant.override, "CUDA out of memory")
    assert not is_pending(there, variant)
    there.clock = lambda: 100.0 + 3600.0
    assert is_pending(there, variant)


def reading(completed: int, failed: int = 0, rejected: int = 0) -> VariantReading:
    return VariantReading(
        "best",
        ready=True,
        pending_requests=0,
        completed_requests=completed,
        failed_requests=failed,
        rejected_requests=rejected,
    )


def test_requests_that_fail_are_counted_beside_those_of_which_few_are_traced():
    keeper = Scorekeeper()
    for tick in range(600):  # a minute: 80 of 100 a second answered, one of 8 of them traced
        now_s = tick / 10.0
        keeper.count(now_s, [reading(8, failed=2, rejected=2)])
        keeper.add(now_s, 0.01 if tick % 10 else 0.2, 0.9)
    score = keeper.score(59.95, 0.06, 99.0)
    assert score.attainment == pytest.approx(0.8 * 0.9)
    assert score.effective_quality == pytest.approx(0.8 * 0.9 * 0.9)
    assert score.mean_quality == pytest.approx(0.9)
    assert score.rejected_rps == pytest.approx(20.0, rel=0.25)
    assert score.rejected_total == 1200
    assert keeper.score(66.0, 0.06, 99.0).rejected_rps == 0.0
    assert keeper.score(200.0, 0.06, 99.0).attainment is None


def test_of_a_variant_that_two_models_share_each_counts_what_it_serves_him():
    keeper = Scorekeeper()
    shared = VariantReading("shared", True, 0, 0, 0, 0, 7, rejected_requests=7)
    for second in range(30):
        keeper.count(float(second), [reading(10), shared], "best")
    assert keeper.score(30.0, 0.06, 99.0).rejected_total == 0
    keeper.count(30.0, [reading(0), shared], "shared")
    assert keeper.score(30.0, 0.06, 99.0).rejected_total == 7


def test_where_nobody_gets_an_answer_nobody_is_in_time():
    keeper = Scorekeeper()
    for second in range(30):
        keeper.count(float(second), [reading(0, failed=5)])
    score = keeper.score(30.0, 0.06, 99.0)
    assert (score.attainment, score.effective_quality) == (0.0, 0.0)
    assert score.burn_rate == pytest.approx(100.0)


class Events:
    def __init__(self) -> None:
        self.told: list[tuple] = []

    def event(self, kind, model, message, data=None) -> None:
        self.told.append((kind, model, message))


def test_that_requests_are_refused_is_said_when_it_begins_and_when_it_ends(caplog):
    policy, journal = parse_policy(TEXT, "p.yaml"), Events()
    rates, totals = {"chat": 0.0, "other": 0.0}, {"chat": 7, "other": 0}
    limits = SimpleNamespace(exceeded=())
    core = SimpleNamespace(
        limits=limits,
        lost=frozenset(),
        score=lambda name: SimpleNamespace(rejected_rps=rates[name], rejected_total=totals[name]),
    )
    alarms = Alarms(journal)
    with caplog.at_level(logging.WARNING):
        alarms.look(core, policy)
        assert not journal.told
        rates["chat"], totals["chat"] = 12.0, 19
        for _ in range(3):
            alarms.look(core, policy)
        totals["chat"] = 119
        rates["chat"] = 0.0
        for _ in range(3):
            alarms.look(core, policy)
        limits.exceeded = ("gpu 0 is at 85 °C",)
        for _ in range(3):
            alarms.look(core, policy)
        limits.exceeded = ()
        alarms.look(core, policy)
        core.lost = frozenset({1})
        for _ in range(3):
            alarms.look(core, policy)
        core.lost = frozenset()
        alarms.look(core, policy)
    assert [told[:2] for told in journal.told] == [
        ("shedding", "chat"),
        ("shedding ended", "chat"),
        ("limit", None),
        ("limit ended", None),
        ("gpu lost", None),
        ("gpu lost ended", None),
    ]
    assert "GPU 1 is lost" in journal.told[4][2]
    assert "100 more were" in journal.told[1][2]
    assert len(caplog.records) == 6
    problems = health_view(
        {"triton": {"up": True}, "models": [{"name": "chat", "serving": "best", "rejected_rps": 3}]}
    )["problems"]
    assert problems == ["model chat: Triton refuses 3.0 requests a second: its queue is full"]
