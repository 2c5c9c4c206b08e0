"""How the governor stands to each model: policy, releases and the server's limits together."""

from dataclasses import dataclass, field, replace

import pytest

from controller.actuation.capability import Capability
from controller.daemon.operator import OperatorWishes
from controller.daemon.standing import Standing
from controller.policy.model import (
    Mode,
    ModelPolicy,
    Objective,
    Policy,
    ProbingPolicy,
    TritonPolicy,
    VariantPolicy,
)
from controller.telemetry.observation import ModelReading

ACTS = Capability(can_act=True)


def a_model(name: str, mode: Mode | None = None) -> ModelPolicy:
    variants = (VariantPolicy("good", f"{name}_good", 0.9),)
    return ModelPolicy(name, Objective(0.06, 99.0), variants, mode=mode)


@dataclass
class Server:
    """What of the actuator is asked."""

    capability: Capability = ACTS
    left: frozenset[str] = frozenset()
    names: tuple[str, ...] = ("a", "b")
    calls: list[frozenset[str]] = field(default_factory=list)

    def leave(self, models):
        self.left = models
        self.calls.append(models)

    def readings(self, _now_s):
        return {name: ModelReading(name, f"{name}_good") for name in self.names}


@dataclass
class World:
    policy: Policy
    wishes: OperatorWishes = field(default_factory=lambda: OperatorWishes(lambda: 100.0))
    server: Server = field(default_factory=Server)

    @property
    def standing(self) -> Standing:
        return Standing(lambda: self.policy, self.wishes, self.server)

    def advised(self) -> set[str]:
        readings = self.standing.readings(0.0)
        return {name for name, reading in readings.items() if reading.advised}


def world(mode: Mode = Mode.ACT, a: Mode | None = None, b: Mode | None = None) -> World:
    models = (a_model("a", a), a_model("b", b))
    return World(Policy(TritonPolicy("t:1", None, None), models, mode=mode))


@pytest.mark.parametrize(
    ("mode", "a", "b", "advised"),
    [
        (Mode.ACT, None, None, set()),
        (Mode.ADVISE, None, None, {"a", "b"}),
        (Mode.ADVISE, Mode.ACT, None, {"b"}),  # one first
        (Mode.ACT, None, Mode.ADVISE, {"b"}),
        (Mode.ACT, Mode.ADVISE, Mode.ADVISE, {"a", "b"}),
    ],
)
def test_what_a_model_says_comes_before_what_the_policy_says(mode, a, b, advised):
    here = world(mode, a, b)
    assert here.advised() == advised
    assert (here.standing.advice is None) is (advised != {"a", "b"})


def test_a_server_that_lets_nobody_act_is_advised_on():
    here = world()
    here.server.capability = Capability(can_act=False, why="poll mode")
    assert here.advised() == {"a", "b"}
    assert "poll mode" in (here.standing.advice or "")


def test_a_released_model_is_paused_left_alone_and_told_as_such():
    here = world()
    here.wishes.pin("a", "good", None, None, "ada")
    here.wishes.release("a", "good", "a new team", "ada")
    readings = here.standing.readings(0.0)
    assert readings["a"].released
    assert readings["a"].paused
    assert readings["a"].pinned is None  # its pin is over
    assert not readings["a"].is_free
    assert readings["b"].is_free
    assert here.server.left == {"a"}
    assert [here.standing.of(name) for name in "ab"] == ["released", "act"]
    assert here.standing.advice is None
    here.wishes.release("b", None, None, "ada")
    assert here.standing.advice == "every model was released"


def test_a_release_survives_a_restart_whatever_the_policy_has_then():
    here = world()
    here.wishes.release("a", "good", "a new team", "ada")
    again = OperatorWishes(lambda: 200.0)
    without_a = replace(here.policy, models=here.policy.models[1:])
    again.restore(here.wishes.state(), without_a)
    assert again.releases == here.wishes.releases


@pytest.mark.parametrize(
    "broken",
    [{"releases": [1]}, {"releases": {"a": 3}}, {"releases": {"a": {"at_unix_s": "x", "who": 4}}}],
)
def test_a_damaged_release_is_no_reason_to_fail(broken):
    wishes = OperatorWishes(lambda: 0.0)
    wishes.restore(broken, world().policy)
    assert all(one.at_unix_s == 0.0 for one in wishes.releases.values())


def test_in_advise_nothing_is_sent_unless_the_policy_says_so():
    here = world(Mode.ADVISE)
    assert not here.standing.probes()
    here.policy = replace(here.policy, probing=ProbingPolicy(while_advising=True))
    assert here.standing.probes()
    here.policy = replace(here.policy, probing=ProbingPolicy(enabled=False, while_advising=True))
    assert not here.standing.probes()


def test_what_was_taken_back_is_left_alone_until_the_journal_says_what_was():
    here = world()
    here.server.left = frozenset({"a"})  # remembered beside the journal
    here.standing.apply()
    assert here.server.left == {"a"}
    here.wishes.restore(None, here.policy)  # it was read: nothing is released any more
    here.standing.apply()
    assert here.server.left == frozenset()
