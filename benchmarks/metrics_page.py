"""Compares what a page of metrics costs the processor: the governor's client and a general one.

    python benchmarks/metrics_page.py [--pages 100] [--rate 10] [--rounds 3]

A child process serves a page as Triton's is; both clients fetch it at the rate of ticks, in turn.
A client that runs back to back finds its code in the caches; one that runs ten times a second
does not, which is why the pauses are part of it. Processor time of the client's thread, loop and
pauses included; "nothing" is the pauses alone.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp

from controller.telemetry.page_client import PageClient

_SERVER = """
import asyncio
page = b''.join(
    b'nv_inference_count{model="digits_%d",version="1"} 12\\n' % i for i in range(150)
)
answer = b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(page) + page
async def serve(reader, writer):
    try:
        while True:
            await reader.readuntil(b'\\r\\n\\r\\n')
            writer.write(answer)
    except asyncio.IncompleteReadError:
        writer.close()
async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
Fetch = Callable[[], Awaitable[bytes]]


async def _cost_us(fetch: Fetch, pages: int, pause_s: float) -> float:
    for _ in range(5):
        await fetch()
    began_s = time.thread_time()
    for _ in range(pages):
        await fetch()
        await asyncio.sleep(pause_s)
    return (time.thread_time() - began_s) / pages * 1e6


async def _compare(url: str, pages: int, pause_s: float, rounds: int) -> dict[str, list[float]]:
    own = PageClient(url, longest_bytes=1 << 20)
    session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())

    async def general() -> bytes:
        async with session.get(url, allow_redirects=False) as response:
            return await response.read()

    async def nothing() -> bytes:
        return b""

    found: dict[str, list[float]] = {"nothing": [], "aiohttp": [], "PageClient": []}
    clients: dict[str, Fetch] = {"nothing": nothing, "aiohttp": general, "PageClient": own.get}
    for _ in range(rounds):
        for name, fetch in clients.items():
            found[name].append(await _cost_us(fetch, pages, pause_s))
    own.close()
    await session.close()
    return found


def main() -> int:
    """Print microseconds a page for each client."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=100)
    parser.add_argument("--rate", type=float, default=10.0, help="a second; 0: back to back")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    pause_s = 1.0 / args.rate if args.rate > 0.0 else 0.0
    with subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None  # noqa: S101 - it is a pipe
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/metrics"
            found = asyncio.run(_compare(url, args.pages, pause_s, args.rounds))
        finally:
            server.terminate()
    print("| client | us a page, each round | median |\n| --- | --- | ---: |")
    for name, costs in found.items():
        each = ", ".join(f"{cost:.0f}" for cost in costs)
        print(f"| {name} | {each} | {statistics.median(costs):.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
