"""Memory management that holds a tick up as little as it can.

Owns what the process asks of Python's garbage collector and of the C library. It must not know
what the memory is for.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

# A tick of two hundred models makes some thousands of objects that may refer to others and drops
# as many of those of the tick before: with the usual 700 the collector would run a dozen times.
_YOUNG: Final = 20_000
# Of glibc, which has them in <malloc.h>, the numbers of two settings, and bytes: arrays up to so
# many come from what the process has already, and of that so much is kept. By default what the
# arrays of a tick had is soon given back, asked for anew in the next one, and filled with zeros by
# the kernel page by page: 1,800 of them at a tick of 200 models.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES: Final = 1 << 24


def settle() -> None:
    """Ask for it; to be called once all is imported and made that stays."""
    gc.collect()
    gc.freeze()  # what is there by now stays: collections in a tick become short
    gc.set_threshold(_YOUNG)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc has it
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, 2 * _KEPT_BYTES)
