"""Checks of the Triton server: can it be reached, controlled, traced, and by whom else.

Owns the questions about the server as a whole; its models are `controller.doctor.models`'. It
must change nothing: the only load it asks for is of a name that cannot exist, for the sake of
the words in which it is refused.
"""

from __future__ import annotations

import asyncio
import secrets
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc
import psutil
from tritonclient.utils import InferenceServerException

from controller.doctor.finding import Finding, fail, ok, warn
from controller.policy.cautions import is_loopback, is_loopback_ip
from controller.policy.model import TritonPolicy
from controller.telemetry.handshake import explain_refusal
from controller.telemetry.sampling import is_fragile
from controller.telemetry.tls import TlsError, client_context
from controller.telemetry.triton_metrics import without_password

DEADLINE_S = 3.0
_SAFE = (2, 59)  # 25.07, with the fixes of CVE-2025-23319, -23320, -23334, -23310 and -23311
_SAFE_TEXT = "25.07 (2.59)"
_PENDING = "nv_inference_pending_request_count"
_MAX_PAGE_BYTES = 64 * 1024 * 1024
_LATE_SPANS_MS = 500
_TRACE_PATH = "/v1/traces"


class CallError(Exception):
    """A call that failed, with Triton's own words."""


@dataclass(frozen=True, slots=True)
class Access:
    """What the server says to a load with our key and to one without."""

    ours: str
    anybodys: str

    @property
    def explicit(self) -> bool:
        """Return whether models can be loaded by us at all: the refusal is about the name."""
        return "failed to load" in self.ours

    @property
    def open_to_all(self) -> bool:
        """Return whether the load of somebody without a key got as far as the name, too."""
        return "failed to load" in self.anybodys


async def call(what: str, awaitable: Any) -> Any:
    """Await a call of the client. Raises CallError with one line."""
    try:
        async with asyncio.timeout(DEADLINE_S + 1.0):
            return await awaitable
    except InferenceServerException as error:
        words = " ".join((error.message() or str(error)).split())
        raise CallError(f"{what}: {words}") from error
    except (grpc.RpcError, grpc.aio.UsageError, OSError) as error:
        raise CallError(f"{what}: {' '.join(str(error).split())[:300]}") from error
    except TimeoutError as error:
        raise CallError(f"{what}: no answer within {DEADLINE_S:g} s") from error


async def check_reach(
    client: Any, headers: dict[str, str], triton: TritonPolicy
) -> tuple[bool, Finding]:
    """Return whether the server answers over gRPC, and what its version means."""
    name = "triton"
    try:
        found = await call(
            "server metadata",
            client.get_server_metadata(headers=headers, client_timeout=DEADLINE_S),
        )
    except CallError as error:
        why = await explain_refusal(triton)
        if why is not None:
            advice = "see docs/security.md for TLS; the files are read again without a restart"
            return False, fail(name, why, advice)
        return False, fail(
            name,
            f"{triton.grpc} does not answer over gRPC ({error})",
            "start Triton, or correct triton.grpc in the policy (the gRPC port, often 8001)",
        )
    version = str(found.version)
    message = f"{triton.grpc} is {found.name} {version}"
    if _version(version) >= _SAFE:
        return True, ok(name, message)
    danger = f"{message}, older than the security fixes of {_SAFE_TEXT}"
    if triton.traces_listen is not None and is_fragile(version):
        danger += " and than 25.05: tracing many requests can end it, so the governor traces few"
    if is_loopback(triton.grpc):
        return True, warn(name, danger, "keep it on loopback, or use 25.07 or newer")
    return True, fail(name, danger, "use 25.07 or newer, or let it listen on loopback only")


async def check_control(
    client: Any, headers: dict[str, str], triton: TritonPolicy
) -> list[Finding]:
    """Return whether models can be loaded by us, and whether by anybody."""
    access = Access(ours=await _refusal(client, headers), anybodys=await _refusal(client, {}))
    words = access.ours
    name = "model control"
    if "polling" in words or "not allowed" in words:
        return [
            fail(
                name,
                "Triton does not allow models to be loaded and unloaded",
                "start it with --model-control-mode=explicit (and --load-model=NAME for what "
                "must be there from the start); until then the governor only advises",
            )
        ]
    if "restricted" in words:
        advice = (
            "correct the key: triton.restricted_key_file must hold the value of "
            "--grpc-restricted-protocol, triton.restricted_key_name its name"
            if headers
            else "set triton.restricted_key_file to a file with the key of "
            "--grpc-restricted-protocol"
        )
        return [fail(name, f"model control is behind a key that we lack ({words})", advice)]
    if not access.explicit:
        return [fail(name, f"an unexpected answer to a load: {words}", "look at Triton's log")]
    findings = [ok(name, "models can be loaded and unloaded (explicit)")]
    if not access.open_to_all:
        findings.append(ok("restricted API", "a load without the key is refused"))
        return findings
    exposed = not is_loopback(triton.grpc) or bool(_open_listeners([triton.grpc]))
    advice = (
        "start Triton with --grpc-restricted-protocol=model-repository,model-config,"
        "shared-memory,statistics,trace,logging:KEY=SECRET, the same for "
        "--http-restricted-api, and name the secret's file in triton.restricted_key_file"
    )
    words = "whoever reaches the gRPC port can load models, which is to run code"
    findings.append(
        fail("restricted API", f"{words}, and the port is open to the network", advice)
        if exposed
        else warn("restricted API", words, advice)
    )
    return findings


def check_listeners(triton: TritonPolicy) -> list[Finding]:
    """Return whether the server's ports are open to the network, as this host sees it."""
    addresses = [triton.grpc]
    if triton.metrics_url:
        page = urllib.parse.urlsplit(without_password(triton.metrics_url))
        addresses.append(page.netloc)
    local = [address for address in addresses if is_loopback(address)]
    if not local:
        return []
    found = _open_listeners(local)
    if not found:
        return [ok("listening", f"{', '.join(local)}: on loopback only, so far as can be seen")]
    return [
        warn(
            "listening",
            f"{', '.join(found)} open to the network",
            "start Triton with --grpc-address=127.0.0.1 and --metrics-address=127.0.0.1 "
            "(the metrics have no login), and open to the network only what clients need",
        )
    ]


async def check_traces(client: Any, headers: dict[str, str], triton: TritonPolicy) -> list[Finding]:
    """Return whether the server posts its traces to where the governor listens."""
    name = "traces"
    if triton.traces_listen is None:
        return [
            warn(
                name,
                "the policy has no triton.traces: only means are known, so attainment is "
                "unknown and the margin wider",
                "set triton.traces.listen and start Triton with --trace-config "
                f"opentelemetry,url=http://127.0.0.1:4318{_TRACE_PATH}",
            )
        ]
    url = f"http://{triton.traces_listen}{_TRACE_PATH}"
    flags = f"--trace-config mode=opentelemetry --trace-config opentelemetry,url={url}"
    try:
        answer = await call(
            "trace settings",
            client.get_trace_settings(headers=headers, client_timeout=DEADLINE_S),
        )
    except CallError as error:
        return [warn(name, str(error), f"allow the trace API, and start Triton with {flags}")]
    settings = {key: list(value.value) for key, value in answer.settings.items()}
    return list(_trace_findings(name, settings, url, flags))


def _trace_findings(
    name: str, settings: Mapping[str, list[str]], url: str, flags: str
) -> Iterator[Finding]:
    mode = "".join(settings.get("trace_mode", ()))
    posted = "".join(settings.get("url", ()))
    delay = "".join(settings.get("bsp_schedule_delay", ()))
    if mode != "opentelemetry":
        yield warn(
            name,
            f"Triton does not post traces (mode {mode or 'unknown'}): only means are known",
            f"start it with {flags}; mode and URL cannot be set later",
        )
        return
    if _endpoint(posted) != _endpoint(url):
        yield warn(
            name,
            f"Triton posts its traces to {posted}, but the governor listens at {url}",
            f"start Triton with {flags}, or correct triton.traces.listen",
        )
        return
    if delay.isdecimal() and int(delay) > _LATE_SPANS_MS:
        yield warn(
            name,
            f"Triton keeps its traces back for up to {delay} ms",
            "start it with --trace-config opentelemetry,bsp_schedule_delay=200",
        )
        return
    yield ok(name, f"Triton posts them to {posted}; the governor steers rate and level")


async def check_metrics(triton: TritonPolicy) -> Finding:
    """Return whether the metrics page can be read and has the queue depth."""
    name, url = "metrics", triton.metrics_url
    if url is None:
        return warn(
            name,
            "the policy has no triton.metrics: queue depth is unknown",
            "set triton.metrics to Triton's page, often http://127.0.0.1:8002/metrics",
        )
    advice = "start Triton with --allow-metrics=true, or correct triton.metrics in the policy"
    told, tls = without_password(url), triton.metrics_tls
    try:
        context = True if tls is None else await asyncio.to_thread(client_context, tls)
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE_S)) as session,
            session.get(
                url,
                allow_redirects=False,
                ssl=context,
                server_hostname=None if tls is None else tls.server_name,
            ) as answer,
        ):
            if answer.status != 200:
                return fail(name, f"{told} answered {answer.status}", advice)
            page = await _bounded(answer.content)
    except TlsError as error:
        return fail(name, str(error), "mend the file; it is read again without a restart")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return fail(name, f"{told} cannot be read: {error or type(error).__name__}", advice)
    if _PENDING.encode() not in page:
        return fail(
            name,
            f"{told} has no {_PENDING}",
            "use Triton 23.09 or newer with --metrics-config left at its defaults",
        )
    return ok(name, f"{told} has the queue depth of each model")


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in content.iter_chunked(65536):
        chunks.append(chunk)
        size += len(chunk)
        if size > _MAX_PAGE_BYTES:
            raise ValueError(f"the page is larger than {_MAX_PAGE_BYTES} bytes")
    return b"".join(chunks)


async def _refusal(client: Any, headers: dict[str, str]) -> str:
    """Ask for a model that cannot exist; return the words in which that is refused."""
    name = f"triton_governor_doctor_{secrets.token_hex(8)}"
    try:
        await call("load", client.load_model(name, headers=headers, client_timeout=DEADLINE_S))
    except CallError as error:
        return str(error)
    return f"a model of the random name {name} was loaded"


def _open_listeners(addresses: list[str]) -> list[str]:
    """Return those of our ports on which a process of this host listens for the network."""
    ports = {int(port) for a in addresses if (port := a.rpartition(":")[2]).isdecimal()}
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []  # not ours to see: silence is no proof, and the message says so
    listening = {c.laddr for c in connections if c.status == psutil.CONN_LISTEN and c.laddr}
    return sorted(
        f"{ip}:{port}" for ip, port in listening if port in ports and not is_loopback_ip(ip)
    )


def _endpoint(url: str) -> tuple[str | None, int | None, str]:
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None, None, url
    return ("127.0.0.1" if host == "localhost" else host), port, parts.path.rstrip("/")


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")[:2]
    return tuple(int(part) for part in parts) if all(p.isdecimal() for p in parts) else (0,)
