"""Look at the aliases, and bring back what should be: adopt, heal, re-assert, hold.

Owns what follows from a difference between the server and what is known of it. It must not
choose variants for their speed or quality, but when clients would get no answer at all.
"""

from __future__ import annotations

import logging
from typing import Any

from controller.actuation import alias as shape
from controller.actuation.client import Fault, TritonError
from controller.actuation.state import Alias, Server
from controller.actuation.transaction import Transactions
from controller.actuation.warm import Warmer
from controller.policy.model import AliasKind
from controller.ports import ActionRecord, Outcome

_LOG = logging.getLogger(__name__)
_HEAL_PAUSE_S, _HEAL_PAUSE_MAX_S = 0.25, 5.0


class Reconciler:
    """Compares the aliases of one server with what is known of them."""

    def __init__(self, server: Server, transactions: Transactions, warmer: Warmer) -> None:
        self._server = server
        self._transactions = transactions
        self._warmer = warmer

    async def look(self, alias: Alias, *, act: bool) -> None:
        """Look at one alias; heal it, re-assert it or take over what somebody else made of it.

        Args:
            alias: what clients call.
            act: whether anything may be changed on the server.

        Raises:
            TritonError: the server could not be asked.
        """
        server = self._server
        if alias.switching:
            return
        writes, now_s = alias.writes, server.clock()
        if alias.held is not None and now_s >= alias.held_until_s:
            self.release(alias)
        seen: dict[str, Any] | None = None
        try:
            seen = await server.control.model_config(alias.name, deadline_s=server.timing.answer_s)
        except TritonError as error:
            if error.fault is not Fault.NOT_FOUND:
                raise
        if alias.switching or alias.writes != writes:
            return  # what was seen is from before or amid a write
        if alias.unsettled is not None and not self._settle(alias, seen):
            return
        if seen is None:
            alias.ready = False
            if act:
                await self.heal(alias, "the alias is unavailable")
        elif shape.target_of(seen) is None:
            await self._not_an_alias(alias, seen, act=act)
        else:
            await self._compare(alias, seen, act=act)

    async def _compare(self, alias: Alias, seen: dict[str, Any], *, act: bool) -> None:
        target, marker = shape.target_of(seen), shape.marker_of(seen)
        as_known = alias.config is not None and (marker, target) == (alias.marker, alias.target)
        if as_known:
            alias.ready, alias.known, alias.heals = True, True, 0
        elif self._is_late(alias, marker):
            self._adopt(alias, seen, "an operation of ours that was given up has happened")
        elif not alias.known:
            self._adopt(alias, seen, "adopted as found")
        elif act and self._is_stale(alias, seen):
            await self._reassert(alias)
        elif not act:
            self._take_over(alias, seen)  # whoever may act has done so
        else:
            by = f" by {marker.owner}" if marker is not None else ""
            self._hold(alias, f"foreign change: pointed at {target}{by}")
            self._adopt(alias, seen, alias.held or "")

    def _is_late(self, alias: Alias, marker: shape.Marker | None) -> bool:
        if marker is None or marker.owner != self._server.owner:
            return False
        return alias.marker is None or marker.serial > alias.marker.serial

    def _is_stale(self, alias: Alias, seen: dict[str, Any]) -> bool:
        """Return whether Triton, not a person, brought back what stood there before.

        When a model that an alias points at is reloaded or resized, Triton re-creates the alias
        at the end from the graph as it was at the beginning.
        """
        marker, target = shape.marker_of(seen), shape.target_of(seen)
        if marker is not None and marker.owner == self._server.owner:
            return alias.marker is not None and marker.serial < alias.marker.serial
        if (marker, target) != alias.baseline:
            return False
        if marker is not None:
            return True
        # Nobody signed what was found first, so a person may have put the same back.
        trusted, alias.trusted_baseline = alias.trusted_baseline, False
        return trusted

    async def _reassert(self, alias: Alias) -> None:
        if alias.config is None or alias.target is None:
            return
        _LOG.warning("%s was reverted by Triton; pointing it at %s again", alias.name, alias.target)
        again = shape.point(alias.config, alias.target, self._server.next_marker())
        reason = "Triton re-created the alias as it stood before another operation"
        await self._transactions.put(alias, again, kind="reassert", reason=reason)

    def _adopt(self, alias: Alias, seen: dict[str, Any], reason: str) -> None:
        source = alias.target
        self._take_over(alias, seen)
        self._emit(alias, "adopt", Outcome.DONE, source, reason)

    def _take_over(self, alias: Alias, seen: dict[str, Any]) -> None:
        alias.target, alias.marker = shape.target_of(seen), shape.marker_of(seen)
        alias.baseline, alias.trusted_baseline = (alias.marker, alias.target), True
        alias.config = seen
        self.renew_promise(alias)
        alias.since_s, alias.ready, alias.known = self._server.clock(), True, True
        alias.successes = alias.failed = 0
        # Readiness is no proof that requests succeed, least of all of what somebody else made.
        alias.asked_s = alias.counted_s = float("-inf")

    def renew_promise(self, alias: Alias) -> None:
        """Have the next write promise clients as many rows as the policy says by now.

        Only where a governor made the alias, and never fewer rows for a variant's sake.
        """
        if alias.config is None or alias.marker is None or not alias.virtual:
            return
        variant = self._server.variants.get(alias.target or "")
        promised, wanted = shape.max_batch(alias.config), alias.policy.client_max_batch
        if promised == 0 or variant is None or variant.config is None:
            return
        limit = min(wanted, max(promised, shape.max_batch(variant.config)))
        alias.config = {**alias.config, "max_batch_size": limit}

    def _hold(self, alias: Alias, why: str) -> None:
        _LOG.warning("%s is held: %s", alias.name, why)
        alias.held = why
        hold_s = self._server.policy.stability.foreign_hold_s
        alias.held_until_s = self._server.clock() + hold_s

    def release(self, alias: Alias) -> None:
        """End a hold: act on the alias again."""
        alias.held, alias.held_until_s = None, 0.0
        if alias.target is None:
            alias.known = False  # what stands under its name is no alias: put ours there

    async def _not_an_alias(self, alias: Alias, seen: dict[str, Any], *, act: bool) -> None:
        """Deal with another kind of model under the alias's name."""
        steps = shape.steps_of(seen)
        alias.ready = True  # clients are answered
        if steps:
            alias.target, alias.config, alias.known = None, None, True
            alias.held = f"{alias.name} is an ensemble of {len(steps)} steps, not an alias"
            alias.held_until_s = float("inf")
        elif alias.held is not None:
            return
        elif alias.known:
            source, alias.target = alias.target, None
            self._hold(alias, "foreign change: a model of that name was loaded from disk")
            self._emit(alias, "adopt", Outcome.DONE, source, alias.held or "")
        elif act:
            # The policy gives the alias the name of a model that clients call already.
            await self.heal(alias, "a model of that name gives way to the alias")

    def _settle(self, alias: Alias, seen: dict[str, Any] | None) -> bool:
        """Find out by looking how an operation ended; tell whether that is settled."""
        lost, server = alias.unsettled, self._server
        if lost is None:
            return True
        took = seen is not None and shape.marker_of(seen) == shape.marker_of(lost.config)
        if seen is not None and not took and server.clock() < lost.until_s:
            alias.ready = True  # the old one serves while Triton works on it
            return False
        alias.unsettled = None
        action = lost.record
        if took and seen is not None:
            alias.config, alias.target = seen, shape.target_of(seen)
            alias.marker, alias.ready, alias.known = shape.marker_of(seen), True, True
            alias.since_s = server.clock()
            alias.asked_s = alias.counted_s = float("-inf")
        outcome = Outcome.DONE if took else Outcome.UNKNOWN if seen is None else Outcome.ROLLED_BACK
        error = None if took else action.error
        server.emit(
            ActionRecord(
                kind=action.kind,
                model=action.model,
                source=action.source,
                target=action.target,
                outcome=outcome,
                started_s=action.started_s,
                switch_s=None,
                transaction_s=server.clock() - action.started_s,
                reason=f"{action.reason}; settled by looking",
                error=error,
            )
        )
        return True

    # -- when clients get no answer ----------------------------------------------------------

    async def heal(self, alias: Alias, why: str) -> None:
        """Point an alias that does not serve at a variant that can."""
        server = self._server
        now_s = server.clock()
        if alias.switching or now_s < alias.heal_after_s:
            return
        if alias.config is None and alias.policy.alias is AliasKind.REPOSITORY:
            await self._load_from_repository(alias)
            return
        config = await self._healing_config(alias)
        if config is None or alias.switching:
            return  # nothing is ready; the variants are being loaded
        pause_s = min(_HEAL_PAUSE_S * 2.0 ** min(alias.heals, 30), _HEAL_PAUSE_MAX_S)
        alias.heals, alias.heal_after_s = alias.heals + 1, now_s + pause_s
        reason = why if alias.config is not None else "created"
        await self._transactions.put(alias, config, kind="heal", reason=reason)

    async def _healing_config(self, alias: Alias) -> dict[str, Any] | None:
        server = self._server
        remembered = server.memory.targets.get(alias.name)
        names = dict.fromkeys([alias.target, remembered, *alias.order])
        ready = []
        for name in names:
            variant = server.variants.get(name or "")
            if variant is None or variant.operation == "unload":
                continue
            # What took the alias down may be what a variant has become in the last second.
            if variant.ready:
                await self._warmer.verify(variant, deadline_s=server.timing.answer_s)
            if variant.ready and variant.config is not None and variant.error is None:
                ready.append(variant)
        fitting = [
            v for v in ready if alias.config and not shape.fits(alias.config, v.config or {})
        ]
        # One that has just been loaded is proven in a moment; before that it may be no cure.
        proven = [v for v in fitting or ready if v.proven]
        settled = [v for v in proven if v.operation in (None, "refresh")]
        chosen = settled or proven or [v for v in fitting or ready if v.operation is None]
        if not chosen:
            return None
        if fitting and alias.config is not None:
            return shape.point(alias.config, chosen[0].model, server.next_marker())
        if alias.config is not None:
            # A smaller promise is better than no answer.
            _LOG.error("%s: no variant keeps its promise to clients any more", alias.name)
        configs = [variant.config for variant in chosen if variant.config is not None]
        config = shape.build(alias.name, configs, client_max_batch=alias.policy.client_max_batch)
        return shape.point(config, shape.target_of(config) or "", server.next_marker())

    async def _load_from_repository(self, alias: Alias) -> None:
        server = self._server
        alias.heal_after_s = server.clock() + _HEAL_PAUSE_MAX_S
        try:
            await server.control.load(alias.name, deadline_s=server.timing.variant_load_s)
        except TritonError as error:
            if error.fault in (Fault.UNREACHABLE, Fault.UNKNOWN):
                raise
            alias.held = f"its repository alias cannot be loaded: {error}"
            alias.held_until_s = alias.heal_after_s
            return
        alias.known = False

    def is_calm(self, alias: Alias) -> bool:
        """Return whether the newest counts show an alias to be as it was at the last look.

        Who writes an alias has it count from zero, and one that is gone is not counted.
        """
        if alias.held is not None or alias.unsettled is not None:
            return False
        counts = self._counted(alias) if alias.known and alias.ready else None
        return counts is not None and counts[0] >= alias.successes and counts[1] == alias.failed

    def _counted(self, alias: Alias) -> tuple[int, int] | None:
        """Return requests answered and failed, as the watch on Triton counted them lately."""
        server = self._server
        found = None if server.counted is None else server.counted(alias.name)
        oldest_s = max(alias.written_s, server.clock() - server.timing.counts_age_s)
        if found is None or found[0] <= oldest_s:
            return None
        counts = found[1]
        return (
            int(counts.completed_requests),
            int(counts.failed_requests + counts.rejected_requests),
        )

    async def ask(self, alias: Alias, *, act: bool) -> None:
        """See that clients get answers, by their own requests or else by one of ours.

        An alias may say it is ready while every request fails: its variant was unloaded after
        Triton had lost track of which one it is.
        """
        server, timing = self._server, self._server.timing
        now_s = server.clock()
        quiet = alias.switching or alias.proof is not None or not alias.ready
        if quiet or alias.config is None or now_s - alias.counted_s < timing.request_s:
            return
        writes, alias.counted_s = alias.writes, now_s
        if not await self._unanswered(alias):
            return
        alias.asked_s = now_s
        try:
            await server.control.prove(
                alias.config, alias.target or alias.name, deadline_s=timing.probe_s
            )
        except TritonError as error:
            if alias.switching or alias.writes != writes:
                return
            if error.fault is Fault.UNREACHABLE:
                raise
            await self._ask_failed(alias, error, act=act)

    async def _unanswered(self, alias: Alias) -> bool:
        """Return whether clients fail, or have been silent for long."""
        server, timing = self._server, self._server.timing
        counts = self._counted(alias)
        if counts is None:
            counts = await server.control.successes(alias.name, deadline_s=timing.answer_s)
        good, bad = counts
        if good < alias.successes or bad < alias.failed:
            alias.successes = alias.failed = 0  # re-created, so counted from zero
        served, failing = good > alias.successes, bad > alias.failed
        alias.successes, alias.failed = good, bad
        if served:
            alias.asked_s = server.clock()
            return False
        return failing or server.clock() - alias.asked_s >= timing.idle_request_s

    async def _ask_failed(self, alias: Alias, error: TritonError, *, act: bool) -> None:
        if error.fault is Fault.NOT_FOUND:
            alias.ready = False
            alias.counted_s = float("-inf")  # asked again at the next look, until it is healed
            if act:
                await self.heal(alias, f"ready, yet every request fails: {error}")
        elif error.fault is Fault.INVALID and alias.target in self._server.variants:
            self._warmer.distrust(self._server.variants[alias.target], str(error))

    def _emit(
        self, alias: Alias, kind: str, outcome: Outcome, source: str | None, reason: str
    ) -> None:
        now_s = self._server.clock()
        self._server.emit(
            ActionRecord(
                kind=kind,
                model=alias.name,
                source=source,
                target=alias.target,
                outcome=outcome,
                started_s=now_s,
                switch_s=None,
                transaction_s=0.0,
                reason=reason,
            )
        )
