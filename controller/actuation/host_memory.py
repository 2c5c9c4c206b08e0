"""What variants need by the policy, and what they hold of the host by what Triton's processes hold.

Owns what is measured of the host. It must not say whether there is room. Only the processes
together can be read: what one load took is the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from controller.actuation.remembered import HOST
from controller.policy.model import Policy, VariantPolicy

FADES: Final = 0.9  # of what a variant took at its loads before, where it takes less now


class HostMemory:
    """Knows what is declared, and measures the host.

    Args:
        policy: what variants need, and the budget.
        processes: returns what Triton's processes hold of the host; None: that cannot be told.
            Blocking. None: there is nobody to ask.
    """

    def __init__(self, policy: Policy, processes: Callable[[], int | None] | None) -> None:
        self.measured: Mapping[str, Mapping[str, int]] = {}  # bytes, by Triton's name and place
        self._processes = processes
        self._sees_host = False  # what Triton holds of the host was read last time
        self._found_host: dict[str, int] = {}
        self.look_s = float("-inf")  # not before: what of the host is to be shared out
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Follow a new policy."""
        self._memory = policy.memory
        self._reserve_bytes = policy.memory.reserve_bytes
        self._variants: dict[str, list[VariantPolicy]] = {}
        for model in policy.models:
            for variant in model.variants:
                self._variants.setdefault(variant.model, []).append(variant)
        # By one model or by several: the most counts. Asked for many times in each tick.
        self._declares = {
            model: (
                max(v.host_memory_bytes or 0 for v in listed),
                max(v.gpu_memory_bytes or 0 for v in listed),
            )
            for model, listed in self._variants.items()
        }

    def _declared(self, model: str) -> tuple[int, int]:
        return self._declares.get(model, (0, 0))

    def read_host(self) -> int | None:
        """Return what Triton's processes hold of the host; None: nobody can tell. Blocking."""
        held = None if self._processes is None else self._processes()
        self._sees_host = held is not None
        return held

    def is_host_guessed(self, model: str) -> bool:
        """Return whether there is a budget of the host's memory, and nothing is known of a model.

        Where nobody can measure it, what is declared has to do: then it is not.
        """
        limited = self._memory.host_budget_bytes is not None and self._sees_host
        return limited and bool(self._unknown_of_host((model,)))

    def is_host_to_be_read(self, held: Collection[str]) -> bool:
        """Return whether what is loaded has to be shared out, as nobody saw it being loaded."""
        if self._memory.host_budget_bytes is None or self._processes is None:
            return False
        return any(model not in self._found_host for model in self._unknown_of_host(held))

    def share_host(self, held: Collection[str], host_bytes: int) -> None:
        """Take variants of which nothing is known for equal shares of what Triton holds.

        Args:
            held: what is loaded, while nothing moves.
            host_bytes: what Triton's processes hold.
        """
        unknown = self._unknown_of_host(held)
        left = host_bytes - sum(self._known_of_host(model) for model in held)
        self._found_host = dict.fromkeys(unknown, max(left, 0) // max(len(unknown), 1))

    def _unknown_of_host(self, models: Collection[str]) -> list[str]:
        return [
            model
            for model in models
            if not self._declared(model)[0] and HOST not in self.measured.get(model, {})
        ]

    def took_host_bytes(self, model: str, before: int, after: int) -> int:
        """Return what a model is now known to hold of the host.

        Args:
            model: Triton's name; it was just loaded, and has answered a request.
            before: what Triton's processes held before that.
            after: what they hold now.
        """
        known = self.measured.get(model, {}).get(HOST, 0)
        return max(after - before, round(FADES * known), 0)

    def _known_of_host(self, model: str) -> int:
        """Return what a model is known to need of the host; 0: nothing is."""
        return max(self._declared(model)[0], self.measured.get(model, {}).get(HOST, 0))

    def _needs_of_host(self) -> dict[str, float]:
        """Return what each model needs of the host, by Triton's name; where unknown, a guess."""
        needs = {model: float(self._known_of_host(model)) for model in self._variants}
        limit = self._memory.host_budget_bytes
        if limit is None:
            return needs
        largest = max(needs.values()) or float(limit)
        guessed = filter(self.is_host_guessed, self._variants)
        return needs | {model: float(self._found_host.get(model, largest)) for model in guessed}
