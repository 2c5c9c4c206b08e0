"""One variant, whatever happens: what is done today."""

from __future__ import annotations

from controller.twin.rivals import View


class Fixed:
    """Never switches."""

    tick_s = 1.0

    def choose(self, view: View) -> int | None:
        """Return None."""
        del view
        return None
