"""What of a policy holds at which time of the week.

Owns when a schedule is in force and what it changes. Pure: it must not know what time it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from controller.policy.model import ModelPolicy, Policy, SchedulePolicy

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MIDNIGHT = 24 * 60


def active(policy: Policy, weekday: int, minute: int) -> tuple[str, ...]:
    """Return the schedules in force, in the policy's order.

    Args:
        policy: as it was read.
        weekday: 0 is Monday.
        minute: of that day.
    """
    return tuple(one.name for one in policy.schedules if _holds(one, weekday, minute))


def _holds(schedule: SchedulePolicy, weekday: int, minute: int) -> bool:
    begins, ends = schedule.from_minute, schedule.to_minute
    if begins < ends:
        return weekday in schedule.days and begins <= minute < ends
    # Past midnight it belongs to the day on which it began.
    before = (weekday - 1) % len(DAYS)
    return (weekday in schedule.days and minute >= begins) or (
        before in schedule.days and minute < ends
    )


def left_without(policy: Policy) -> Iterator[tuple[str, str, str]]:
    """Yield (schedule, model, what is wrong) where no variant of a model may serve at some time."""
    told: set[tuple[str, str]] = set()
    for schedule in policy.schedules:
        for day in schedule.days:
            # What is in force together is so when one of them begins.
            names = active(policy, day, schedule.from_minute)
            for model in under(policy, names).models:
                mine = any(one.model == model.name for one in schedule.models)
                if not mine or (schedule.name, model.name) in told:
                    continue
                if not any(model.lets(variant) for variant in model.variants):
                    told.add((schedule.name, model.name))
                    beside = [name for name in names if name != schedule.name]
                    others = f" beside {', '.join(beside)}" if beside else ""
                    yield schedule.name, model.name, f"leaves none of its variants{others}"


def under(policy: Policy, names: tuple[str, ...]) -> Policy:
    """Return a policy as some of its schedules change it; of several the narrowest counts."""
    chosen = [one for one in policy.schedules if one.name in names]
    models = tuple(_changed(model, chosen) for model in policy.models)
    return replace(policy, models=models)


def _changed(model: ModelPolicy, schedules: list[SchedulePolicy]) -> ModelPolicy:
    allowed, least = model.allowed, model.min_quality
    for own in (one for schedule in schedules for one in schedule.models):
        if own.model != model.name:
            continue
        least = max(least, own.min_quality or 0.0)
        if own.variants is not None:
            named = {v.name for v in model.variants if (v.profile_of or v.name) in own.variants} | {
                v.name for v in model.variants if v.name in own.variants
            }
            allowed = frozenset(named if allowed is None else allowed & named)
    return replace(model, allowed=allowed, min_quality=least)
