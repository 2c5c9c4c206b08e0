"""What TLS costs a switch: two real servers side by side, switched in turn by the same code.

    python benchmarks/tls_switch.py [PAIRS]

Each pair is a switch without TLS and one over mutual TLS, in either order by turns; told are the
medians and the ratio within pairs, which a busy machine moves less than either. Needs the embedded
server and the test's own modules.
"""

import asyncio
import logging
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "triton"), str(ROOT / "tests" / "support")]

from certificates import Authority  # noqa: E402
from governed import Governed, governed, make_policy, precompile  # noqa: E402
from repository import write_model  # noqa: E402

from controller.embedded.install import install  # noqa: E402
from controller.embedded.server import start_server  # noqa: E402
from controller.policy.model import TlsPolicy  # noqa: E402

VARIANTS = ("slow", "fast")


async def _took_s(test: Governed, target: str) -> tuple[float, float]:
    """Return what the load of the alias took, and the whole switch with its proof."""
    record = await test.switched(target)
    assert record.switch_s is not None, record  # noqa: S101 - a switch that is done has both
    assert record.transaction_s is not None, record  # noqa: S101
    return record.switch_s, record.transaction_s


async def _measure(
    plain: str, secure: str, tls: TlsPolicy, pairs: int
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    with_tls = make_policy(secure, *VARIANTS)
    with_tls = replace(with_tls, triton=replace(with_tls.triton, tls=tls))
    found = []
    async with governed(make_policy(plain, *VARIANTS)) as one, governed(with_tls) as other:
        for test in (one, other):
            await test.ready()
        for number in range(pairs):
            target = VARIANTS[number % 2]
            if number % 4 < 2:
                first, second = await _took_s(one, target), await _took_s(other, target)
            else:
                second, first = await _took_s(other, target), await _took_s(one, target)
            found.append((first, second))
    return found


def main() -> None:
    """Measure and print."""
    logging.disable(logging.WARNING)
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority(folder / "certificates")
        authority.issue("server", "127.0.0.1")
        authority.issue("us", "governor.example")
        for which in ("plain", "secure"):
            for tag, variant in enumerate(VARIANTS):
                write_model(folder / which, variant, tag=tag, delay_s=0.001)
            precompile(folder / which)
        server = authority.files("server")
        flags = (
            "--grpc-use-ssl=1",
            "--grpc-use-ssl-mutual=1",
            f"--grpc-server-cert={server['cert_file']}",
            f"--grpc-server-key={server['key_file']}",
            f"--grpc-root-cert={authority.file}",
        )
        installation = install(lambda *_: None)
        log = folder / "triton.log"
        with (
            start_server(
                installation, folder / "plain", log_file=log, load_models=VARIANTS
            ) as plain,
            start_server(
                installation,
                folder / "secure",
                log_file=log,
                load_models=VARIANTS,
                extra_args=flags,
            ) as secure,
        ):
            tls = TlsPolicy(str(authority.file), **authority.files("us"))
            found = asyncio.run(_measure(plain.grpc, secure.grpc, tls, pairs))
    for at, what in enumerate(("switch", "transaction")):
        without = [pair[0][at] for pair in found]
        secured = [pair[1][at] for pair in found]
        ratios = sorted(b / a for a, b in zip(without, secured, strict=True))
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"{what}: {statistics.median(without) * 1e3:.2f} ms without TLS, "
            f"{statistics.median(secured) * 1e3:.2f} ms over mutual TLS; ratio in pairs "
            f"{statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f}), n = {pairs}"
        )


if __name__ == "__main__":
    main()
