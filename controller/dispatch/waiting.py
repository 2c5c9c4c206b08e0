"""Who of those that wait fits into a batch together, and how they leave the queue.

Of the standard library alone, like all that runs inside Triton. It must not choose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from .late_binding import Request


def together(queue: deque[Request], most: int) -> list[Request]:
    """Return those who fit together with the oldest: one more than so many rows hold."""
    kind = queue[0].kind
    found: list[Request] = []
    rows = 0
    for request in queue:
        if request.kind != kind:
            continue
        found.append(request)
        rows += request.rows
        if rows > most:  # it is who waits on
            break
    return found


def prefix(requests: Sequence[Request], most: int) -> tuple[int, int]:
    """Return how many of the first fit into so many rows, one at least, and their rows."""
    count, rows = 1, requests[0].rows
    for request in requests[1:]:
        if rows + request.rows > most:
            break
        count += 1
        rows += request.rows
    return count, rows


def leave(queue: deque[Request], requests: Sequence[Request]) -> None:
    """Take some out of the queue, wherever they are."""
    for at, request in enumerate(requests):
        if queue[0] is request:
            queue.popleft()
            continue
        # Others of another kind are between. By identity: tensors are not to be compared.
        gone = set(map(id, requests[at:]))
        stay = [one for one in queue if id(one) not in gone]
        queue.clear()
        queue.extend(stay)
        break
