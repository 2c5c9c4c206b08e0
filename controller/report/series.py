"""A day as columns over time, for the plots.

Owns how minutes are gathered into steps that a screen can show, and where there is a gap. Pure.

A step in which nobody watched, or in which something is not known, has None: a plot shows a gap
there, not a line and not a zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

from controller.journal.minutes import MachineMinute, ModelMinute, quantile_s

_STEPS: Final = 1440  # at most: a day of minutes
_BLOCKS: Final = 96  # at most: a quarter of an hour of a day
_STEP_S: Final = (60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
_LATELY: Final = 15  # steps that a latency at a high percentile may be of
FEWEST: Final = 20  # requests that must be known, for a share or a quantile of them

Columns = dict[str, Any]


def step_s(since_unix_s: float, until_unix_s: float, most: int) -> int:
    """Return the shortest usual step that cuts a time into no more than so many."""
    span_s = max(until_unix_s - since_unix_s, 1.0)
    return next((step for step in _STEP_S if span_s / step <= most), _STEP_S[-1])


class Steps:
    """The steps of a report, on the clock's even times."""

    def __init__(self, since_unix_s: float, until_unix_s: float, *, coarse: bool = False) -> None:
        self.step_s = step_s(since_unix_s, until_unix_s, _BLOCKS if coarse else _STEPS)
        self.first = int(since_unix_s) // self.step_s
        self.count = max(int((until_unix_s - 1e-6) // self.step_s) - self.first + 1, 1)

    def of(self, begins_unix_s: int) -> int | None:
        """Return the step of a minute, None outside."""
        at = begins_unix_s // self.step_s - self.first
        return at if 0 <= at < self.count else None

    @property
    def times(self) -> list[int]:
        """Return when each step begins, Unix time."""
        return [(self.first + i) * self.step_s for i in range(self.count)]


Sums = TypeVar("Sums", ModelMinute, MachineMinute)


def gather(steps: Steps, minutes: Iterable[tuple[int, Sums]], new: type[Sums]) -> list[Sums | None]:
    """Return what each step came to, of one model or of the machine; None: nobody watched."""
    sums: list[Sums | None] = [None] * steps.count
    for begins_unix_s, minute in minutes:
        at = steps.of(begins_unix_s)
        if at is not None:
            so_far = sums[at]
            if so_far is None:
                so_far = sums[at] = new()
            so_far.add(minute)
    return sums


def model_columns(
    fine: Sequence[ModelMinute | None],
    coarse: Sequence[ModelMinute | None],
    gone: Sequence[bool],
    variants: Sequence[str],
) -> Columns:
    """Return the columns of one model: by step, and by block what needs more requests.

    Args:
        fine: what each step came to.
        coarse: what each block came to.
        gone: the steps in which Triton was gone all the time: nobody counted its requests.
        variants: in the order in which they are shown.
    """
    seen = [
        None if minute is None or away else minute for minute, away in zip(fine, gone, strict=True)
    ]
    return {
        "rps": [_rate(m, m.arrived) if m else None for m in seen],
        "peak": [_short(m.peak_rps) if m else None for m in seen],
        "queue": [m.waiting_most if m else None for m in seen],
        "failed": [m.failed if m else None for m in seen],
        "p50": [_quantile_ms(m, 0.5) for m in seen],
        "p95": [_quantile_ms(m, 0.95) for m in seen],
        "px": _lately_ms(seen),
        "mean": [_mean_ms(m) for m in seen],
        "objective": [_ms(m.latency_s) if m and m.latency_s else None for m in fine],
        "told": [_ms(m.told_s / m.told_of) if m and m.told_of else None for m in seen],
        "shares": [[_share(m, variant) for m in seen] for variant in variants],
        "blocks": {
            "burn": [_burn(m) for m in coarse],
            "used": _used(coarse),
            "kept": [_kept(m) for m in coarse],
            "told": [_ms(m.told_s / m.told_of) if m and m.told_of else None for m in coarse],
            "px": [_quantile_ms(m, m.percentile / 100.0) if m else None for m in coarse],
        },
    }


def _rate(minute: ModelMinute, requests: float) -> float | None:
    return _short(max(requests, 0.0) / minute.seconds) if minute.seconds > 0.0 else None


def known_quantile_s(minute: ModelMinute, probability: float) -> float | None:
    """Return a quantile of requests, where enough are traced for one to be beyond it."""
    if not 0.0 < probability < 1.0:
        return None
    if minute.in_time + minute.late < max(FEWEST, 1.0 / (1.0 - probability) - 1e-6):
        return None
    return quantile_s(minute.latencies, probability)


def _quantile_ms(minute: ModelMinute | None, probability: float) -> float | None:
    found = None if minute is None else known_quantile_s(minute, probability)
    return None if found is None else _ms(found)


def _lately_ms(steps: Sequence[ModelMinute | None]) -> list[float | None]:
    """Return the latency at the objective's percentile, of as many steps as have the traces for it.

    Those are the step and some before it, without a gap between.
    """
    found: list[float | None] = []
    for i, minute in enumerate(steps):
        if minute is None:
            found.append(None)
            continue
        probability = minute.percentile / 100.0
        lately = ModelMinute()
        for earlier in reversed(steps[max(i + 1 - _LATELY, 0) : i + 1]):
            if earlier is None:
                break
            lately.add(earlier)
            if known_quantile_s(lately, probability) is not None:
                break
        found.append(_quantile_ms(lately, probability))
    return found


def _mean_ms(minute: ModelMinute | None) -> float | None:
    if minute is None or not minute.completed:
        return None
    return _ms((minute.queue_s + minute.compute_s) / minute.completed)


def _share(minute: ModelMinute | None, variant: str) -> float | None:
    if minute is None or minute.seconds <= 0.0:
        return None
    return _short(min(minute.variants.get(variant, (0.0,))[0] / minute.seconds, 1.0))


def _burn(minute: ModelMinute | None) -> float | None:
    if minute is None or minute.in_time + minute.late < FEWEST or minute.allowed <= 0.0:
        return None
    return _short((minute.known_late + minute.known_failed) / minute.allowed)


def _used(blocks: Sequence[ModelMinute | None]) -> list[float | None]:
    """Return the share of the whole time's error budget that was used by the end of each block."""
    budget = sum(minute.allowed for minute in blocks if minute is not None)
    used, shares = 0.0, list[float | None]()
    for minute in blocks:
        if minute is None or budget <= 0.0:
            shares.append(None)
        else:
            used += minute.known_late + minute.known_failed
            shares.append(_short(used / budget))
    return shares


def _kept(minute: ModelMinute | None) -> float | None:
    if minute is None or minute.singles < FEWEST:
        return None
    return _short(minute.singles_kept / minute.singles)


def _ms(seconds: float) -> float:
    return _short(seconds * 1e3)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
