"""The governor's mind: observation in, decisions out.

Owns learning from observations and the choice for every model, with its reason. It must not know
the time but from the observation, nor do anything: no clock, no sockets, no unseeded randomness.
The same object runs live, in replay and in a simulation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controller.planning.choice import ModelMind
from controller.planning.decision import Decision, Reason
from controller.planning.devices import DeviceWatch, host_contention
from controller.planning.expected import Work, expected_work
from controller.planning.late import LateBinding
from controller.planning.limits import GpuLimits, most_per_s
from controller.planning.pacing import interval_s
from controller.planning.pool import HORIZON_S, Wish
from controller.planning.price import DevicePrices
from controller.planning.scorekeeper import Score
from controller.planning.sizing import Resize, agreed
from controller.policy.model import ModelPolicy, Policy
from controller.prediction.costs import ActionCosts
from controller.prediction.overlap import Overlap
from controller.prediction.placement import Placement
from controller.prediction.prediction import Prediction, predict
from controller.prediction.predictor import Tally
from controller.prediction.probing import Probe, ProbePlan
from controller.prediction.queues import look
from controller.prediction.service import ServiceTimes
from controller.prediction.sharing import DeviceSharing
from controller.prediction.stalls import StallWatch
from controller.prediction.traffic import TrafficCount
from controller.telemetry.observation import BatchSample, ModelReading, Observation

Floats = NDArray[np.float64]

MAX_ROWS: Final = 64  # of a batch that is modelled, where no more is declared
MOST_ROWS: Final = 512  # of a batch that is modelled, whatever is declared
_REACTION_S: Final = 0.010  # from an observation to the first request on the new variant
STATE_FORMAT: Final = 1


class GovernorCore:
    """Learns and decides for every model of a policy.

    `ablation` is None, "frozen" (the predictor stays at its prior) or "shuffled" (each variant is
    given another's service times); the demo shows with them that learning matters.
    """

    def __init__(self, policy: Policy, *, ablation: str | None = None) -> None:
        if ablation not in {None, "frozen", "shuffled"}:
            raise ValueError(f"unknown ablation {ablation!r}: frozen or shuffled")
        self._ablation = ablation
        self._policy = policy
        self._service = self._new_service(policy)
        self._minds = {model.name: self._new_mind(model) for model in policy.models}
        self._probes = ProbePlan(policy.probing)
        self._sharing = DeviceSharing()
        self._stalls = StallWatch()
        self._overlap = Overlap()
        self.costs = ActionCosts()
        self._traffic = TrafficCount()
        self._prices = DevicePrices([model.weight for model in policy.models])
        self.limits = GpuLimits(policy.gpu)
        self._devices = DeviceWatch()
        self.lost: frozenset[int] = frozenset()  # GPUs on which nothing should run, now
        self._placement: Placement | None = None
        self._work_s = 0.0  # that waited at the last step
        self.late = LateBinding()
        self.at_ease = False  # dispatchers choose, and nothing is left to measure

    def _new_service(self, policy: Policy) -> ServiceTimes:
        models = dict.fromkeys(v.model for model in policy.models for v in model.variants)
        most = max(model.client_max_batch for model in policy.models)
        declared = max(v.max_batch or 1 for model in policy.models for v in model.variants)
        usual = max(most, min(declared, MOST_ROWS))
        return ServiceTimes(
            tuple(models),
            max(MAX_ROWS, usual),
            usual_rows=usual,
            frozen=self._ablation == "frozen",
        )

    def _new_mind(self, model: ModelPolicy) -> ModelMind:
        return ModelMind(
            model,
            self._policy.stability,
            self._service,
            ablation=self._ablation,
            phase_s=self._policy.models.index(model) / len(self._policy.models),
            probes=self._policy.probing.enabled,
        )

    def set_policy(self, policy: Policy) -> None:
        """Follow a new policy without losing what was learned."""
        learned = self._service.state()
        self.late.set_policy(self._policy.models, policy.models)
        self._policy = policy
        service = self._new_service(policy)
        service.restore(learned)
        service.take_over(self._service)
        service.learn_later(self._service.waiting)
        self._service = service
        minds = {}
        for model in policy.models:
            mind = self._new_mind(model)
            old = self._minds.get(model.name)
            if old is not None:
                mind.take_over(old)
            minds[model.name] = mind
        self._minds, self._placement = minds, None
        self._prices = DevicePrices([model.weight for model in policy.models])
        self._probes.set_policy(policy.probing)
        self.limits.set_policy(policy.gpu)
        self._devices.keep(policy.gpu.watched)

    def step(self, observation: Observation) -> tuple[Decision, ...]:
        """Learn from an observation and return a decision for every model."""
        placement = self._place(observation)
        stalled = self._learn(observation, placement)
        return self._decide(observation, placement, stalled=stalled)

    def _learn(self, observation: Observation, placement: Placement) -> bool:
        """Take an observation in; return whether the host stood still."""
        self.lost = self._devices.look(observation.gpus, observation.now_s)
        self._sharing.observe(observation)
        self.costs.observe(observation.actions)
        samples: Iterable[BatchSample] = observation.batch_samples
        if observation.instances or not observation.gpus:
            self._overlap.learn(
                samples,
                observation.now_s,
                self._sharing,
                placement,
                observation.instances,
                self._service.usual_s,
            )
        samples = self._sharing.clean(samples, observation, placement, self._overlap.of)
        if observation.instances:
            samples = self._overlap.alone(
                samples, observation.now_s, self._sharing, observation.instances
            )
        self._service.observe(samples, observation.now_s)
        usual_s = interval_s(self._policy, at_ease=self.at_ease)
        stalled = self._stalls.look(observation.window_s, usual_s)
        largest: dict[str, int] = {}
        for sample in observation.batch_samples:
            largest[sample.model] = max(sample.rows, largest.get(sample.model, 0))
        for mind in self._minds.values():
            mind.predictor.know_instances(observation.instances, self._overlap.of)
            mind.learn(observation, largest_rows=largest, stalled=stalled)
        self._see_disturbed(observation, stalled=stalled)
        return stalled

    def _decide(
        self, observation: Observation, placement: Placement, *, stalled: bool
    ) -> tuple[Decision, ...]:
        """Return a decision for every model, by what was learned and what waits."""
        contention = 1.0 if observation.gpus else host_contention(observation.host)
        minds = tuple(self._minds.values())
        predictors = [mind.predictor for mind in minds]
        queues = look(predictors, observation)
        self._work_s = float(queues.work_s.sum())
        horizon_s = self._policy.notice_s + _REACTION_S
        shares = bool(observation.gpus) and len(minds) > 1
        predictions = predict(
            predictors,
            queues=queues,
            horizon_s=horizon_s,
            contention=contention,
            placement=placement,
            # On a host what was learned has it already.
            busy_ratio=self._sharing.busy_ratio() if shares else {},
        )
        prices = self.limits.add_to(self._prices.of(placement, counts=shares), placement)
        decisions = tuple(
            mind.decide(
                observation, prediction, horizon_s=horizon_s, price_per_s=price, lost=self.lost
            )
            for mind, prediction, price in zip(minds, predictions, prices, strict=True)
        )
        if self._policy.gpu.is_limited and not stalled:
            decisions = self._within_limits(observation, predictions, decisions, placement)
        if not stalled:
            self._weigh_instances(
                observation, predictions, decisions, prices, horizon_s, contention
            )
        if shares and not stalled:
            self._prices.learn(placement, [m.need_per_s for m in minds], observation.window_s)
        self.at_ease = False
        if observation.dispatched:
            decisions = self.late.bind(
                self._policy.models, decisions, predictors, observation, stalled=stalled
            )
            self.at_ease = self.late.chooses and self._probes.is_done(observation.now_s)
        return decisions

    def _weigh_instances(
        self,
        observation: Observation,
        predictions: Sequence[Prediction],
        decisions: Sequence[Decision],
        prices: Sequence[Floats | None],
        horizon_s: float,
        contention: float,
    ) -> None:
        """Take note of what other numbers of instances would be worth now, where that is asked."""
        for policy, mind, prediction, decision, price in zip(
            self._policy.models, self._minds.values(), predictions, decisions, prices, strict=True
        ):
            if mind.sizer.is_due(observation.now_s):
                mind.sizer.weigh(
                    mind.predictor,
                    observation,
                    prediction,
                    decision,
                    price_per_s=None if price is None else price / policy.weight,
                    horizon_s=horizon_s,
                    contention=contention,
                )

    def resizes(self, observation: Observation) -> tuple[Resize, ...]:
        """Return which variants are to have other numbers of instances, until they have them."""
        found, disturbed = [], self.costs.disturbances.share("load")
        for name, mind in self._minds.items():
            reading, sizer = observation.models.get(name), mind.sizer
            if sizer.is_used and reading is not None and not reading.paused:
                load_s = self.costs.load_s(mind.predictor.models)
                costs = {model: took_s * disturbed for model, took_s in load_s.items()}
                found.append((sizer, sizer.decide(observation.now_s, observation.instances, costs)))
        return agreed(found, [mind.sizer for mind in self._minds.values()], observation.now_s)

    def sizes(self) -> dict[str, Any]:
        """Return what is thought of the instances of each variant that may have more."""
        found: dict[str, Any] = {}
        for mind in self._minds.values():
            for model, view in mind.sizer.view().items():
                found[model] = {**view, "overlap": self._overlap.of(model)}
        return found

    def _see_disturbed(self, observation: Observation, *, stalled: bool) -> None:
        """Take in what became of requests beside what is under way on variants."""
        came = {name: mind.predictor.tally.arrived for name, mind in self._minds.items()}
        self.costs.disturbances.look(
            observation.now_s - (observation.readings_age_s or 0.0),
            observation.window_s,
            observation.operations,
            self._traffic.count(self._policy.models, observation, came),
            stalled=stalled,
        )

    def _within_limits(
        self,
        observation: Observation,
        predictions: Iterable[Prediction],
        decisions: tuple[Decision, ...],
        placement: Placement,
    ) -> tuple[Decision, ...]:
        """Take in how warm the GPUs are; return the decisions, with that as their reason."""
        most = [
            model.weight
            * most_per_s(
                prediction, mind.quality, [c.excluded is None for c in decision.candidates]
            )
            for model, mind, prediction, decision in zip(
                self._policy.models, self._minds.values(), predictions, decisions, strict=True
            )
        ]
        prices = self.limits.prices(placement)
        self.limits.learn(observation.gpus, max(most), observation.window_s)
        if prices is None:
            return decisions
        return tuple(
            replace(decision, reason=Reason.COOLS)
            if decision.reason is Reason.YIELDS and price.any()
            else decision
            for decision, price in zip(decisions, prices, strict=True)
        )

    def _place(self, observation: Observation) -> Placement:
        """Return where the variants run, made anew when that changed."""
        if self._placement is None or self._placement.given != observation.placement:
            models = [mind.predictor.models for mind in self._minds.values()]
            self._placement = placement = Placement(models, observation.placement)
            shares = placement.shares_of(self._service.models)
            self._service.place(placement.device_ids, shares, known=placement.known)
        return self._placement

    def is_pressing(self, models: Mapping[str, ModelReading], pending: Mapping[str, int]) -> bool:
        """Return whether the next step should not wait for its tick.

        Args:
            models: the readings of the policy's models, now.
            pending: requests that wait now, by Triton's name.
        """
        return any(m.is_pressing(models.get(name), pending) for name, m in self._minds.items())

    def wishes(self, now_s: float) -> list[Wish]:
        """Return what each model wants to be loaded, from what it met so far."""
        wishes = []
        for mind in self._minds.values():
            rate_rps, worth = mind.demand.expected(now_s, lead_s=HORIZON_S)
            wishes.append(Wish(mind.predictor.models, rate_rps, worth))
        return wishes

    def work(self, now_s: float, there: Collection[str]) -> list[Work]:
        """Return what is expected of each variant, with those loaded that are `there`."""
        row_s = dict(zip(self._service.models, self._service.learned_row_s(), strict=True))
        takes_s = []
        for mind in self._minds.values():
            rows = mind.predictor.arrivals.rows_per_request
            takes_s.append([float(row_s[name]) * rows for name in mind.predictor.models])
        weights = [model.weight for model in self._policy.models]
        return list(expected_work(self.wishes(now_s), weights, takes_s, there))

    @property
    def device_ratios(self) -> dict[int, float]:
        """Return how much slower each device runs than learned, by its number."""
        return self._service.device_ratios

    def probes(self, observation: Observation) -> tuple[Probe, ...]:
        """Return synthetic requests that would teach something, if there is time for them."""
        if self._ablation == "frozen":
            return ()
        found = self._probes.next(
            observation,
            self._policy,
            self._service.samples(),
            self._service.models,
            self._service.table_s(),
            self._work_s,
        )
        for probe in found:
            for mind in self._minds.values():
                mind.predictor.probed(probe.model, probe.rows, observation.now_s)
        return found

    def probe_spent(self, service_s: float, now_s: float) -> None:
        """Take note of what a probe took."""
        self._probes.spent(service_s, now_s)

    def score(self, model: str) -> Score:
        """Return how a model did lately. Raises KeyError for an unknown model."""
        return self._minds[model].score()

    def calibration(self, model: str) -> tuple[float | None, dict[str, float]]:
        """Return (coverage of what is told, factor of each Triton model) of a model."""
        predictor = self._minds[model].predictor
        return predictor.told_coverage, {name: predictor.factor(name) for name in predictor.models}

    def tally(self, model: str) -> Tally:
        """Return what was counted of a model so far. Raises KeyError for an unknown one."""
        return self._minds[model].predictor.tally

    def speed_order(self, model: str) -> tuple[str, ...]:
        """Return a model's variants, fastest first; by quality where nothing is known."""
        return self._minds[model].speed_order()

    def state(self) -> dict[str, Any]:
        """Return everything that was learned. JSON-ready; never pickle."""
        return {
            "format": STATE_FORMAT,
            "service": self._service.state(),
            "models": {name: mind.state() for name, mind in self._minds.items()},
            "costs": self.costs.state(),
            "overlap": self._overlap.state(),
            "disturbances": self.costs.disturbances.state(),
        }

    def demand_state(self, now_s: float) -> dict[str, Any]:
        """Return what every model met in the last day. JSON-ready."""
        return {
            name: {"models": mind.predictor.models, **mind.demand.state(now_s)}
            for name, mind in self._minds.items()
        }

    def restore_demand(self, state: Mapping[str, Any], now_s: float) -> None:
        """Take back what `demand_state` returned, of models whose variants are the same.

        Raises ValueError, KeyError, TypeError.
        """
        for name, mind in self._minds.items():
            stored = state.get(name)
            if stored is not None and tuple(stored["models"]) == mind.predictor.models:
                mind.demand.restore(stored, now_s)

    def restore(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """Take back what was learned; return a sentence for each part that could not be used."""
        problems = []
        if state.get("format") != STATE_FORMAT:
            return (f"learned state has format {state.get('format')!r}, not {STATE_FORMAT}",)
        for what, part, restore in (
            ("service times", "service", self._service.restore),
            ("costs of actions", "costs", self.costs.restore),
            ("what instances do to each other", "overlap", self._overlap.restore),
            ("what actions disturb", "disturbances", self.costs.disturbances.restore),
        ):
            if part not in state and part != "service":
                continue  # a state of before there was any
            try:
                restore(state[part])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                problems.append(f"{what} could not be restored: {error!r}")
        stored = state.get("models")
        for name, mind in self._minds.items():
            if not isinstance(stored, Mapping) or name not in stored:
                continue
            try:
                mind.restore(stored[name])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                problems.append(f"{name}: could not be restored: {error!r}")
        return tuple(problems)
