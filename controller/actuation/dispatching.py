"""The governor's side of a dispatcher: plans go there, reports come back, and is it well?

Owns one model's conversation with its dispatcher. It must not make plans, nor decide what follows
from an illness: the core does.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from controller.actuation.client import Fault, TritonError
from controller.dispatch.plan import Plan
from controller.dispatch.signed import seal
from controller.policy.model import ModelPolicy
from controller.ports import ActionRecord, Outcome
from controller.telemetry.observation import Dispatched, VariantReading

if TYPE_CHECKING:
    from controller.actuation.client import TritonControl
    from controller.actuation.keeper import Keeper
    from controller.actuation.state import Variant

_LOG = logging.getLogger("governor")

_ILL_AFTER_S: Final = 0.5  # without an answer: asked ten times a second, 0.6 s after the last one
_ANSWER_S: Final = 0.3
_RENEW_S: Final = 0.2  # between two plans, at least
_NOTICEABLE: Final = 0.02  # of a batch's time: a plan that differs by less is not worth a message
_DEAD_AFTER_S: Final = 3.0
_RENEWED_S: Final = 10.0  # between two loads of one that is dead, at first
_RENEWED_MOST_S: Final = 300.0
# One that was left as it was ill is not led to again for so long, twice as long each time, until it
# has been well for long: a switch to and fro twice a second helps nobody.
_LEFT_S: Final = 1.0
_LEFT_MOST_S: Final = 60.0
_LONG_WELL_S: Final = 300.0
_OWN: Final = 20  # requests of ours that are not counted yet: more of them never were
_DEAD: Final = (Fault.UNKNOWN, Fault.INVALID)
_OLDER: Final = re.compile(r"older than the last one \((\d+)\)")


class Dispatching:
    """Talks to one dispatcher.

    Args:
        policy: of its model.
        clock: monotonic seconds.
        serial: of a message, from a clock that a restart does not set back.
    """

    def __init__(
        self, policy: ModelPolicy, *, clock: Callable[[], float], serial: Callable[[], int]
    ) -> None:
        if policy.dispatcher is None:
            raise ValueError(f"{policy.name} has no dispatcher")
        self.policy = policy
        self.model = policy.dispatcher.model
        self._key_file = Path(policy.dispatcher.key_file)
        self.report: Mapping[str, Any] | None = None
        self.error: str | None = "it was not asked yet"
        self._clock, self._new_serial = clock, serial
        self._serial = self._plan_serial = 0
        self._wanted: Plan | None = None
        self._sent: Plan | None = None
        self._sent_s = self._heard_s = -math.inf
        self._asked_s: float | None = None  # the first question that it has not answered
        self._ill_s = self._back_s = -math.inf  # when it was ill last, and is not led to until
        self._illnesses = 0  # in a row
        self._silent_s = math.inf  # since when it has not answered
        self._renew_s, self._renewals = -math.inf, 0  # not before; how often in a row
        self._served: dict[str, int] = {}
        self.quality: float | None = None
        # Requests, as last reported.
        self._ended = {"failed": 0, "refused": 0, "completed": 0, "in_time": 0}
        self._unseen = dict(self._ended)
        self._own = 0  # requests of ours that Triton has counted or is about to

    def want(self, plan: Plan | None) -> None:
        """Have the dispatcher choose by a plan; None: by the last one."""
        self._wanted = plan

    @property
    def healthy(self) -> bool:
        """Return whether it answers, and chooses by a plan of ours."""
        report = self.report
        return (
            report is not None
            and self._clock() - self._heard_s <= _ILL_AFTER_S
            and self._clock() >= self._back_s
            and self._plan_serial > 0
            and report.get("plan_serial") == self._plan_serial
        )

    @property
    def ill(self) -> bool:
        """Return whether it was asked, and has not answered for too long.

        That nobody asked, as the governor stood still, is no illness.
        """
        return self._asked_s is not None and self._clock() - self._asked_s > _ILL_AFTER_S

    def asks(self) -> None:
        """Take note that it should answer from now on."""
        if self._asked_s is None:
            self._asked_s = self._clock()

    def leaves_alone(self) -> None:
        """Take note that nobody wants anything of it."""
        self._asked_s = None

    async def talk(self, control: TritonControl, config: Mapping[str, Any]) -> None:
        """Ask for a report, and send the plan where another one is wanted. Never raises."""
        now_s, plan = self._clock(), self._due()
        self.asks()
        self._serial = max(self._serial + 1, self._new_serial())
        body = {"plan": None if plan is None else plan.values()}
        try:
            # Read each time: it may be made anew, and who may not read it should know soon.
            key = self._key_file.read_bytes().strip()
            message = seal(key, self._serial, body)
            report = await control.command(config, message, deadline_s=_ANSWER_S)
        except OSError as error:
            self._ail(f"its key cannot be read: {error}")
        except TritonError as error:
            self._ail(str(error))
            if error.fault in _DEAD and "refused" not in str(error):
                self._silent_s = min(self._silent_s, now_s)
            if error.fault is Fault.INVALID and (found := _OLDER.search(str(error))):
                self._serial = int(found.group(1))  # another governor spoke to it, or a clock leapt
        else:
            self._own += 1
            if plan is not None:
                self._sent, self._sent_s, self._plan_serial = plan, now_s, self._serial
            self._take_in(report)

    def _due(self) -> Plan | None:
        """Return the plan that is to be sent now; None: it has what is wanted."""
        wanted, sent = self._wanted, self._sent
        if wanted is None:
            return None
        known = None if self.report is None else self.report.get("plan_serial")
        if sent is None or known != self._plan_serial:
            return wanted  # it was made anew, or never had one
        if sent._replace(took_s=(), tail=()) != wanted._replace(took_s=(), tail=()):
            return wanted
        if self._clock() - self._sent_s < _RENEW_S:
            return None
        pairs = zip(
            (took for row in sent.took_s for took in row),
            (took for row in wanted.took_s for took in row),
            strict=False,
        )
        sizes = [len(row) for row in sent.took_s] != [len(row) for row in wanted.took_s]
        return wanted if sizes or any(abs(a - b) > _NOTICEABLE * a for a, b in pairs) else None

    def _take_in(self, report: Mapping[str, Any]) -> None:
        if self.error is not None:
            _LOG.info("%s: its dispatcher %s answers", self.policy.name, self.model)
        served = {str(k): int(v) for k, v in report.get("served", {}).items()}
        lately = {name: count - self._served.get(name, 0) for name, count in served.items()}
        if any(count < 0 for count in lately.values()):
            lately = served  # it was made anew
        qualities = {variant.model: variant.quality for variant in self.policy.variants}
        total = sum(count for name, count in lately.items() if name in qualities)
        if total > 0 and self.report is not None:
            worth = sum(qualities[k] * count for k, count in lately.items() if k in qualities)
            self.quality = worth / total
        self._count(report)
        self._served, self._silent_s, self._asked_s = served, math.inf, None
        known = self.report or {}
        untold = report.get("untold")
        if untold is not None and untold != known.get("untold"):
            _LOG.warning("%s: its dispatcher tells no latencies: %s", self.policy.name, untold)
        for name, why in report.get("shunned", {}).items():
            if name not in known.get("shunned", {}):
                told = (self.policy.name, name, why)
                _LOG.warning("%s: its dispatcher leaves %s alone for a while: %s", *told)
        if self._clock() - self._renew_s > _RENEWED_S:
            self._renewals = 0  # it has been well for long
        self.report, self.error, self._heard_s = report, None, self._clock()

    def _count(self, report: Mapping[str, Any]) -> None:
        """Take note of how many requests ended since the last report, and how."""
        counts = {what: int(report.get(what, 0)) for what in self._ended}
        up_s = [float((one or {}).get("uptime_s", 0.0)) for one in (self.report, report)]
        fell = any(counts[what] < before for what, before in self._ended.items())
        if fell or up_s[1] < up_s[0]:
            self._ended = dict.fromkeys(counts, 0)  # it was made anew
        if self.report is not None:  # else they are of before us
            for what, before in self._ended.items():
                self._unseen[what] += counts[what] - before
        self._ended = counts

    def _ail(self, error: str) -> None:
        if self.error is None:
            _LOG.warning("%s: its dispatcher %s: %s", self.policy.name, self.model, error)
        self.error = error

    def is_to_be_renewed(self) -> bool:
        """Return whether it has been silent for so long that only a load brings it back.

        Triton does not start a Python model's process again. True once, then ever less often.
        """
        now_s = self._clock()
        if now_s - self._silent_s < _DEAD_AFTER_S or now_s < self._renew_s:
            return False
        self._renew_s = now_s + min(_RENEWED_S * 2.0**self._renewals, _RENEWED_MOST_S)
        self._renewals += 1
        return True

    def observed(self, reading: VariantReading | None, proofs: int = 0) -> Dispatched:
        """Return what it did since the last call, by what Triton counted of it since.

        `proofs`: requests that were sent to it to see whether it answers. These, and what we said
        to it ten times a second, no client sent.
        """
        self._notice_illness()
        report, ended = self.report or {}, self._unseen
        counted = 0 if reading is None else reading.completed_requests
        self._own = min(self._own + proofs, _OWN)
        own = min(self._own, counted)
        self._own -= own
        self._unseen = dict.fromkeys(ended, 0)
        return Dispatched(
            self.model,
            healthy=self.healthy,
            ill=self.ill,
            arrived_requests=counted - own,
            arrived_rows=0 if reading is None else max(reading.completed_rows - own, 0),
            failed_requests=ended["failed"] + ended["refused"],
            rejected_requests=ended["refused"],
            waiting_requests=int(report.get("waiting", 0)),
            ended_requests=ended["completed"],
            late_requests=max(ended["completed"] - ended["in_time"], 0),
            quality=self.quality,
            told_s=report.get("told_s"),
        )

    def _notice_illness(self) -> None:
        now_s = self._clock()
        if self.report is None or not self.ill:
            return
        if now_s > self._back_s:  # it is another one
            self._illnesses = 0 if now_s - self._ill_s > _LONG_WELL_S else self._illnesses
            self._illnesses += 1
        self._ill_s = now_s
        away_s = min(_LEFT_S * 2.0 ** min(self._illnesses - 1, 10), _LEFT_MOST_S)
        self._back_s = now_s + away_s

    def view(self) -> dict[str, Any]:
        """Return how it is, JSON-ready."""
        report = self.report or {}
        served, completed = report.get("served", {}), report.get("completed", 0)
        names = {variant.model: variant.name for variant in self.policy.variants}
        return {
            "model": self.model,
            "healthy": self.healthy,
            "error": self.error,
            "quality": self.quality,
            "variants": [names.get(name, name) for name in report.get("plan", ())],
            "left_alone": {
                names.get(name, name): why for name, why in report.get("shunned", {}).items()
            },
            "waiting": report.get("waiting"),
            "completed": completed,
            "failed": report.get("failed"),
            "refused": report.get("refused"),
            "in_time": report["in_time"] / completed if completed else None,
            "slowdown": report.get("slowdown"),
            "p50_ms": _ms(report.get("p50_s")),
            "p99_ms": _ms(report.get("p99_s")),
            "told_p99_ms": _ms(report.get("told_s")),
            "coverage": report.get("told_kept"),
            "served": {names.get(name, name): count for name, count in served.items()},
        }


async def renew(keeper: Keeper, variant: Variant) -> ActionRecord:
    """Have a dispatcher made anew whose process died, beside what is left of it.

    Triton does not start such a process again, and cannot unload what it had taken over and never
    answered: an unload would wait without end. A load with another config waits for nobody.
    """
    server, warmer = keeper.server, keeper.warmer
    started_s = server.clock()
    told: dict[str, Any] = {"started_s": started_s, "reason": "its dispatcher does not answer"}
    async with warmer.lock:
        if variant.operation is not None or variant.config is None:
            return warmer.record(variant, "load", Outcome.BUSY, **told)
        config = variant.config
        parameters = {**config.get("parameters", {}), "renewed": {"string_value": f"{started_s}"}}
        variant.operation = "load"
        variant.ready = variant.proven = variant.warm = False
        try:
            await server.control.load(
                variant.model,
                override={**config, "parameters": parameters},
                deadline_s=server.timing.unload_s,
            )
        except TritonError as error:
            return warmer.emit(variant, "load", Outcome.FAILED, error=str(error), **told)
        finally:
            variant.operation, variant.config = None, None
    return warmer.emit(variant, "load", Outcome.DONE, **told)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
