"""How long the actuator waits for what.

Owns every waiting time of this package, so that tests can shorten them all.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Every waiting time of the actuator, in seconds."""

    look_s: float = 0.5  # between looks at the aliases
    calm_look_s: float = 1.0  # the same, while counts show that nothing happened to them
    index_s: float = 3.0  # between looks at the variants
    request_s: float = 0.6  # between looks at whether clients get answers
    counts_age_s: float = 1.0  # older counts of others than this are not relied on
    idle_request_s: float = 5.0  # between requests of our own where clients send none
    answer_s: float = 1.0  # deadline of a call that only asks
    probe_s: float = 2.0  # deadline of a request of our own
    patience_s: float = 1.0  # an `apply` returns by then, whatever Triton does
    urgent_check_s: float = 0.05  # an escape waits no longer for a fresh look at its target
    fresh_s: float = 0.25  # knowledge older than this is looked at again before a switch
    alias_load_s: float = 30.0
    variant_load_s: float = 600.0
    unload_s: float = 60.0
    settle_s: float = 60.0  # an operation that outlasted its deadline is given up after this
    lost_s: float = 2.0  # one whose connection broke, which Triton has or has not got
    refresh_s: float = 15.0  # between checks that loading an idle variant reloads nothing
    warm_load_s: float = 0.05  # a load that takes longer has reloaded something
    reading_s: float = 0.5  # until GPUs have been read anew
    backoff_s: float = 1.0  # after a failed load; doubles
    backoff_max_s: float = 60.0
    calm_s: float = 10.0  # since the last switch, before the way out of an overload is reloaded
    stop_s: float = 3.0  # an action in flight is given this long when the daemon stops
