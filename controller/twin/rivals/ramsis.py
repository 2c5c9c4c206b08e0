"""RAMSIS (Mendoza et al., EuroSys 2024): a table from a Markov decision process.

State: how many requests wait when the server becomes free, and the slack of the oldest. Action:
all of them, as one batch, on one variant. Reward: their accuracy, if the batch's 95th percentile
fits the slack. Arrivals are Poisson. One table for each load level, solved offline; a window of
half a second picks the table. Decided batch by batch, which an unmodified Triton cannot do.

Here the process is solved by policy iteration as a discounted one in continuous time (Puterman
1994, chapter 11), with a discount slow enough for the policy to be that of the average. Queues of
more than 32 are served 32 at a time, or as many as the largest batch has.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from controller.twin.central import Waiting
from controller.twin.ladder import Floats
from controller.twin.rivals import Setting

_MOST_WAITING: Final = 32
_SLACKS: Final = 100  # steps of the objective
_LEVELS: Final = 20  # of load, up to the fastest variant's capacity
_WINDOW_S: Final = 0.5
_TAIL: Final = 1.085  # 95th percentile over mean, at the twin's noise of 5 %
_HORIZON: Final = 50.0  # objectives that count
_ROUNDS: Final = 50  # of policy iteration; it ends after a few


class Ramsis:
    """Looks number and slack up in the table of the load."""

    def __init__(self, setting: Setting) -> None:
        self._limit_s = setting.limit_s
        most = min(max(variant.max_batch for variant in setting.variants), _MOST_WAITING)
        took_s = np.full((len(setting.variants), most), np.inf)
        for index, variant in enumerate(setting.variants):
            took_s[index, : variant.max_batch] = variant.table_s[:most]
        quality = tuple(variant.quality for variant in setting.variants)
        self._loads_rps = max(setting.capacity_rps) * np.arange(1, _LEVELS + 1) / _LEVELS
        self._tables = [
            _solve(took_s.tobytes(), quality, float(load_rps), setting.limit_s)
            for load_rps in self._loads_rps
        ]
        self._seen: deque[tuple[float, int]] = deque()

    def choose(self, waiting: Waiting) -> tuple[int, int]:
        """Return the table's variant, for all that wait."""
        seen = self._seen
        seen.append((waiting.now_s, waiting.arrived))
        while len(seen) > 1 and seen[1][0] <= waiting.now_s - _WINDOW_S:
            seen.popleft()
        # Nothing arrived while it was idle: what came since then came within the window.
        rate_rps = (waiting.arrived - seen[0][1]) / _WINDOW_S
        level = min(int(np.searchsorted(self._loads_rps, rate_rps)), _LEVELS - 1)
        return self.look_up(level, waiting.count, waiting.slack_s(self._limit_s))

    def look_up(self, level: int, count: int, slack_s: float) -> tuple[int, int]:
        """Return (variant, batch) for a load level, a queue and the oldest one's slack."""
        table = self._tables[level]
        rows = min(count, len(table))
        step = int(np.clip(slack_s / self._limit_s * _SLACKS, 0, _SLACKS))
        return int(table[rows - 1, step]), rows

    def ended(self, variant: int, rows: int, took_s: float) -> None:
        """Learn nothing: the profile stays as it was made."""


@lru_cache(maxsize=512)
def _solve(
    table: bytes, quality: tuple[float, ...], load_rps: float, limit_s: float
) -> NDArray[np.int64]:
    """Return the best variant for each state. [waiting 1.., slack steps 0..].

    Args:
        table: bytes of the seconds of 1, 2, ... rows, infinite: does not fit. [variants, rows].
        quality: of each variant.
        load_rps: arrivals.
        limit_s: the objective.

    """
    tabled_s = np.frombuffer(table, dtype=np.float64).reshape(len(quality), -1)
    variants, most = tabled_s.shape
    possible = np.isfinite(tabled_s)
    took_s = np.where(possible, tabled_s, 1.0)
    fits = tabled_s[:, :, None] * _TAIL <= limit_s * np.arange(_SLACKS + 1) / _SLACKS
    rows = np.arange(1, most + 1)
    reward = np.where(fits, (np.array(quality)[:, None] * rows)[:, :, None], 0.0)
    reward[~possible] = -np.inf
    decay = 1.0 / (_HORIZON * limit_s)
    discount = np.exp(-decay * took_s)
    idle = stats.poisson.pmf(0, load_rps * took_s).ravel() * load_rps / (load_rps + decay)
    chances = _next_states(took_s.ravel(), load_rps, limit_s, most)
    # Where nothing fits any more all rewards are nothing: the quickest, so that others are.
    late = ~fits.any(axis=0)
    quickest = tabled_s.argmin(axis=0)[:, None]
    chosen = np.where(late, quickest, reward.argmax(axis=0))
    place = np.arange(most)[:, None]
    fresh = _SLACKS  # the state (1 waits, full slack) after an empty queue
    for _ in range(_ROUNDS):
        # What follows an action depends on the action alone: its value is all there is to know.
        action = (chosen * most + place).ravel()
        earned = np.take_along_axis(reward, chosen[None], axis=0).ravel()
        follows = sparse.csr_array(
            (discount.ravel()[action], (np.arange(action.size), action)),
            shape=(action.size, variants * most),
        )
        after = chances @ follows
        after[:, action[fresh]] += idle * discount.ravel()[action[fresh]]
        gained = chances @ earned + idle * earned[fresh]
        value = np.linalg.solve(np.eye(len(after)) - after, gained).reshape(variants, most)
        worth = reward + (discount * value)[:, :, None]
        better = np.where(late, quickest, worth.argmax(axis=0))
        if (better == chosen).all():
            break
        chosen = better
    return np.asarray(chosen, dtype=np.int64)


def _next_states(took_s: Floats, load_rps: float, limit_s: float, most: int) -> Floats:
    """Return the chances of each state after a batch, but for an empty queue. [actions, states].

    Of k arrivals within a batch the first one's share of it that was waited is Beta(k, 1).
    """
    count = np.arange(1, most + 1)
    arrivals = stats.poisson.pmf(count, load_rps * took_s[:, None])
    arrivals[:, -1] += stats.poisson.sf(most, load_rps * took_s)
    edges_s = limit_s * np.arange(_SLACKS + 2) / _SLACKS  # step j: slack in [edge j, edge j+1)
    waited = np.clip((limit_s - edges_s) / took_s[:, None], 0.0, 1.0)  # falls with the slack
    below = waited[:, None, :] ** count[None, :, None]  # P(waited share <= that)
    steps = below[:, :, :-1] - below[:, :, 1:]
    steps[:, :, 0] += 1.0 - below[:, :, 0]  # whoever has waited longer has no slack left
    chances = arrivals[:, :, None] * steps
    return np.asarray(chances.reshape(len(took_s), -1))
