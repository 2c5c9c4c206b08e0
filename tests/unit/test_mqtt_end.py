"""How the bus ends its tasks: also those that lose a cancellation."""

import asyncio

from controller.interfaces.mqtt import _end


async def loses(cancellations: int) -> None:
    """Run on after the first few, as what `asyncio.wait_for` waits for does below Python 3.12."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancellations -= 1
            if cancellations < 0:
                raise


async def fails() -> None:
    raise ValueError("nobody reads this")


async def test_a_task_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    tasks = [asyncio.ensure_future(loses(count)) for count in (0, 1, 3)]
    tasks.append(asyncio.ensure_future(fails()))
    await asyncio.sleep(0)
    async with asyncio.timeout(5.0):
        await _end(tasks)
    assert all(task.done() for task in tasks)
    assert [task.cancelled() for task in tasks] == [True, True, True, False]
