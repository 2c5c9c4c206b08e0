"""Service times: how long a batch of n rows takes on a variant, in the machine's present state.

Owns the learned table of service times, pooled across variants. It must not know queues.

Method. log s(v, n) = base(v, n) + drift. `base` is learned slowly: for each (variant, rows) a
running mean of log times, shrunk towards a ridge regression over all variants whose features are
a curve in log n shared by all and a deviation of each variant from it (deviations are penalised,
so a variant with ten samples borrows its shape from its siblings), then made monotone in n by
isotonic regression. The regression is about log(n + 4), the shape of a batch with a fixed part:
what was never measured grows in proportion in the end, where a plain one would make it flat.
`drift` is one fast factor for each device (clocks, throttling, co-tenants), seen in the residuals
of every variant on it within about a second (`controller.prediction.drift`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from controller.prediction.drift import Drift
from controller.prediction.pooling import between, pooled
from controller.telemetry.observation import BatchSample

Floats = NDArray[np.float64]

PRIOR_SERVICE_S: Final = 0.010  # of one row, before anything is known
_SHORTEST_S: Final = 1e-7  # what is told of a batch outside of these is no measurement
_LONGEST_S: Final = 1e4
_ENOUGH: Final = 0.45  # known of a cell: from here on what is far off it is drift first
_FLAT: Final = 0.15  # log seconds between two sizes that take the same time
_SHRINK: Final = 3.0  # batches that the pooled curve counts for in a cell
_MEMORY: Final = 400.0  # batches after which an old one counts 1/e
_MOVED_TRUST: Final = 2.0  # batches that all counts for that was seen on another device
_OUTLIER: Final = math.log(2.5)  # a known cell's residual is clipped here
_SUDDEN: Final = 0.25  # a known cell's residual that counts half for the cell
_FIRST_RUNS: Final = 5.0  # batches of a size
_SHARED: Final = 0.15  # of a batch's time beside others: from here on it is no clean measurement
_FORGET_SHARED: Final = 0.2  # what is kept of the weight of such ones
_WARMER: Final = math.log(1.8)
_OF_LEAST: Final = 1.7  # a deviation, in the mean of the less of two such distances
_NOISE_GAIN: Final = 0.02  # of a batch's spread in what was seen of it
_NOISE_SHRINK: Final = 25.0  # batches that all variants' spread counts for in one's own
_LEAST_NOISE, _MOST_NOISE = 0.03, 0.5
_REFIT_S: Final = 2.0  # what changes faster is drift's to follow
_MOVED: Final = 0.02  # log seconds of a mean, since the last fit, that are worth another
_TRUSTED: Final = 0.05  # the same, of what a cell counts beside the pooled curve
_EARLY_REFIT_S: Final = 0.1  # while there are few samples, each one matters
_EARLY: Final = 40.0  # batches a variant
_AT_ONCE: Final = 400  # samples; of more, an eighth of what waits
_SPREAD_OVER: Final = 8
_SAME: Final = 1e-4  # log seconds: less than that changes nothing in the table
_FIXED_ROWS: Final = 4.0  # what a batch takes beside its rows, in rows, until it is known better
_KNEES: Final = (4.0, 16.0)  # rows at which the shared curve may bend
_PENALTY: Final = 0.05
_DEVIATION_SCALE: Final = 0.5  # of a variant's slope feature: smaller borrows more


class ServiceTimes:
    """The table of service times of one pool of variants.

    `models` are Triton's names; `max_rows` is the largest batch that is modelled, `usual_rows` the
    largest that is asked for before a larger one is seen. `frozen` keeps the prior and learns
    nothing (an ablation).
    """

    def __init__(
        self, models: Sequence[str], max_rows: int, *, usual_rows: int = 1, frozen: bool = False
    ) -> None:
        self.models = tuple(models)
        self.max_rows = max_rows
        self._used = min(usual_rows, max_rows)
        self._index = {model: i for i, model in enumerate(self.models)}
        shape = (len(self.models), max_rows)
        self._mean = np.zeros(shape)  # of log seconds
        self._weight = np.zeros(shape)  # batches, with forgetting
        self._total = np.zeros(shape)  # batches ever
        self._totals = [0.0] * len(self.models)  # of each variant
        self._known: NDArray[np.bool_] | None = None
        self._alone = np.zeros(shape, dtype=np.bool_)  # once seen with the device to itself
        self._base = np.full(shape, math.log(PRIOR_SERVICE_S)) + np.log(np.arange(1, max_rows + 1))
        self._drift = Drift(len(self.models))
        self._where: list[frozenset[int]] | None = None  # the devices of each; None: not known
        self._noise = 0.15  # spread of log times, of all variants
        # A batch of 0.3 ms varies by what else the host does, one of 40 ms does not.
        self._own_noise = np.zeros(len(self.models))
        self._noise_weight = np.zeros(len(self.models))
        self._level = np.full(len(self.models), np.nan)  # of the last batch, over what is learned
        self._fitted_s: float | None = None
        self._dirty = False
        self._fitted = (self._mean.copy(), self._trust())  # what the last fit saw
        self._between = np.zeros(shape)  # how much the sizes around it tell of each
        self._early = False  # what waits for a refit is of a variant of which little is known
        self._table: Floats | None = None
        self._row: Floats | None = None
        self._tabled = np.zeros(len(self.models))  # the levels that the table was made at
        self._changed = False  # they may have, since
        self._spread: Floats | None = None  # what `noise` returns; None: to be found anew
        self._counts = np.arange(1.0, max_rows + 1.0)
        self._frozen = frozen
        self._isotonic = IsotonicRegression()
        self._waiting: deque[BatchSample] = deque()
        log_n = np.log(self._counts)
        bends = [np.maximum(log_n - math.log(knee), 0.0) for knee in _KNEES]
        self._shared = np.stack([log_n, *bends], axis=1)  # features of the curve of all
        self._own = np.stack([np.ones(max_rows), log_n * _DEVIATION_SCALE], axis=1)
        self._shape = np.log(self._counts + _FIXED_ROWS)

    @property
    def drift_ratio(self) -> float:
        """Return the present service time over what was learned, of the device that moved most."""
        return math.exp(self._drift.most)

    def drift_ratio_of(self, model: str | None) -> float:
        """Return the same of the devices that a variant runs on; of an unknown one, as above."""
        row = None if model is None else self._index.get(model)
        return self.drift_ratio if row is None else math.exp(self._drift.of(row))

    def log_drifts(self, rows: Sequence[int]) -> list[float]:
        """Return the logarithm of the same of some variants, by their places in `models`."""
        of_each = self._drift.of_each()
        return [of_each[row] for row in rows]

    def place(self, devices: Sequence[int], shares: Floats, *, known: bool) -> None:
        """Tell apart the devices that variants run on.

        Args:
            devices: their numbers.
            shares: how much of its time each variant spends on each. [variants, devices].
            known: whether that is where they are, and not one device for want of knowledge.
        """
        self._drift.place(devices, shares, known=known)
        self._changed = True
        before = self._where
        if known:
            self._where = [
                frozenset(devices[at] for at in np.flatnonzero(row).tolist()) for row in shares
            ]
            for row, here in enumerate(self._where):
                if before is not None and here != before[row]:
                    # Another GPU may be faster or slower for it: that is no drift of the GPU.
                    self._weight[row] = np.minimum(self._weight[row], _MOVED_TRUST)
                    self._between[row] = 0.0

    def take_over(self, old: ServiceTimes) -> None:
        """Keep what an earlier policy's table knows of the present, which `state` has not."""
        self._drift.take_over(old._drift)
        for row, model in enumerate(self.models):
            if (before := old._index.get(model)) is not None:
                self._own_noise[row] = old._own_noise[before]
                self._noise_weight[row] = old._noise_weight[before]
        self._table = self._spread = None

    @property
    def noise(self) -> Floats:
        """Return the spread (standard deviation) of the log of a batch's time. [variants]."""
        if self._spread is None:  # each model asks for it, and for the table
            own = self._noise_weight * self._own_noise + _NOISE_SHRINK * self._noise
            self._spread = np.asarray(own / (self._noise_weight + _NOISE_SHRINK))
        return self._spread

    def known(self) -> NDArray[np.bool_]:
        """Return, per variant, whether it was ever measured. [variants]. Do not change."""
        if self._known is None:
            self._known = np.asarray(np.array(self._totals) >= 2.0, dtype=np.bool_)
        return self._known

    def table_s(self) -> Floats:
        """Return the expected seconds of a batch. [variants, rows 1..max_rows]. Do not change."""
        if self._table is None or self._changed:
            level = self._drift.of_all() + 0.5 * self.noise**2
            if self._table is None or np.abs(level - self._tabled).max() > _SAME:
                self._table = np.exp(self._base + level[:, None])
                self._row, self._tabled = None, level
            self._changed = False
        return self._table

    def row_s(self) -> Floats:
        """Return the expected seconds of a row in the batch that is cheapest a row. [variants]."""
        table_s = self.table_s()
        if self._row is None:
            self._row = (table_s / self._counts).min(axis=1)
        return self._row

    def learned_row_s(self) -> Floats:
        """Return the same at the speed at which it was learned, whatever devices do now."""
        return np.asarray(self.row_s() * np.exp(-self._drift.of_all()))

    @property
    def device_ratios(self) -> dict[int, float]:
        """Return the present service time over what was learned, of each device by its number."""
        return self._drift.ratios()

    def usual_s(self, model: str, rows: int) -> float | None:
        """Return what a batch alone usually takes, whatever the present drift; None: not known."""
        row = self._index.get(model)
        if row is None or not 1 <= rows <= self.max_rows or self._totals[row] < _FIRST_RUNS:
            return None
        return math.exp(self._base[row, rows - 1])

    def samples(self) -> Floats:
        """Return how many batches were measured. [variants, rows 1..max_rows]."""
        return self._total.copy()

    @property
    def waiting(self) -> tuple[BatchSample, ...]:
        """Return the samples that were taken in and are not learned yet."""
        return tuple(self._waiting)

    def learn_later(self, samples: Iterable[BatchSample]) -> None:
        """Take samples in for the next calls of `observe`."""
        self._waiting.extend(samples)

    def observe(self, samples: Iterable[BatchSample], now_s: float) -> None:
        """Learn from measured batches; first runs and those just after an action are left out.

        Those that shared the device count only where none had it to itself. Of very many a part
        waits for the next calls: statistics of 1,600 variants come at once and must not hold a
        tick up.
        """
        if self._frozen:
            return
        self._waiting.extend(samples)
        for _ in range(min(len(self._waiting), max(_AT_ONCE, len(self._waiting) // _SPREAD_OVER))):
            sample = self._waiting.popleft()
            row = self._index.get(sample.model)
            if row is None or not self._is_usable(sample):
                continue
            cell = (row, sample.rows - 1)
            if sample.after_action and self._totals[row] >= 2.0:
                continue
            seen, drift = math.log(sample.mean_service_s), self._drift.of(row)
            beside = sample.siblings_ratio > _SHARED  # what remains of that is drift's to follow
            # Batches of a size that comes under load alone are never seen without others.
            unknown = not self._alone[cell] and self._weight[cell] < _FIRST_RUNS
            unknown = unknown and self._between[cell] <= _ENOUGH
            if sample.shared_ratio > _SHARED or (beside and unknown):
                self._learn_shared(cell, seen - drift)
                continue
            if not (beside or self._alone[cell]):
                self._alone[cell] = True
                self._weight[cell] *= _FORGET_SHARED
            # First runs are better than nothing, but no reason to stop measuring.
            count = 1.0 if sample.after_action else float(min(sample.executions, 50))
            own = self._weight[cell] / (self._weight[cell] + _SHRINK)
            trust = max(own, self._between[cell])
            residual = seen - self._base[cell] - drift
            if trust > _ENOUGH:
                clipped = max(-_OUTLIER, min(_OUTLIER, residual))
                self._learn_noise(row, seen - float(self._base[cell]), clipped, count)
                self._drift.note(row, clipped, trust * count)
                seen = self._base[cell] + drift + clipped
                # What is far off is the machine, of which drift has not heard the last.
                count /= 1.0 + (clipped / _SUDDEN) ** 2
            if beside:
                continue
            unsure = 0.0 < self._weight[cell] < _FIRST_RUNS
            if unsure and seen - drift < self._mean[cell] - _WARMER:
                self._weight[cell] = 0.0  # what came before were first runs that nobody marked
            self._learn(cell, seen - drift, count)
            self._early = self._early or self._totals[row] < _EARLY
        self._drift.follow(now_s)
        self._changed = True
        self._refit_if_due(now_s)

    def _learn_noise(self, row: int, level: float, residual: float, count: float) -> None:
        """Learn the spread from how far a batch is from what was expected, or from the one before.

        From what is less, so that a machine that slows down does not look like one that is
        unsteady (von Neumann 1941): not at once, nor at a variant that is measured seldom.
        """
        before, self._level[row] = self._level[row], level
        if not math.isfinite(before):
            return
        least = min(abs(level - before) / math.sqrt(2.0), abs(residual))
        spread = least * math.sqrt(count) * _OF_LEAST
        self._noise += _NOISE_GAIN * (spread - self._noise)
        self._noise = min(max(self._noise, _LEAST_NOISE), _MOST_NOISE)
        seen = self._noise_weight[row]
        gain = max(_NOISE_GAIN, 1.0 / (seen + 1.0))
        own = self._own_noise[row] + gain * (spread - self._own_noise[row])
        self._own_noise[row] = min(max(own, _LEAST_NOISE), _MOST_NOISE)
        self._noise_weight[row] = min(seen + 1.0, _MEMORY)
        self._spread = None

    def _refit_if_due(self, now_s: float) -> None:
        due_s = _EARLY_REFIT_S if self._early else _REFIT_S
        if self._dirty and (self._fitted_s is None or now_s - self._fitted_s >= due_s):
            self._fitted_s = now_s
            if self._early or self._moved():
                self._refit()

    def _trust(self) -> Floats:
        """Return what each cell's own mean counts beside the pooled curve, 0 to 1."""
        return np.asarray(self._weight / (self._weight + _SHRINK))

    def _moved(self) -> bool:
        """Return whether what was learned since the last fit would change it."""
        mean, trust = self._fitted
        changed = np.abs(self._mean - mean).max() > _MOVED
        return bool(changed or np.abs(self._trust() - trust).max() > _TRUSTED)

    def _is_usable(self, sample: BatchSample) -> bool:
        measured = _SHORTEST_S <= sample.mean_service_s <= _LONGEST_S
        return measured and sample.executions >= 1 and 1 <= sample.rows <= self.max_rows

    def _learn(self, cell: tuple[int, int], value: float, count: float) -> None:
        weight = self._weight[cell] * math.exp(-count / _MEMORY) + count
        self._mean[cell] += count / weight * (value - self._mean[cell])
        self._weight[cell] = weight
        self._total[cell] += count
        self._totals[cell[0]] += count
        self._known = None
        self._dirty = True

    def _learn_shared(self, cell: tuple[int, int], value: float) -> None:
        """Learn from a batch beside others: better than nothing, until one had the device alone."""
        if self._alone[cell] or self._weight[cell] >= _FIRST_RUNS:
            return
        if self._between[cell] > _ENOUGH:
            return
        if value < self._mean[cell]:
            self._weight[cell] *= _FORGET_SHARED  # the least disturbed is nearest to the truth
        self._learn(cell, value, 1.0)
        self._early = self._early or self._totals[cell[0]] < _EARLY

    def _refit(self) -> None:
        """Refit the pooled curve and blend it with what each cell saw itself."""
        used = max(int(np.flatnonzero(self._weight.sum(axis=0)).max()) + 1, self._used)
        self._used = used
        own, mean = self._weight[:, :used], self._mean[:, :used]
        weight = np.minimum(own, 50.0)
        shape = self._shape[:used]
        fitted = shape + pooled(
            mean - shape, weight, shared=self._shared[:used], own=self._own[:used], penalty=_PENALTY
        )
        blended = (own * mean + _SHRINK * fitted) / (own + _SHRINK)
        rows = np.arange(1.0, used + 1.0)
        for v in np.flatnonzero(np.any(np.diff(blended, axis=1) < 0.0, axis=1)):
            blended[v] = self._isotonic.fit_transform(rows, blended[v], sample_weight=own[v] + 0.1)
        self._base[:, :used] = blended
        clean = self._trust()[:, :used] * self._alone[:, :used]
        self._between[:, :used] = between(blended, clean, trusted=_ENOUGH, flat=_FLAT)
        # Larger batches than were ever asked for: in proportion, until they are seen.
        beyond = np.log(np.arange(used + 1, self.max_rows + 1) / used)
        self._base[:, used:] = blended[:, -1:] + beyond
        self._table = None
        self._dirty = self._early = False
        self._fitted = (self._mean.copy(), self._trust())

    def state(self) -> dict[str, Any]:
        """Return what was learned. JSON-ready."""
        seen = int(np.flatnonzero(self._total.any(axis=0)).max(initial=-1)) + 1
        return {
            "models": {
                model: {
                    "mean": self._mean[i, :seen].tolist(),
                    "weight": self._weight[i, :seen].tolist(),
                    "total": self._total[i, :seen].tolist(),
                }
                for model, i in self._index.items()
            },
            "noise": self._noise,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned, for those variants that still exist.

        Raises ValueError, KeyError or TypeError if it is not what `state` returned; nothing is
        changed then.
        """
        fresh = (self._mean.copy(), self._weight.copy(), self._total.copy())
        for model, stored in state["models"].items():
            row = self._index.get(model)
            if row is None:
                continue
            for target, key in zip(fresh, ("mean", "weight", "total"), strict=True):
                values = np.asarray(stored[key], dtype=np.float64)
                if values.ndim != 1 or not np.isfinite(values).all():
                    raise ValueError(f"{model}: {key} is not a list of numbers")
                common = min(len(values), self.max_rows)
                target[row, :common] = values[:common]
        if (fresh[1] < 0.0).any() or (fresh[2] < 0.0).any():
            raise ValueError("negative weights")
        noise = float(state["noise"])
        if not 0.0 < noise < 10.0:
            raise ValueError("noise out of range")
        if self._frozen:
            return
        self._table = self._spread = None
        self._mean, self._weight, self._total = fresh
        self._totals = self._total.sum(axis=1).tolist()
        self._known = None
        # Old knowledge is worth less than fresh: the machine may have changed meanwhile.
        self._weight = np.minimum(self._weight, 20.0)
        self._alone = self._weight > 0.0
        self._noise = min(max(noise, _LEAST_NOISE), _MOST_NOISE)
        self._noise_weight[:] = 0.0
        if (self._weight > 0.0).any():
            self._refit()
