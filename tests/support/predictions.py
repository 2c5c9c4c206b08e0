"""Predictions of three variants, of which a test names what it is about."""

from typing import Any

import numpy as np

from controller.prediction.arrivals import RateForecast
from controller.prediction.prediction import Prediction

NOTHING = [0.0, 0.0, 0.0]
LIMIT_S = 0.06


def prediction(rate_rps: float = 1.0, **changes: Any) -> Prediction:
    """Return what is predicted where this many requests of one row come a second."""
    usual: dict[str, Any] = {
        "forecast": RateForecast.of(np.array([rate_rps]), np.array([1.0]), 1.0, 1.0),
        "utilization_ratio": NOTHING,
        "leftover_s": NOTHING,
        "throughput_rows_s": [6.0, 3.6, 1.0],
        "single_s": [0.001, 0.0017, 0.006],
        "slowdown": [1.0, 1.0, 1.0],
        "raw_s": NOTHING,
        "stated_s": NOTHING,
        "told_s": NOTHING,
        "p50_s": NOTHING,
        "miss_ratio": NOTHING,
        "known": [True, True, True],
        "raw_limit_s": [LIMIT_S] * 3,
        "drift_ratio": 1.0,
        "backlog_requests": 0,
        "backlog_s": 0.0,
        "drain_s": 0.0,
        "situation": None,  # nothing asks for what it is of
    }
    return Prediction(**{**usual, **changes})
