"""What becomes of each minute: summed tick by tick, handed to the journal when it is over.

Owns the sums of the minute that runs. It must not decide anything, and adds next to nothing to a
tick: what is counted elsewhere is read here, and text is made in the journal's thread.

How many requests were late is known of traced ones alone, and traces are about as many a second
whatever the load: a calm second must not speak for a burst. So each second, or as long as it takes
until there is one, is a stratum (Horvitz & Thompson 1952): its traced requests speak for all that
completed in it. Traces come a moment after the counters, which is less than a stratum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from controller.journal.minutes import MINUTE_S, MachineMinute, ModelMinute, add_gpu, bucket_of
from controller.planning.decision import Decision
from controller.policy.model import ModelPolicy, Policy
from controller.prediction.predictor import Tally
from controller.telemetry.observation import Dispatched, Observation, RequestSample

if TYPE_CHECKING:
    from controller.daemon.actions import ActionLog
    from controller.journal.journal import Journal
    from controller.planning.core import GovernorCore

_STRATUM_S: Final = 1.0
_WAIT_S: Final = 10.0  # for a trace, until what completed stays unknown
_LONGEST_S: Final = 5.0  # between two ticks; more was not watched


@dataclass(slots=True)
class _Stratum:
    """What completed, and what is known of it."""

    began_s: float
    completed: int = 0
    failed: int = 0
    in_time: int = 0
    late: int = 0
    quality: float = 0.0  # of those in time
    buckets: list[int] = field(default_factory=list)


class ModelRecorder:
    """Sums what one model does. Pure: the time is what it is told."""

    def __init__(self, policy: ModelPolicy, now_s: float) -> None:
        self.minute = ModelMinute()
        self._tally = Tally()
        self._stratum = _Stratum(now_s)
        self._second_s, self._came = now_s, 0.0
        self.set_policy(policy)

    def set_policy(self, policy: ModelPolicy) -> None:
        """Follow a new policy."""
        self._policy = policy
        self._by_model = {variant.model: variant for variant in policy.variants}

    def tick(
        self,
        observation: Observation,
        decision: Decision,
        tally: Tally,
        samples: Sequence[RequestSample],
        *,
        seconds: float,
        triton_up: bool,
    ) -> None:
        """Add what one tick saw, which covers so many seconds."""
        minute, now_s = self.minute, observation.now_s
        minute.seconds += seconds
        before, self._tally = self._tally, tally
        if tally.completed < before.completed:
            before = Tally()  # it left the policy and is back, all between two ticks
        completed, arrived = tally.completed - before.completed, tally.arrived - before.arrived
        # What was told is counted anew when the objective is another.
        goes_on = tally.told >= before.told
        minute.singles += tally.told - (before.told if goes_on else 0)
        minute.singles_kept += tally.kept - (before.kept if goes_on else 0)
        minute.arrived += arrived
        minute.completed += completed
        failed = self._count(observation, completed)
        minute.failed += failed
        if triton_up and decision.serving is not None:
            minute.variants.setdefault(decision.serving, [0.0, 0.0])[0] += seconds
        reason = decision.reason.value
        minute.reasons[reason] = minute.reasons.get(reason, 0.0) + seconds
        minute.waiting_s += decision.backlog_requests * seconds
        minute.waiting_most = max(minute.waiting_most, decision.backlog_requests)
        if completed:
            self._note_told(decision, self._late(observation), completed)
        self._follow_peak(now_s, arrived)
        stratum = self._stratum
        if not (stratum.completed or stratum.failed or stratum.in_time or stratum.late):
            stratum.began_s = now_s
        stratum.completed += completed
        stratum.failed += failed
        late = self._late(observation)
        worth = {} if late is None or late.quality is None else {late.model: late.quality}
        for sample in samples:
            self._note_traced(stratum, sample, worth)
        if now_s - stratum.began_s >= _STRATUM_S:
            self._settle(now_s)

    def _count(self, observation: Observation, completed: int) -> int:
        """Add what the variants' counters say; return how many requests failed."""
        minute, late = self.minute, self._late(observation)
        readings = {name: observation.variants.get(name) for name in self._by_model}
        known = {name: reading for name, reading in readings.items() if reading is not None}
        # A batch of a dispatcher's is one request to a variant: its rows tell how many it had.
        counts = {
            name: reading.completed_requests if late is None else reading.completed_rows
            for name, reading in known.items()
        }
        failed = sum(reading.failed_requests for reading in known.values())
        failed = failed if late is None else late.failed_requests
        counted = sum(counts.values())
        if not completed or not counted:
            return failed
        share = completed / counted
        # Less than 1 where probes of ours are among them.
        share = min(share, 1.0) if late is None else share
        for name, variant in self._by_model.items():
            reading = readings[name]
            if reading is None or not counts[name]:
                continue
            own = share * counts[name]
            minute.variants.setdefault(variant.name, [0.0, 0.0])[1] += own
            minute.quality += own * variant.quality
            # Of a batch, so of each of those in it; what they waited before nobody counts.
            own_s = own / max(reading.completed_requests, 1)
            minute.queue_s += own_s * reading.queue_s
            minute.compute_s += own_s * reading.compute_s
        return failed

    def _late(self, observation: Observation) -> Dispatched | None:
        """Return what the dispatcher did, where it serves."""
        late = observation.dispatched.get(self._policy.name)
        reading = observation.models.get(self._policy.name)
        return late if late and reading and reading.serving == late.model else None

    def _note_told(self, decision: Decision, late: Dispatched | None, completed: int) -> None:
        if late is not None and late.told_s is not None:
            self.minute.told_s += late.told_s * completed
            self.minute.told_of += completed
        for candidate in decision.candidates:
            if candidate.variant == decision.serving:
                # False for what is infinite, and for no number at all.
                if candidate.known and 0.0 < candidate.told_p99_s < 1e6:
                    self.minute.told_s += candidate.told_p99_s * completed
                    self.minute.told_of += completed
                return

    def _follow_peak(self, now_s: float, arrived: float) -> None:
        self._came += arrived
        elapsed_s = now_s - self._second_s
        if elapsed_s >= 1.0:
            self.minute.peak_rps = max(self.minute.peak_rps, self._came / elapsed_s)
            self._second_s, self._came = now_s, 0.0

    def _note_traced(
        self, stratum: _Stratum, sample: RequestSample, worth: Mapping[str, float]
    ) -> None:
        """Take a traced request in; `worth`: of what is no variant, by Triton's name."""
        variant = self._by_model.get(sample.model or "")
        quality = worth.get(sample.model or "") if variant is None else variant.quality
        if quality is None:
            return
        stratum.buckets.append(bucket_of(sample.latency_s))
        if sample.latency_s <= self._policy.objective.latency_s:
            stratum.in_time += 1
            stratum.quality += quality
            self.minute.in_time += 1
        else:
            stratum.late += 1
            self.minute.late += 1

    def _settle(self, now_s: float, *, whatever: bool = False) -> None:
        """Let the traced requests of a stratum speak for it, once there are some."""
        stratum, minute = self._stratum, self.minute
        traced = stratum.in_time + stratum.late
        waits = bool(traced) != bool(stratum.completed)  # one comes a moment after the other
        if waits and not whatever and now_s - stratum.began_s < _WAIT_S:
            return
        if stratum.completed and not traced:
            minute.unknown += stratum.completed
        else:
            known = float(max(stratum.completed, traced))
            each = known / traced if traced else 0.0
            minute.known += known
            minute.known_failed += stratum.failed
            minute.known_late += each * stratum.late
            minute.known_quality += each * stratum.quality
            allowed = self._policy.objective.allowed_miss_ratio
            minute.allowed += allowed * (known + stratum.failed)
            for bucket in stratum.buckets:
                minute.latencies[bucket] = minute.latencies.get(bucket, 0.0) + each
        self._stratum = _Stratum(now_s)

    def cut(
        self, now_s: float, switches: int, failed_actions: int, *, last: bool = False
    ) -> ModelMinute:
        """Return the sums so far and begin anew; what waits for its traces stays, but at the last.

        Args:
            now_s: when.
            switches: of this model meanwhile.
            failed_actions: the same.
            last: nothing will follow.
        """
        if last:
            self._settle(now_s, whatever=True)
        minute, self.minute = self.minute, ModelMinute()
        minute.latency_s = self._policy.objective.latency_s
        minute.percentile = self._policy.objective.percentile
        minute.switches, minute.failed_actions = switches, failed_actions
        return minute


class Minutes:
    """Records every model of the policy and the machine, minute by minute.

    Args:
        core: counts requests.
        actions: counts switches.
        journal: gets the minutes.
        unix_clock: tells which minute it is.
    """

    def __init__(
        self,
        core: GovernorCore,
        actions: ActionLog,
        journal: Journal,
        unix_clock: Callable[[], float],
    ) -> None:
        self._core = core
        self._actions = actions
        self._journal = journal
        self._clock = unix_clock
        self._policy: Policy | None = None
        self._models: dict[str, ModelRecorder] = {}
        self._machine = MachineMinute()
        self._began = 0  # the minute that runs, in minutes since 1970
        self._now_s: float | None = None
        self._switches: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def tick(
        self,
        observation: Observation,
        decisions: Sequence[Decision],
        policy: Policy,
        *,
        took_s: float,
        triton_up: bool,
    ) -> None:
        """Add a tick, which took so long; hand over the minute before, if it is over."""
        now_s = observation.now_s
        minute = int(self._clock() // MINUTE_S)
        if minute != self._began:
            self._hand_over(now_s)
            self._began = minute
        if policy is not self._policy:
            self._follow(policy, now_s)
        seconds = 0.0 if self._now_s is None else min(now_s - self._now_s, _LONGEST_S)
        self._now_s = now_s
        samples: dict[str, list[RequestSample]] = {}
        for sample in observation.request_samples:
            samples.setdefault(sample.alias, []).append(sample)
        for decision in decisions:
            recorder = self._models.get(decision.model)
            if recorder is not None:
                recorder.tick(
                    observation,
                    decision,
                    self._core.tally(decision.model),
                    samples.get(decision.model, ()),
                    seconds=seconds,
                    triton_up=triton_up,
                )
        self._note_machine(observation, seconds, took_s, triton_up=triton_up)

    def close(self) -> None:
        """Hand over what there is of the minute that runs: the daemon stops."""
        if self._now_s is not None:
            self._hand_over(self._now_s, last=True)
            self._now_s = None

    def _follow(self, policy: Policy, now_s: float) -> None:
        """Go on with the models of another policy; hand over what there is of those that left."""
        self._policy = policy
        kept: dict[str, ModelRecorder] = {}
        for model in policy.models:
            found = self._models.pop(model.name, None)
            if found is None:
                found = ModelRecorder(model, now_s)
                self._switches[model.name] = self._actions.switch_counts[model.name]
                self._failures[model.name] = self._actions.failure_counts[model.name]
            found.set_policy(model)
            kept[model.name] = found
        self._hand_over_models(now_s, self._models, last=True)
        self._models = kept

    def _note_machine(
        self, observation: Observation, seconds: float, took_s: float, *, triton_up: bool
    ) -> None:
        machine = self._machine
        machine.seconds += seconds
        machine.triton_s += seconds if triton_up else 0.0
        machine.ticks += 1
        machine.tick_s += took_s
        machine.slowest_tick_s = max(machine.slowest_tick_s, took_s)
        machine.host_s += (observation.host.cpu_ratio or 0.0) * seconds
        for gpu in observation.gpus:
            if gpu.error is None:
                add_gpu(
                    machine.gpus,
                    str(gpu.index),
                    (
                        seconds,
                        (gpu.utilization_ratio or 0.0) * seconds,
                        seconds if gpu.throttle_reasons else 0.0,
                        float(gpu.memory_used_bytes or 0),
                        gpu.temperature_celsius or 0.0,
                    ),
                )

    def _hand_over(self, now_s: float, *, last: bool = False) -> None:
        self._hand_over_models(now_s, self._models, last=last)
        machine, self._machine = self._machine, MachineMinute()
        if machine.ticks:
            self._journal.minute(self._began * MINUTE_S, None, machine)

    def _hand_over_models(
        self, now_s: float, models: Mapping[str, ModelRecorder], *, last: bool = False
    ) -> None:
        for name, recorder in models.items():
            switches = self._actions.switch_counts[name]
            failures = self._actions.failure_counts[name]
            minute = recorder.cut(
                now_s,
                switches - self._switches[name],
                failures - self._failures[name],
                last=last,
            )
            self._switches[name], self._failures[name] = switches, failures
            if minute.reasons:  # there was a tick
                self._journal.minute(self._began * MINUTE_S, name, minute)
