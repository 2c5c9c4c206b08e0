"""Whether a better variant pays in a lull, until the load comes back.

Owns what each variant is predicted to miss under the usual load. It must not choose.

In a lull nearly every variant is in time, and the best one is worth a little more for each of the
few requests that come. When the load comes back as a step, though, it meets that variant for as
long as it takes to notice and to switch, and many are late. Both are compared in a second: what the
few gain, and how probably a lull ends in it, times what those lose who come meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from controller.prediction.lulls import Lulls
from controller.prediction.prediction import Prediction

_NOTICED_S: Final = 0.05  # of arrivals miss what is predicted, until a step is seen
_STAYS: Final = 2.0  # times as much may be lost with the variant that serves: or it would alternate
_MOMENTS: Final = 100.0  # that the mean is of


class Lull:
    """What one model's variants would miss when the load is back."""

    def __init__(self) -> None:
        self._miss: list[float] = []
        self._moments = 0.0

    def pays(
        self,
        lulls: Lulls,
        prediction: Prediction,
        quality: Sequence[float],
        known: Sequence[bool],
        serving: int | None = None,
    ) -> list[bool] | None:
        """Take a prediction in; return whether each variant is worth it. None: there is no lull.

        Args:
            lulls: of the model.
            prediction: of its variants.
            quality: of each.
            known: which may serve, and were measured.
            serving: the index of the one that serves; None: unknown.
        """
        if len(self._miss) != len(quality):
            self._miss, self._moments = [0.0] * len(quality), 0.0
        if lulls.is_usual and prediction.sane:
            self._moments = min(self._moments + 1.0, _MOMENTS)
            self._miss = [
                known + (miss - known) / self._moments
                for known, miss in zip(self._miss, prediction.miss_ratio, strict=True)
            ]
        if not lulls.is_in_one or not any(known):
            return None
        among = [i for i, is_known in enumerate(known) if is_known]
        fastest = max(among, key=prediction.throughput_rows_s.__getitem__)
        least, worth = self._miss[fastest], quality[fastest]
        met = lulls.ends_per_s * lulls.usual_rps * _NOTICED_S * worth  # by who comes in a step
        few = prediction.forecast.mean_rps
        return [
            met * (miss - least) <= (own - worth) * few * (_STAYS if i == serving else 1.0)
            for i, (miss, own) in enumerate(zip(self._miss, quality, strict=True))
        ]
