"""The arms of the demo: the same load on each fixed variant, and on a governed alias.

Owns what happens during one arm and what is kept of it. The schedule, the server and the scale
come from `bench`; what the numbers are worth is `scores`'s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from controller.demo import scores
from controller.demo.bench import Bench
from controller.demo.governed import Governor, policy_text
from controller.demo.load import LoadRun, Progress
from controller.demo.neighbour import Neighbour
from controller.demo.processes import Usage
from controller.demo.records import Records
from controller.demo.scenario import Schedule

_FIXED, _GOVERNOR, _LATE = "fixed", "governor", "late"
_ABLATIONS = ("frozen", "shuffled")
_STATUS_EVERY = 2  # progress lines
# A governor begins without having learned anything. Engines that take as long for a row as for a
# batch are hardly ever idle under load, and are measured before there is any.
_ENGINES_PROBED_S = 6.0
_ENGINES_PROBING = "20%"


@dataclass(frozen=True, slots=True)
class Arm:
    """What serves during one run of the schedule."""

    variant: str | None = None  # None: the governor chooses
    ablation: str | None = None
    late: bool = False  # with a dispatcher, which binds requests when batches begin

    @property
    def name(self) -> str:
        """Return the arm's name in every report."""
        if self.variant is not None:
            return f"{_FIXED}:{self.variant}"
        if self.late:
            return f"{_GOVERNOR}:{_LATE}"
        return _GOVERNOR if self.ablation is None else f"{_GOVERNOR}:{self.ablation}"


@dataclass(frozen=True, slots=True)
class Switch:
    """One move of the alias, on the schedule's scale."""

    at_s: float  # when the alias's load call had returned
    target: int  # number of the variant
    switch_ms: float
    transaction_ms: float | None


@dataclass(frozen=True, slots=True)
class Explained:
    """What `governor explain` told of a switch."""

    serving: str
    target: str
    text: str


@dataclass(frozen=True, slots=True)
class Governed:
    """What is known of an arm because a governor ran in it."""

    switches: tuple[Switch, ...]
    usage: Usage
    tick_ms: dict[str, Any]
    relief: scores.Relief
    gpu: str | None  # as the governor saw it
    explained: tuple[Explained, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """One arm that has ended."""

    arm: Arm
    score: scores.Score
    records: Records = field(repr=False)
    governed: Governed | None = None
    neighbour: tuple[float, ...] = ()  # the neighbour's share of the device, by night


class View(Protocol):
    """Who watches."""

    def arm_started(self, name: str, seconds: float) -> None:
        """Show that an arm begins, and how long its counted part takes."""
        ...

    def arm_progress(self, progress: Progress, status: dict[str, Any] | None) -> None:
        """Show the load's last second, and the governor's status where one runs."""
        ...

    def arm_ended(self, result: Result) -> None:
        """Show an arm's numbers."""
        ...


def parse(text: str | None, variants: Sequence[str]) -> tuple[Arm, ...]:
    """Read a list of arms: `fixed`, `fixed:VARIANT`, `governor`, `governor:late` or `:ABLATION`.

    Args:
        text: the list; None: all, but for ablations.
        variants: those that can be fixed.

    Raises:
        ValueError: an arm is not known; says which there are.
    """
    fixed = tuple(Arm(variant) for variant in variants)
    if text is None:
        return (*fixed, Arm())
    governed = (Arm(), Arm(late=True), *(Arm(None, a) for a in _ABLATIONS))
    known: dict[str, tuple[Arm, ...]] = {arm.name: (arm,) for arm in (*fixed, *governed)}
    known[_FIXED] = fixed
    arms: list[Arm] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        if word not in known:
            raise ValueError(f"no arm {word!r}; there are {', '.join(known)}")
        arms += known[word]
    if not arms:
        raise ValueError(f"no arm is named; there are {', '.join(known)}")
    return tuple(dict.fromkeys(arms))


def run(bench: Bench, arm: Arm, schedule: Schedule, view: View) -> Result:
    """Run the schedule once.

    Raises:
        LoadError: the generator failed.
        GovernorError: the daemon failed.
        ServerError: Triton failed.
    """
    folder = bench.folder / arm.name.replace(":", "-")
    folder.mkdir(exist_ok=True)
    bench.drain()
    view.arm_started(arm.name, schedule.duration_s)
    if arm.variant is not None:
        bench.point(arm.variant)
        result = _run_fixed(bench, arm, schedule, view, folder)
    else:
        bench.point(bench.fastest.name)
        result = _run_governed(bench, arm, schedule, view, folder)
    view.arm_ended(result)
    return result


def _run_fixed(bench: Bench, arm: Arm, schedule: Schedule, view: View, folder: Path) -> Result:
    with (
        LoadRun(bench.target(), schedule, folder) as load,
        _neighbour(bench, schedule) as neighbour,
    ):
        for progress in follow(load, schedule, neighbour):
            bench.check()
            view.arm_progress(progress, None)
        records = bench.renumbered(load.records())
        shares = () if neighbour is None else neighbour.shares()
    return Result(arm, _score(bench, records), records, neighbour=shares)


def _run_governed(bench: Bench, arm: Arm, schedule: Schedule, view: View, folder: Path) -> Result:
    policy = policy_for(bench, late=arm.late)
    explained: dict[float, Explained] = {}
    with Governor(policy, folder, ablation=arm.ablation) as governor:
        governor.wait_until_serving(late=arm.late)
        if bench.core is not None:
            time.sleep(_ENGINES_PROBED_S)
        with (
            LoadRun(bench.target(), schedule, folder) as load,
            _neighbour(bench, schedule) as neighbour,
        ):
            status, measuring = None, False
            for index, progress in enumerate(follow(load, schedule, neighbour)):
                bench.check()
                governor.check()
                if progress.time_s >= 0 and not measuring:
                    governor.meter.restart()
                    measuring = True
                if index % _STATUS_EVERY == 0:
                    governor.meter.sample()
                    status = governor.status() or status
                if schedule.nights_s and (told := governor.last_switch()) is not None:
                    explained[told["monotonic_s"]] = Explained(
                        told["serving"], told["target"], told["text"]
                    )
                view.arm_progress(progress, status)
            records = bench.renumbered(load.records())
            shares = () if neighbour is None else neighbour.shares()
        usage = governor.meter.usage()
        status = governor.status() or status or {}
        switches = _switches(bench, governor.history(), records, schedule)
    governed = Governed(
        switches=switches,
        usage=usage,
        tick_ms=dict(status.get("tick_ms") or {}),
        relief=scores.relief(
            records,
            bench.served,
            schedule,
            [(switch.at_s, switch.target) for switch in switches],
        ),
        gpu=next((device.get("name") for device in status.get("gpu") or ()), None),
        explained=tuple(told for at_s, told in sorted(explained.items()) if at_s >= records.zero_s),
    )
    return Result(arm, _score(bench, records), records, governed, shares)


@contextmanager
def _neighbour(bench: Bench, schedule: Schedule) -> Iterator[Neighbour | None]:
    if bench.core is None or not schedule.nights_s:
        yield None
        return
    with Neighbour(bench.core, bench.neighbours) as neighbour:
        yield neighbour


def follow(load: LoadRun, schedule: Schedule, neighbour: Neighbour | None) -> Iterator[Progress]:
    """Follow the load to its end; its first word tells the neighbour when the nights are."""
    for index, progress in enumerate(load):
        if index == 0 and neighbour is not None:
            zero_s = time.monotonic() - progress.time_s
            neighbour.begin([(zero_s + start, zero_s + end) for start, end in schedule.nights_s])
        yield progress


def policy_for(bench: Bench, interval: str = "auto", *, late: bool = False) -> str:
    """Return the policy of a daemon that governs the bench's alias; `late`: with a dispatcher."""
    return policy_text(
        grpc=bench.server.grpc,
        metrics_url=bench.server.metrics_url,
        traces=bench.traces,
        model=bench.alias,
        objective_ms=bench.objective_ms,
        percentile=bench.percentile,
        client_max_batch=bench.models.max_rows,
        choices=bench.choices,
        interval=interval,
        probing=None if bench.core is None else _ENGINES_PROBING,
        dispatcher=bench.write_dispatcher() if late else None,
    )


def _score(bench: Bench, records: Records) -> scores.Score:
    return scores.score(records, bench.served, objective_ms=bench.objective_ms)


def _switches(
    bench: Bench, history: Sequence[dict[str, Any]], records: Records, schedule: Schedule
) -> tuple[Switch, ...]:
    """Return the switches of the counted part, oldest first."""
    numbers = {choice.model: index for index, choice in enumerate(bench.choices)}
    switches: list[Switch] = []
    for action in reversed(history):
        if action.get("switch_s") is None or action.get("target") not in numbers:
            continue
        at_s = float(action["monotonic_s"]) + float(action["switch_s"]) - records.zero_s
        if 0 <= at_s <= schedule.duration_s:
            whole_s = action.get("transaction_s")
            switches.append(
                Switch(
                    at_s,
                    numbers[action["target"]],
                    float(action["switch_s"]) * 1e3,
                    None if whole_s is None else float(whole_s) * 1e3,
                )
            )
    return tuple(switches)
