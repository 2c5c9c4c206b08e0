"""Reading a small file that a policy names: a secret, a certificate.

Owns that it is a file and has an end: a pipe would hold the daemon up, a device fill its memory.
"""

from __future__ import annotations

import os
import stat
from typing import Final

LONGEST_SECRET_BYTES: Final = 64 * 1024


def read_small(name: str, longest_bytes: int) -> bytes:
    """Return what a file holds; blocking.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or longer than that.
    """
    # Opening a pipe would wait for who writes into it.
    handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as stream:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError("Is a directory")
        if not stat.S_ISREG(mode):
            raise ValueError("not a regular file")
        content = stream.read(longest_bytes + 1)
    if len(content) > longest_bytes:
        raise ValueError(f"longer than {longest_bytes // 1024} KiB")
    return content
