"""Run a command that ends with its parent, however that ends.

Run as a script (``python -I -S leash.py PARENT SIGNAL COMMAND...``) with the standard library
only: it asks the kernel for the signal and becomes the command. A script and not a
``preexec_fn``, which may deadlock in a parent with threads. It must be started from the parent's
main thread: the kernel means that thread when it says parent.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Replace this process by the command; does not return."""
    parent, number, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - that is what it is for


if __name__ == "__main__":
    main(sys.argv[1:])
