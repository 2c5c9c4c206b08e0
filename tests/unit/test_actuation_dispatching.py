"""The governor's side of a dispatcher: plans that are due, reports, and when it is ill."""

import itertools
import json

import pytest

from controller.actuation.client import Fault, TritonError
from controller.actuation.dispatching import Dispatching
from controller.dispatch.late_binding import Dispatcher
from controller.dispatch.plan import Plan
from controller.dispatch.signed import SignatureError, unseal
from controller.policy.model import DispatcherPolicy, ModelPolicy, Objective, VariantPolicy
from controller.telemetry.observation import VariantReading

KEY = b"0123456789abcdef"
PLAN = Plan(("b", "f"), (0.9, 0.8), ((0.04, 0.05), (0.004, 0.005)), (1.1, 1.1), 0.1)


class Inside:
    """The dispatcher's end of the wire, as `dispatch/server/model.py` has it."""

    def __init__(self):
        self.made_anew()
        self.fault: TritonError | None = None
        self.plans = 0

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
            "plan": own.plan.names,
            "served": own.served,
            "failed": own.failed,
            "refused": own.refused,
            "completed": own.completed,
            "in_time": own.in_time,
            "waiting": own.waiting,
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
