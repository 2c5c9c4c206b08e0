"""The bus of the daemon: made as its policy says.

Owns under which name a governor is on it. `controller.interfaces.mqtt` talks on it.
"""

from __future__ import annotations

import logging
import socket

from controller.interfaces.control import Control
from controller.interfaces.mqtt import MqttBus
from controller.policy.model import Policy

_LOG = logging.getLogger("governor")


def bus_of(policy: Policy, control: Control) -> MqttBus | None:
    """Return the bus, not yet running; None: the policy has none, or its node has no good name."""
    if policy.mqtt is None:
        return None
    try:
        return MqttBus(policy.mqtt, control, node=policy.mqtt.node or socket.gethostname())
    except ValueError as error:
        _LOG.error("no bus: %s; set mqtt.node in the policy", error)
        return None
