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
# many come from what the process has already, which is given back only beyond. By default each
# large array of a tick is asked for anew, and the kernel fills it with zeros page by page.
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
