"""The governor's side of a dispatcher: plans that are due, reports, and when it is ill."""

import itertools
import json
from types import SimpleNamespace

import pytest

from controller.actuation.client import Fault, TritonError
from controller.actuation.dispatching import Dispatching
from controller.daemon.dispatchers import Dispatchers
from controller.dispatch.late_binding import Dispatcher
from controller.dispatch.plan import Plan
from controller.dispatch.signed import SignatureError, unseal
from controller.policy.model import (
    DispatcherPolicy,
    ModelPolicy,
    Objective,
    Policy,
    TritonPolicy,
    VariantPolicy,
)
from controller.telemetry.observation import VariantReading

KEY = b"0123456789abcdef"
PLAN = Plan(("b", "f"), (0.9, 0.8), ((0.04, 0.05), (0.004, 0.005)), (1.1, 1.1), 0.1)


class Inside:
    """The dispatcher's end of the wire, as `dispatch/server/model.py` has it."""

    def __init__(self):
        self.made_anew()
        self.fault: TritonError | None = None
        self.plans = 0
        self.uptime_s = 100.0

    def made_anew(self):
        self.dispatcher = Dispatcher(PLAN._replace(names=("f", "-")))
        self.serial = self.plan_serial = 0

    async def command(self, config, message, *, deadline_s):
        if self.fault is not None:
            raise self.fault
        try:
            body = unseal(KEY, message, self.serial)
        except SignatureError as error:
            raise TritonError(Fault.INVALID, f"refused: {error}") from error
        self.serial = body["serial"]
        if body["plan"] is not None:
            self.dispatcher.set_plan(Plan.read(body["plan"]))
            self.plan_serial = self.serial
            self.plans += 1
        own = self.dispatcher
        report = {
            "serial": self.serial,
            "plan_serial": self.plan_serial,
            "uptime_s": self.uptime_s,
            "plan": own.plan.names,
            "served": own.served,
            "failed": own.failed,
            "refused": own.refused,
            "completed": own.completed,
            "in_time": own.in_time,
            "waiting": own.waiting,
            "shunned": own.shunned(0.0),
        }
        return json.loads(json.dumps(report))


class World:
    """One conversation, with its clock."""

    def __init__(self, tmp_path):
        (tmp_path / "key").write_bytes(KEY + b"\n")
        self.now_s, self.serial = 100.0, 1000
        self.inside = Inside()
        policy = ModelPolicy(
            "chat",
            Objective(0.1, 99.0),
            (VariantPolicy("best", "b", 0.9), VariantPolicy("fast", "f", 0.8)),
            dispatcher=DispatcherPolicy("late", str(tmp_path / "key")),
        )
        self.own = Dispatching(policy, clock=lambda: self.now_s, serial=lambda: self.serial)

    async def talk(self, seconds: float = 0.1):
        self.now_s += seconds
        await self.own.talk(self.inside, {"name": "late"})


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def test_it_is_well_once_a_plan_of_ours_is_in_force(world):
    await world.talk()
    assert not world.own.healthy, "it has no plan yet"
    assert not world.own.ill
    world.own.want(PLAN)
    await world.talk()
    assert world.own.healthy
    assert world.inside.dispatcher.plan == PLAN
    assert world.own.observed(None).healthy


async def test_a_plan_is_sent_again_only_where_it_differs_noticeably(world):
    world.own.want(PLAN)
    for _ in range(5):
        await world.talk()
    world.own.want(PLAN._replace(took_s=((0.0404, 0.0505), (0.004, 0.005))))
    await world.talk(1.0)
    assert world.inside.plans == 1
    slower = PLAN._replace(took_s=((0.05, 0.06), (0.005, 0.006)))
    world.own.want(slower)
    await world.talk()
    assert world.inside.plans == 2
    world.own.want(PLAN)
    await world.talk()
    assert world.inside.plans == 2, "not so soon"
    world.own.want(PLAN._replace(names=("b", "x")))
    await world.talk()
    assert world.inside.plans == 3, "who may serve matters at once"


async def test_one_that_was_made_anew_gets_its_plan_again(world):
    world.own.want(PLAN)
    await world.talk()
    world.inside.made_anew()
    await world.talk()
    assert not world.own.healthy
    await world.talk()
    assert world.own.healthy
    assert world.inside.plans == 2


async def test_one_that_is_silent_is_ill_and_made_anew_ever_less_often(world):
    world.own.want(PLAN)
    await world.talk()
    world.inside.fault = TritonError(Fault.UNKNOWN, "Deadline Exceeded")
    await world.talk()
    assert not world.own.ill, "one answer may be late"
    await world.talk(0.6)
    assert world.own.ill
    assert not world.own.healthy
    assert not world.own.is_to_be_renewed()
    when_s = []
    for _ in range(600):
        await world.talk(0.5)
        if world.own.is_to_be_renewed():
            when_s.append(world.now_s)
    apart_s = [b - a for a, b in itertools.pairwise(when_s)]
    assert apart_s == pytest.approx([10.0, 20.0, 40.0, 80.0], abs=0.6)
    world.inside.fault = None
    await world.talk()
    assert not world.own.ill


@pytest.mark.parametrize(
    "fault",
    [
        TritonError(Fault.UNREACHABLE, "failed to connect"),
        TritonError(Fault.INVALID, "refused: it was not signed with this dispatcher's key"),
    ],
)
async def test_what_a_load_would_not_mend_asks_for_none(world, fault):
    world.own.want(PLAN)
    world.inside.fault = fault
    for _ in range(20):
        await world.talk(1.0)
    assert world.own.ill
    assert not world.own.is_to_be_renewed()
    assert str(fault) in (world.own.view()["error"] or "")


async def test_a_key_that_cannot_be_read_is_told(world, tmp_path):
    (tmp_path / "key").unlink()
    await world.talk()
    await world.talk(1.0)
    assert "key cannot be read" in (world.own.error or "")
    assert world.own.ill


async def test_a_clock_that_was_set_back_does_not_lock_us_out(world):
    world.own.want(PLAN)
    await world.talk()
    again = Dispatching(world.own.policy, clock=lambda: world.now_s, serial=lambda: 5)
    again.want(PLAN)
    await again.talk(world.inside, {"name": "late"})
    assert "older" in (again.error or "")
    await again.talk(world.inside, {"name": "late"})
    assert again.error is None


async def test_what_it_did_is_told_once(world):
    world.own.want(PLAN)
    await world.talk()
    one = world.inside.dispatcher
    for _ in range(4):
        one.come(0.0, 1)
    batch = one.take(0.0)
    one.ended(batch, 0.05)
    one.come(1.0, 1)
    one.ended(one.take(1.0), 1.1, failed=True)
    one.come(2.0, 1)
    await world.talk()
    reading = VariantReading(
        "late", ready=True, pending_requests=0, completed_requests=6, completed_rows=9
    )
    seen = world.own.observed(reading)
    # Two of the six were what we said to it.
    assert (seen.arrived_requests, seen.arrived_rows, seen.waiting_requests) == (4, 7, 3)
    assert (seen.failed_requests, seen.rejected_requests) == (1, 0)
    assert seen.quality == pytest.approx(0.9)
    assert world.own.observed(reading).failed_requests == 0
    view = world.own.view()
    assert view["variants"] == ["best", "fast"]
    assert view["served"] == {"best": 2}
    assert view["healthy"]


async def test_what_we_say_to_it_is_no_arrival(world):
    world.own.want(PLAN)
    for counted in (1, 0, 2, 1):  # Triton's counters show a message sooner or later
        await world.talk()
        reading = VariantReading(
            "late", True, 0, completed_requests=counted, completed_rows=counted
        )
        assert world.own.observed(reading).arrived_requests == 0
    proven = VariantReading("late", True, 0, completed_requests=3, completed_rows=3)
    assert world.own.observed(proven, proofs=1).arrived_requests == 2


async def test_messages_that_were_never_counted_take_no_arrivals_away_for_ever(world):
    nothing = VariantReading("late", True, 0)
    for _ in range(500):
        await world.talk()
        world.own.observed(nothing)
    busy = VariantReading("late", True, 0, completed_requests=50, completed_rows=50)
    assert world.own.observed(busy).arrived_requests >= 30
    assert world.own.observed(busy).arrived_requests == 50


async def test_what_failed_before_we_came_is_no_outage(world):
    """A governor that starts again hears of all that ever failed there."""
    world.own.want(PLAN)
    one = world.inside.dispatcher
    for at in range(50):
        one.come(float(at), 1)
        one.ended(one.take(float(at)), at + 0.1, failed=True)
    await world.talk()
    assert world.own.observed(None).failed_requests == 0
    assert world.own.quality is None
    one.come(100.0, 1)
    one.ended(one.take(100.0), 100.1, failed=True)
    await world.talk()
    assert world.own.observed(None).failed_requests == 1


async def test_how_many_were_late_is_told_once(world):
    world.own.want(PLAN)
    one = world.inside.dispatcher
    await world.talk()
    for at, took_s in enumerate((0.05, 0.2, 0.3)):
        one.come(float(at), 1)
        one.ended(one.take(float(at)), at + took_s)
    await world.talk()
    seen = world.own.observed(None)
    assert (seen.ended_requests, seen.late_requests) == (3, 2)
    seen = world.own.observed(None)
    assert (seen.ended_requests, seen.late_requests) == (0, 0)


async def test_counts_of_one_that_was_made_anew_begin_at_nothing(world):
    """Though it may have completed more since than the one before it."""
    world.own.want(PLAN)
    one = world.inside.dispatcher
    await world.talk()
    for at in range(10):
        one.come(float(at), 1)
        one.ended(one.take(float(at)), at + 0.2)
    await world.talk()
    world.own.observed(None)
    world.inside.made_anew()
    one = world.inside.dispatcher
    one.set_plan(PLAN)
    for at in range(12):
        one.come(float(at), 1)
        one.ended(one.take(float(at)), at + 0.05)
    world.inside.uptime_s = 1.0
    await world.talk()
    seen = world.own.observed(None)
    assert (seen.ended_requests, seen.late_requests) == (12, 0)


async def test_a_governor_that_stood_still_finds_nobody_ill(world):
    world.own.want(PLAN)
    await world.talk()
    world.now_s += 30.0
    assert not world.own.ill
    await world.talk()
    assert world.own.healthy


async def test_one_that_is_left_again_and_again_is_left_for_ever_longer(world):
    """An alias that is led to and fro twice a second helps nobody."""
    world.own.want(PLAN)
    await world.talk()
    away_s = []
    for _ in range(8):
        world.inside.fault = TritonError(Fault.UNKNOWN, "Deadline Exceeded")
        while not world.own.observed(None).ill:
            await world.talk()
        world.inside.fault, since_s = None, world.now_s
        while not world.own.observed(None).healthy:
            await world.talk()
            assert not world.own.ill
        away_s.append(world.now_s - since_s)
    assert away_s == pytest.approx([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0], abs=0.25)
    for _ in range(310):
        await world.talk(1.0)
    world.inside.fault = TritonError(Fault.UNKNOWN, "Deadline Exceeded")
    while not world.own.observed(None).ill:
        await world.talk()
    world.inside.fault = None
    await world.talk(1.2)
    assert world.own.observed(None).healthy, "it had been well for long"


async def test_a_variant_that_it_leaves_alone_is_told_with_the_reason(world, caplog):
    world.own.want(PLAN)
    await world.talk()
    one = world.inside.dispatcher
    one.come(0.0, 1)
    one.again(one.take(0.0), "CUDA error")
    for _ in range(3):
        await world.talk()
    assert world.own.view()["left_alone"] == {"best": "CUDA error"}
    told = [
        r.message for r in caplog.records if "leaves b alone for a while: CUDA error" in r.message
    ]
    assert len(told) == 1


def test_no_batch_is_planned_that_the_server_would_refuse(world):
    """An engine may be deployed anew with a smaller `max_batch_size` than was measured."""
    configs = {"b": {"max_batch_size": 1}, "f": None}
    variants = {name: SimpleNamespace(config=config) for name, config in configs.items()}
    keeper = SimpleNamespace(server=SimpleNamespace(variants=variants))
    actuator = SimpleNamespace(at_hand=lambda _: (keeper, None))
    policy = Policy(triton=TritonPolicy("127.0.0.1:8001", None, None), models=(world.own.policy,))
    dispatchers = Dispatchers(policy, actuator)
    dispatchers.after_tick({"chat": PLAN})
    assert dispatchers._of["chat"]._wanted.took_s == ((0.04,), (0.004, 0.005))
