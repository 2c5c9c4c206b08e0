"""Why a server does not talk to us, where gRPC only says that it does not.

Owns one handshake of its own, beside the connection that failed, and the sentence that comes of
it. It must not be asked about servers that answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

from controller.policy.model import TlsPolicy, TritonPolicy
from controller.telemetry.tls import TlsError, client_context, end_of

_LONGEST_S = 1.0
_SETTLE_S = 0.5  # a server that does not want us closes at once; one that does speaks first
_HTTP2 = "h2"


async def explain_refusal(policy: TritonPolicy) -> str | None:
    """Return what keeps us and the server apart, in a sentence; None: nothing was found.

    Takes at most a second or two. Nobody who listens, a server that is slow and one that is well
    are not told from each other here.
    """
    try:
        if policy.tls is None:
            return await _without_tls(policy.grpc)
        context = await asyncio.to_thread(client_context, policy.tls)
    except TlsError as error:
        return str(error)
    return await _with_tls(policy.grpc, policy.tls, context)


async def server_end_s(policy: TritonPolicy) -> float | None:
    """Return when the server's certificate ends (Unix seconds); None: it cannot be seen."""
    if policy.tls is None:
        return None
    with contextlib.suppress(OSError, TimeoutError, TlsError, ValueError):
        context = await asyncio.to_thread(client_context, policy.tls)
        async with _connected(policy.grpc, context, policy.tls.server_name) as (_, writer):
            return end_of(writer.get_extra_info("peercert"))
    return None


@contextlib.asynccontextmanager
async def _connected(
    address: str, context: ssl.SSLContext, name: str | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    context.set_alpn_protocols([_HTTP2])
    async with asyncio.timeout(_LONGEST_S):
        reader, writer = await asyncio.open_connection(
            host, int(port), ssl=context, server_hostname=name or host
        )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _with_tls(address: str, tls: TlsPolicy, context: ssl.SSLContext) -> str | None:
    try:
        async with _connected(address, context, tls.server_name) as (reader, _):
            async with asyncio.timeout(_SETTLE_S):
                spoke = await reader.read(1)
    except ssl.SSLCertVerificationError as error:
        return _unbelieved(address, tls, error)
    except ssl.SSLError as error:
        return _alert(address, tls, error)
    except TimeoutError:
        return None
    except ConnectionRefusedError:
        return None
    except OSError:  # reset, or closed in the middle of the handshake
        return (
            f"what listens at {address} does not speak TLS: start Triton with --grpc-use-ssl, or "
            "remove triton.tls"
        )
    if spoke:
        return None
    return _unwelcome(address, tls)


def _unbelieved(address: str, tls: TlsPolicy, error: ssl.SSLCertVerificationError) -> str:
    words = error.verify_message.rstrip(".")
    if "mismatch" in words.lower():
        named = tls.server_name or address.rpartition(":")[0].strip("[]")
        place = tls.place("server_name")
        return (
            f"the certificate of Triton at {address} is not for {named}: set {place} to a name in "
            "it, or give the server one that has this"
        )
    if "expired" in words or "not yet valid" in words:
        return f"the certificate of Triton at {address} is out of its time ({words}): renew it"
    return (
        f"{tls.place('ca_file')}: {tls.ca_file} does not vouch for the certificate of Triton at "
        f"{address} ({words})"
    )


def _alert(address: str, tls: TlsPolicy, error: ssl.SSLError) -> str:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "alert" in reason:
        ours = "certificate" in reason or "unknown ca" in reason
        said = _unwelcome(address, tls) if ours else f"Triton at {address} refuses our TLS"
        return f"{said} (it says: {reason})"
    return (
        f"what listens at {address} does not speak TLS ({reason}): start Triton with "
        "--grpc-use-ssl, or remove triton.tls"
    )


def _unwelcome(address: str, tls: TlsPolicy) -> str:
    if tls.cert_file is None:
        return (
            f"Triton at {address} wants a certificate of the governor: set triton.tls.cert_file "
            "and triton.tls.key_file"
        )
    return (
        f"{tls.place('cert_file')}: Triton at {address} does not accept {tls.cert_file}: its "
        "--grpc-root-cert must vouch for it"
    )


async def _without_tls(address: str) -> str | None:
    """Find out whether a server that does not talk to us would, over TLS."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent over it
    try:
        async with _connected(address, context, None):
            pass
    except (OSError, TimeoutError, ValueError):
        return None
    return f"Triton at {address} wants TLS: name its certificate authority in triton.tls.ca_file"
