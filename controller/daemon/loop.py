"""The loop: observe, decide, act, tell; and the order in which everything starts and stops.

Owns the lifetime of the parts. It must not hold logic of theirs: what is decided is the core's,
what is done the actuator's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controller import __version__
from controller.actuation.actuator import Actuator
from controller.actuation.memory import MemoryWatch
from controller.daemon.acting import Acting
from controller.daemon.actions import ActionLog
from controller.daemon.alarms import Alarms
from controller.daemon.bus import bus_of
from controller.daemon.calendar import Calendar
from controller.daemon.control import DaemonControl
from controller.daemon.dispatchers import Dispatchers
from controller.daemon.learned import Learned
from controller.daemon.log import AUDIT
from controller.daemon.meters import Durations, ProcessMeter
from controller.daemon.minutes import Minutes
from controller.daemon.operator import OperatorWishes
from controller.daemon.placing import Placer
from controller.daemon.policy_file import PolicyFile
from controller.daemon.pooling import WarmPool
from controller.daemon.prober import Prober
from controller.daemon.proofs import Proofs
from controller.daemon.rest import Rest
from controller.daemon.scores import ScoreLog
from controller.daemon.sizing import Sizing
from controller.daemon.standing import Standing
from controller.daemon.status import bus_view, in_a_line, measured
from controller.daemon.steady import settle
from controller.daemon.stopping import bounded
from controller.interfaces.admin import AdminServer
from controller.interfaces.mqtt import MqttBus
from controller.interfaces.prometheus import MetricsServer
from controller.interfaces.sdnotify import ServiceManager
from controller.journal.journal import Journal
from controller.journal.paths import default_journal
from controller.planning.core import GovernorCore
from controller.planning.decision import Decision
from controller.policy.dispatchers import with_dispatchers
from controller.policy.model import Policy
from controller.policy.schedules import under
from controller.telemetry.host import read_memory
from controller.telemetry.hub import Reading, Telemetry
from controller.telemetry.observation import ModelReading, Observation
from controller.telemetry.processes import TritonHost

_LOG = logging.getLogger("governor")

_READ_SHARE: Final = 0.5  # of a tick that a reading may wait for Triton
_SAVE_EVERY_S: Final = 1.0  # a death by kill -9 loses what was learned since
_TELL_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    policy_file: Path
    socket: Path
    ablation: str | None = None
    host: str | None = None  # whose policy; None: this machine's


class Daemon:
    """One governor of one Triton."""

    def __init__(self, policy: Policy, options: Options) -> None:
        self.version = __version__
        self.pid = os.getpid()
        self.calendar = Calendar(policy)
        policy = self.policy = under(policy, self.calendar.active)
        self.policy_file = PolicyFile(
            options.policy_file,
            host=options.host,
            in_force=lambda: self.policy.sha256,
            take=self._take,
            refuse=self._refuse,
        )
        self._started_s = time.monotonic()
        journal_path = policy.journal.path
        self.journal = Journal(
            Path(journal_path) if journal_path else default_journal(), policy.journal.max_bytes
        )
        self.core = GovernorCore(policy, ablation=options.ablation)
        self._rest = Rest(policy, self._is_pressing, clock=time.monotonic)
        seen = with_dispatchers(policy)  # as the server is to see it
        self.telemetry = Telemetry(seen)
        self.triton_host = TritonHost(lambda: self.policy.triton.grpc)
        self.actions = ActionLog(self.journal, self.telemetry)
        self.actuator = Actuator(
            seen,
            on_record=self.actions.record,
            state_file=self.journal.path.with_name("alias.json"),
            free_memory=MemoryWatch(
                policy, read_memory, lambda: self.telemetry.gpus, self.triton_host
            ),
            counted=self.telemetry.counted,
        )
        self.telemetry.on_counted = self.actuator.heed
        self.dispatchers = Dispatchers(policy, self.actuator)
        self.wishes = OperatorWishes(time.time)
        self.standing = Standing(lambda: self.policy, self.wishes, self.actuator)
        self.control = DaemonControl(self)
        self.bus: MqttBus | None = None
        self.observation: Observation | None = None
        self.readings: dict[str, ModelReading] = {}
        self.decisions: dict[str, Decision] = {}
        self.triton_version: str | None = None
        self.triton_up = False
        self.ticks = Durations()
        self.decision_counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.process = ProcessMeter(time.monotonic)
        self._manager = ServiceManager()
        self._admin = AdminServer(self.control, options.socket)
        self._prober = Prober(self.core)
        self._proofs = Proofs(self.actuator)
        self.metrics = MetricsServer(lambda: measured(self))
        self.pool = WarmPool(self.core, self.actuator, self.journal)
        self._placer = Placer(self.core, self.actuator, self.journal)
        self.sizing = Sizing(self.core, self.actuator, self.journal)
        self._alarms = Alarms(self.journal)
        self.minutes = Minutes(self.core, self.actions, self.journal, time.time)
        self._learned = Learned(self.core, self.wishes, self.journal)
        self._scores = ScoreLog(self.core, self.journal, time.monotonic)
        self._started = {"version": self.version, "pid": self.pid}
        self.acting = Acting(self.actuator)
        self._follows: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._sequence = 0
        self._saved_s = self._told_s = self._watched_s = self._started_s
        self._failed_ticks = 0

    @property
    def uptime_s(self) -> float:
        """Return the seconds since the daemon was made."""
        return time.monotonic() - self._started_s

    @property
    def advice(self) -> str | None:
        """Return why nothing is acted on, if so."""
        return self.standing.advice

    # -- life -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until `stop` is called; then stop everything in order.

        Raises AdminSocketError when the socket cannot be opened.
        """
        await self._admin.start()
        try:
            await asyncio.to_thread(self.journal.open)
            self._learned.restore(self.policy, self._started)
            self.standing.apply()
            if self.calendar.active:
                self._tell_schedules()
            await self.telemetry.start()
            await self.actuator.start()
            self.dispatchers.start()
            await self.metrics.follow(_scraped_at(self.policy))
            self._start_bus()
            settle()
            await self._loop()
        finally:
            await self._shut_down()

    def stop(self) -> None:
        """Ask the loop to end after the present tick."""
        self._stopping.set()

    def reload(self) -> None:
        """Read the policy file again; a bad one changes nothing but the status."""
        self._manager.reloading()
        self.policy_file.read()
        self._manager.ready()

    def _refuse(self, error: str) -> None:
        AUDIT.error("the policy was not taken, the last good one stays: %s", error)
        self.journal.event("policy", None, "a bad policy was refused", {"error": error})

    def _take(self, policy: Policy) -> str | None:
        """Put a policy in force; return what of it is not."""
        as_read, active = policy, self.calendar.now(policy)
        policy = under(policy, active)
        restart = [
            name
            for name in ("journal", "mqtt")  # another Triton is followed
            if getattr(policy, name) != getattr(self.policy, name)
        ]
        changed = f"taken, but {', '.join(restart)} changed: restart the daemon for that"
        note = changed if restart else None
        self._put_in_force(policy)
        self._in_force(as_read, active)
        self.journal.event("policy", None, "a new policy is in force", {"sha256": policy.sha256})
        AUDIT.info("a new policy is in force%s", f" ({note})" if restart else "")
        return note

    def _put_in_force(self, policy: Policy) -> None:
        self.core.set_policy(policy)
        self.policy = policy  # not before: what fails there is not in force
        self._rest.set_policy(policy)
        self.pool.renew()
        self._placer.renew()
        self.dispatchers.set_policy(policy)
        seen = with_dispatchers(policy)
        self.telemetry.set_policy(seen)
        for following in (
            asyncio.create_task(self.actuator.set_policy(seen), name="new-policy"),
            asyncio.create_task(self.metrics.follow(_scraped_at(policy)), name="new-metrics"),
        ):
            self._follows.add(following)  # the next edit may come before it is through
            following.add_done_callback(self._follows.discard)
        names = {model.name for model in policy.models}
        self.decisions = {k: v for k, v in self.decisions.items() if k in names}

    def _turn_of_schedules(self) -> None:
        """Follow the clock on the wall."""
        as_read = self.calendar.read
        active = self.calendar.now(as_read)
        if active != self.calendar.active:
            self._put_in_force(under(as_read, active))
            self._in_force(as_read, active)

    def _in_force(self, as_read: Policy, active: tuple[str, ...]) -> None:
        """Take note of what is in force, and tell of other schedules than before."""
        before = self.calendar.active
        self.calendar.commit(as_read, active)
        if active != before:
            self._tell_schedules()

    def _tell_schedules(self) -> None:
        names = ", ".join(self.calendar.active) or "none"
        self.journal.event("schedule", None, f"schedules in force: {names}")
        _LOG.info("schedules in force: %s", names)

    def _start_bus(self) -> None:
        self.bus = bus_of(self.policy, self.control)
        if self.bus is not None:
            self._bus_task = asyncio.create_task(self.bus.run(), name="mqtt")

    async def _shut_down(self) -> None:
        """Stop in order: no commands, the action in flight, the bus, systemd, everything else."""
        _LOG.info("stopping")
        if self.bus is not None:
            self.bus.refuse_commands()
        await bounded("the admin socket", self._admin.stop())
        await bounded("dispatchers", self.dispatchers.stop())
        await bounded("actuation", self.actuator.stop())
        self.acting.cancel()
        if self.bus is not None:
            await bounded("mqtt", self.bus.stop())
            self._bus_task.cancel()
        self._manager.stopping()
        await bounded("telemetry", self.telemetry.stop())
        await bounded("probing", self._prober.stop())
        await bounded("prometheus", self.metrics.stop())
        self._learned.save(self.policy, self._started, everything=True)
        self.minutes.close()
        await bounded("the journal", asyncio.to_thread(self.journal.close))
        self._manager.close()

    # -- the loop -------------------------------------------------------------------------------

    async def _loop(self) -> None:
        # One task for all ticks: a timeout that runs out at each of them raises two exceptions.
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        following = asyncio.create_task(self.policy_file.follow(), name="policy-file")
        try:
            await self._tick_until(stopping)
        finally:
            stopping.cancel()
            following.cancel()

    async def _tick_until(self, stopping: asyncio.Task[bool]) -> None:
        ready = False
        while not self._stopping.is_set():
            try:
                await self._tick()
                self._after_tick()
            except Exception:  # noqa: BLE001
                # A tick that fails must not end the service: Triton serves on as it is.
                self._failed_ticks += 1
                if self._failed_ticks <= 10 or self._failed_ticks % 1000 == 0:
                    _LOG.exception("tick %d failed", self._sequence)
            else:
                if not ready:
                    ready = True
                    self._manager.ready()
                    _LOG.info("governing %s", ", ".join(m.name for m in self.policy.models))
            await self._rest.after_tick(stopping, at_ease=self.core.at_ease)

    async def _is_pressing(self, budget_s: float) -> bool:
        """Return whether what waits cannot wait for the tick."""
        pending = {} if self.advice is not None else await self.telemetry.glance(budget_s)
        if not any(pending.values()):
            return False  # as nearly always, and where nobody would act on it
        return self.core.is_pressing(self.standing.readings(time.monotonic()), pending)

    async def _tick(self) -> None:
        began_s = time.monotonic()
        reading = await self.telemetry.read(self.policy.tick_s * _READ_SHARE)
        for what, model in self.wishes.expire():
            self.journal.event(f"{what} ended", model, f"the {what} ran out")
        self.readings = self.standing.readings(reading.now_s)
        self.observation = observation = self._observe(reading)
        decisions = self.core.step(observation)
        for decision in decisions:
            self.decisions[decision.model] = decision
            self.decision_counts[decision.model][decision.reason.value] += 1
            if decision.changes and self.standing.carries_out(decision):
                self.acting.carry_out(decision)
        self.ticks.add(took_s := time.monotonic() - began_s)
        for decision in decisions:
            self.journal.decision(decision)
        if self.triton_up and self.standing.probes() and not self._prober.busy:
            self._prober.send(self.core.probes(observation), self.actuator)
        self.minutes.tick(
            observation, decisions, self.policy, took_s=took_s, triton_up=self.triton_up
        )

    def _observe(self, reading: Reading) -> Observation:
        if reading.triton_up != self.triton_up:
            word = "is there" if reading.triton_up else "is gone"
            version = {"version": reading.triton_version}
            self.journal.event("triton", None, f"Triton {word}", version)
            _LOG.warning("Triton at %s %s", self.policy.triton.grpc, word)
        self.triton_up = reading.triton_up
        self.triton_version = reading.triton_version or self.triton_version
        self._sequence += 1
        proofs = self._proofs.take(reading.now_s)
        variants, batches, dispatched = self.dispatchers.observed(
            reading.variants, reading.batch_samples, proofs
        )
        return Observation(
            now_s=reading.now_s,
            sequence=self._sequence,
            models=self.readings,
            variants=variants,
            window_s=reading.window_s,
            readings_age_s=reading.readings_age_s,
            gpus=reading.gpus,
            host=reading.host,
            batch_samples=batches,
            request_samples=self._proofs.clients(reading.request_samples),
            actions=self.actions.take(),
            operations=self.actuator.operations(),
            probes=self._prober.take(),
            proofs=proofs,
            placement=self.actuator.placement(),
            instances=self.actuator.instances(),
            memory=self.actuator.memory(),
            dispatched=dispatched,
            sources=reading.sources,
        )

    def _after_tick(self) -> None:
        now_s = time.monotonic()
        self.actuator.avoid(self.core.lost)
        self._placer.after_tick(self.observation, self.policy)
        self.pool.after_tick(self.observation, self.policy)
        self.sizing.after_tick(self.observation, self.policy)
        self.dispatchers.after_tick(self.core.late.plans)
        interval_s = self._manager.watchdog_interval_s
        if interval_s is not None and now_s - self._watched_s >= interval_s / 2:
            self._watched_s = now_s
            self._manager.watchdog()
        if now_s - self._saved_s >= _SAVE_EVERY_S:
            self._saved_s = now_s
            self._learned.save(self.policy, self._started)
        if now_s - self._told_s >= _TELL_EVERY_S:
            self._told_s = now_s
            self._turn_of_schedules()
            self._alarms.look(self.core, self.policy)
            self._scores.after_tick(self.policy, self.readings)
            self.process.view()
            for model in self.policy.models:
                order = self.core.speed_order(model.name)
                self.actuator.set_speed_order(model.name, self.dispatchers.order(model.name, order))
            self._manager.status(in_a_line(self))
            if self.bus is not None:
                self.bus.publish_state(bus_view(self.control.status()["models"]))


def _scraped_at(policy: Policy) -> str | None:
    return None if policy.prometheus is None else policy.prometheus.listen
