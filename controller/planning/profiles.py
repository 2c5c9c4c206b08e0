"""Which profile of a variant is considered: one alone.

Owns the reluctance to switch between profiles of the same weights. It must not value them.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.policy.model import ModelPolicy


class Profiles:
    """The variants of a model by the weights they serve."""

    def __init__(self, policy: ModelPolicy) -> None:
        self._weights = [v.profile_of or v.name for v in policy.variants]
        self._has_profiles = len(set(self._weights)) < len(self._weights)

    def choose(
        self,
        value: Sequence[float],
        choosable: list[int],
        speed: Sequence[float],
        serving: int | None,
        *,
        same: float,
    ) -> list[int]:
        """Return one profile of each variant: the one that serves, or else the fastest.

        Unless another is clearly worth more: what a switch between them leaves on either is done
        in smaller batches, which is not predicted.

        Args:
            value: of each variant.
            choosable: of which is chosen.
            speed: of each, rows a second.
            serving: the one that serves.
            same: values that differ by no more are the same.
        """
        if not self._has_profiles:
            return choosable
        found = []
        for of in dict.fromkeys(self._weights[i] for i in choosable):
            profiles = [i for i in choosable if self._weights[i] == of]
            top = max(value[i] for i in profiles)
            good = [i for i in profiles if value[i] >= top - same]
            found.append(serving if serving in good else max(good, key=speed.__getitem__))
        return found
