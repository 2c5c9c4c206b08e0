"""A minute of one model, and one of the machine: sums that add up over any time.

Owns what a minute holds, how minutes are added, and their stored shape. Pure: it must not read a
clock, nor decide what is told of the sums.

Everything here is a sum, a count or a maximum, so that an hour is exactly what its minutes come to.
Latencies are kept as a histogram of fixed buckets, eight to an octave: 9 % wide, so that a quantile
is within 9 % of what it would be from every latency, and mostly much nearer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

MINUTE_S: Final = 60
_PER_OCTAVE: Final = 8
_EXACT: Final = 2.0**53  # integers below are exact as floating-point numbers
_SHORTEST_S: Final = 1e-4  # the lower end of bucket 0; what is shorter is in it, too
_BUCKETS: Final = 24 * _PER_OCTAVE  # the last one ends at 28 minutes, and holds what is longer


def bucket_of(latency_s: float) -> int:
    """Return the bucket of a latency."""
    if not latency_s > _SHORTEST_S:  # nor any number at all
        return 0
    if latency_s == math.inf:
        return _BUCKETS - 1
    return min(int(_PER_OCTAVE * math.log2(latency_s / _SHORTEST_S)), _BUCKETS - 1)


def quantile_s(histogram: Mapping[int, float], probability: float) -> float | None:
    """Return a quantile in seconds, None of nothing; even in the logarithm within a bucket."""
    total = sum(histogram.values())
    if total <= 0.0:
        return None
    left = probability * total
    last = max(histogram)
    for bucket in sorted(histogram):
        weight = histogram[bucket]
        if weight > 0.0 and (left <= weight or bucket == last):
            within = min(max(left / weight, 0.0), 1.0)
            return float(_SHORTEST_S * 2.0 ** ((bucket + within) / _PER_OCTAVE))
        left -= weight
    return None


@dataclass(slots=True)
class ModelMinute:
    """What one model did in some time. Requests are those of clients, without our probes.

    Of some requests (traces) it is known how long they took; they speak for those that completed
    about when they did. What is `known` is of these, what is `unknown` nobody speaks for.
    """

    latency_s: float = 0.0  # the objective, the last one that was in force; 0: none was
    percentile: float = 0.0
    seconds: float = 0.0  # that it was watched
    arrived: float = 0.0  # estimated: what is in execution no counter shows
    completed: int = 0
    failed: int = 0
    in_time: int = 0  # of traced requests
    late: int = 0
    known: float = 0.0  # completed requests that traced ones speak for
    known_late: float = 0.0
    known_failed: int = 0  # failed, meanwhile
    known_quality: float = 0.0  # summed over those that are in time
    unknown: float = 0.0  # completed requests that none speaks for
    allowed: float = 0.0  # of `known` and `known_failed`: how many may miss
    queue_s: float = 0.0  # summed over completed requests
    compute_s: float = 0.0
    quality: float = 0.0  # summed over completed requests
    told_s: float = 0.0  # latency at the objective's percentile, summed over completed requests
    told_of: float = 0.0  # how many of these were told of
    singles: int = 0  # requests that were compared with what was told of them
    singles_kept: int = 0
    switches: int = 0
    failed_actions: int = 0
    waiting_s: float = 0.0  # requests that wait, summed over time
    waiting_most: int = 0
    peak_rps: float = 0.0  # arrivals, of the second with the most
    variants: dict[str, list[float]] = field(default_factory=dict)  # seconds, completed requests
    reasons: dict[str, float] = field(default_factory=dict)  # seconds
    latencies: dict[int, float] = field(default_factory=dict)  # known requests by bucket

    def add(self, other: ModelMinute) -> None:
        """Add another time of the same model; the later one is added last."""
        for name in _MODEL_SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("latency_s", "percentile"):
            if getattr(other, name) > 0.0:
                setattr(self, name, getattr(other, name))
        self.waiting_most = max(self.waiting_most, other.waiting_most)
        self.peak_rps = max(self.peak_rps, other.peak_rps)
        for variant, (seconds, completed) in other.variants.items():
            so_far = self.variants.setdefault(variant, [0.0, 0.0])
            so_far[0] += seconds
            so_far[1] += completed
        add_to(self.reasons, other.reasons)
        add_to(self.latencies, other.latencies)

    def stored(self) -> dict[str, Any]:
        """Return the minute as it is stored: numbers by their place, since there are so many."""
        body: dict[str, Any] = {"sums": _numbers(self, _MODEL_NUMBERS)}
        for name in ("variants", "reasons"):
            body[name] = {str(key): _shortened(of) for key, of in getattr(self, name).items()}
        if self.latencies:
            first, last = min(self.latencies), max(self.latencies)
            weights = [_short(self.latencies.get(i, 0.0)) for i in range(first, last + 1)]
            body["latencies"] = [first, *weights]
        return body

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """Return a stored minute. What is missing or odd is zero: a file may be damaged."""
        minute = cls()
        _take(minute, _MODEL_NUMBERS, body)
        for variant, both in _mapping(body, "variants").items():
            if isinstance(both, Sequence) and len(both) == 2:
                minute.variants[variant] = [_number(both[0]), _number(both[1])]
        for reason, seconds in _mapping(body, "reasons").items():
            minute.reasons[reason] = _number(seconds)
        stored = body.get("latencies")
        if isinstance(stored, list) and stored and isinstance(stored[0], int):
            first = max(stored[0], 0)
            for bucket, weight in zip(range(first, _BUCKETS), stored[1:], strict=False):
                if _number(weight) > 0.0:
                    minute.latencies[bucket] = _number(weight)
        return minute


@dataclass(slots=True)
class MachineMinute:
    """What the machine and the daemon did in some time."""

    seconds: float = 0.0  # that the daemon watched
    triton_s: float = 0.0  # of these, in which Triton answered
    ticks: int = 0
    tick_s: float = 0.0  # summed over ticks
    slowest_tick_s: float = 0.0
    host_s: float = 0.0  # share of the host's processors, summed over time
    gpus: dict[str, list[float]] = field(default_factory=dict)  # see GPU

    def add(self, other: MachineMinute) -> None:
        """Add another time."""
        for name in ("seconds", "triton_s", "ticks", "tick_s", "host_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest_tick_s = max(self.slowest_tick_s, other.slowest_tick_s)
        for gpu, seen in other.gpus.items():
            add_gpu(self.gpus, gpu, seen)

    def stored(self) -> dict[str, Any]:
        """Return the minute as it is stored."""
        gpus = {gpu: _shortened(seen) for gpu, seen in self.gpus.items()}
        return {"sums": _numbers(self, _MACHINE_NUMBERS), "gpus": gpus}

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """Return a stored minute. What is missing or odd is zero."""
        minute = cls()
        _take(minute, _MACHINE_NUMBERS, body)
        for gpu, seen in _mapping(body, "gpus").items():
            if isinstance(seen, list) and len(seen) == len(GPU):
                minute.gpus[gpu] = [_number(one) for one in seen]
        return minute


# Of a GPU: seconds seen, utilisation summed over them, seconds throttled, most memory, hottest.
GPU: Final = ("seconds", "busy_s", "throttled_s", "memory_bytes", "celsius")
_GPU_SUMS: Final = 3


def add_gpu(gpus: dict[str, list[float]], gpu: str, seen: Sequence[float]) -> None:
    """Add what was seen of a GPU to what was."""
    so_far = gpus.setdefault(gpu, [0.0] * len(GPU))
    for i, value in enumerate(seen):
        so_far[i] = so_far[i] + value if i < _GPU_SUMS else max(so_far[i], value)


def add_to(so_far: dict[Any, float], more: Mapping[Any, float]) -> None:
    """Add sums by key to others."""
    for key, value in more.items():
        so_far[key] = so_far.get(key, 0.0) + value


# The places of numbers in what is stored. Append only: journals of the past have this order.
_MODEL_NUMBERS: Final = (
    *("latency_s", "percentile", "seconds", "arrived", "completed", "failed"),
    *("in_time", "late", "known", "known_late", "known_failed", "known_quality", "unknown"),
    *("allowed", "queue_s", "compute_s", "quality", "told_s", "told_of", "singles"),
    *("singles_kept", "switches", "failed_actions", "waiting_s", "waiting_most", "peak_rps"),
)
_MACHINE_NUMBERS: Final = ("seconds", "triton_s", "ticks", "tick_s", "slowest_tick_s", "host_s")
_NO_SUMS: Final = frozenset({"latency_s", "percentile", "waiting_most", "peak_rps"})
_MODEL_SUMS: Final = tuple(name for name in _MODEL_NUMBERS if name not in _NO_SUMS)


def _numbers(minute: ModelMinute | MachineMinute, names: Sequence[str]) -> list[float | int]:
    return [_shortened(getattr(minute, name)) for name in names]


def _shortened(value: float | list[float]) -> Any:
    if isinstance(value, list):
        return [_short(part) for part in value]
    return value if isinstance(value, int) else _short(value)


def _short(value: float) -> float | int:
    """Return a number in as few digits as tell it to a ten-thousandth; 0 for none."""
    if not math.isfinite(value):
        return 0
    short = float(f"{value:.5g}")
    return int(short) if short.is_integer() and abs(short) < _EXACT else short


def _take(
    minute: ModelMinute | MachineMinute, names: Sequence[str], body: Mapping[str, Any]
) -> None:
    """Set the numbers of a minute to what is stored."""
    stored = body.get("sums")
    for name, value in zip(names, stored if isinstance(stored, list) else (), strict=False):
        number = _number(value)
        setattr(minute, name, round(number) if isinstance(getattr(minute, name), int) else number)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0.0
    return float(value) if abs(value) < _EXACT else 0.0  # false for NaN, too


def _mapping(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = body.get(key)
    return found if isinstance(found, Mapping) else {}
