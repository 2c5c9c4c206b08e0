"""Instances in the daemon: what the planner wants is handed over, and what it wants no more."""

from controller.daemon.sizing import Sizing
from controller.planning.sizing import Resize
from controller.policy.model import ModelPolicy, Objective, Policy, TritonPolicy, VariantPolicy
from controller.telemetry.observation import Instances, Observation

POLICY = Policy(
    TritonPolicy("127.0.0.1:1", None, None),
    (ModelPolicy("chat", Objective(0.1, 99.0), (VariantPolicy("v", "v", 0.9, max_instances=3),)),),
)
SEEN = Observation(0.0, 0, {}, {}, 1.0, instances={"v": Instances(1, 1, may_change=True)})


class Parts:
    """The core, the actuator and the journal."""

    def __init__(self):
        self.wants, self.told, self.events = (), {}, []

    def resizes(self, _observation):
        return self.wants

    def set_instances(self, wanted):
        self.told |= wanted

    def event(self, *event):
        self.events.append(event)


def test_what_is_wanted_no_more_before_it_was_done_is_not_done_later():
    parts = Parts()
    sizing = Sizing(parts, parts, parts)
    parts.wants = (Resize("v", 2, 1, 0.1),)
    sizing.after_tick(SEEN, POLICY)
    sizing.after_tick(SEEN, POLICY)
    assert parts.told == {"v": 2}
    assert len(parts.events) == 1
    parts.wants = ()  # an operator paused the model
    sizing.after_tick(SEEN, POLICY)
    assert parts.told == {"v": 1}
