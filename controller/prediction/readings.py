"""What a reading of a variant says, where there may be none."""

from __future__ import annotations

from controller.telemetry.observation import VariantReading


def mean_batch(reading: VariantReading | None) -> float:
    """Return the rows of the batches that ended since the last observation; 0: none did."""
    if reading is None or reading.executions < 1:
        return 0.0
    return reading.completed_rows / reading.executions


def pending(reading: VariantReading | None) -> int:
    """Return how many requests wait; none where that is not known."""
    return 0 if reading is None or reading.pending_requests is None else reading.pending_requests
