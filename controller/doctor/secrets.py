"""Checks of the certificates and of the files that hold secrets.

Owns how long certificates last and who may read a secret. No content of a file goes into a finding.
"""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from controller.doctor.finding import Finding, fail, ok, warn
from controller.policy.credentials import is_credential
from controller.policy.model import Policy, TlsPolicy, TritonPolicy
from controller.telemetry.handshake import server_end_s
from controller.telemetry.tls import TlsError, client_context, describe_end, own_end_s

_SOON_S: Final = 14 * 86400.0
_SECRET: Final = "secret files"  # noqa: S105 - the name of a check


async def check_certificates(triton: TritonPolicy) -> list[Finding]:
    """Return how long the certificates last with which Triton is talked to."""
    if triton.tls is None:
        return []
    ends = [
        ("the certificate of Triton", await server_end_s(triton)),
        (
            f"the governor's {triton.tls.cert_file}",
            await asyncio.to_thread(own_end_s, triton.tls),
        ),
    ]
    known = [(what, end_s) for what, end_s in ends if end_s is not None]
    findings = [
        warn("tls", f"{what} {describe_end(end_s)}", "renew it; no restart is needed for ours")
        for what, end_s in known
        if end_s - time.time() < _SOON_S
    ]
    told = "; ".join(f"{what} {describe_end(end_s)}" for what, end_s in known)
    who = "mutual" if triton.tls.cert_file is not None else "of the server only"
    return findings or [ok("tls", f"{who}{': ' if told else ''}{told}")]


def check_tls_files(policy: Policy) -> Iterator[Finding]:
    """Yield what is wrong with the files of TLS that no other check comes across; blocking."""
    bus = None if policy.mqtt is None else policy.mqtt.tls
    for tls in (policy.triton.metrics_tls, bus):
        finding = _files(tls)
        if finding is not None:
            yield finding


def _files(tls: TlsPolicy | None) -> Finding | None:
    named = () if tls is None else (tls.ca_file, tls.cert_file, tls.key_file)
    if tls is None or any(map(is_credential, named)):
        return None  # the service alone is given those
    try:
        client_context(tls)
    except TlsError as error:
        return fail("tls files", str(error), "mend the file; it is read again without a restart")
    return None


def check_secrets(policy: Policy) -> Iterator[Finding]:
    """Yield whether everybody on this machine may read a secret, or the governor may not."""
    named = [(key, name) for key, name in _secrets(policy) if not is_credential(name)]
    sound = True
    for key, name in named:
        path = Path(name)
        try:
            mode = path.stat().st_mode
            with path.open("rb"):
                pass
        except PermissionError:
            sound = False
            yield warn(
                _SECRET,
                f"{key}: you may not read {name}, so it was not looked at",
                "ask as the governor's user, who must be able to read it",
            )
            continue
        except OSError as error:
            sound = False
            yield fail(
                _SECRET,
                f"{key}: {name} cannot be read: {error.strerror}",
                "make the file, or correct the policy",
            )
            continue
        if stat.S_IMODE(mode) & (stat.S_IROTH | stat.S_IWOTH):
            sound = False
            yield warn(
                _SECRET,
                f"{key}: every user of this machine may read {name} or write to it",
                f"chmod 0640 {name}, with the governor's group, or hand it over with systemd's "
                "LoadCredential=",
            )
    if named and sound:
        yield ok(_SECRET, f"{len(named)}, none open to everybody")


def _secrets(policy: Policy) -> Iterator[tuple[str, str]]:
    """Yield the key of the policy and the file, of each secret."""
    triton, mqtt = policy.triton, policy.mqtt
    if triton.restricted_key_file is not None:
        yield "triton.restricted_key_file", triton.restricted_key_file
    for tls in (triton.tls, triton.metrics_tls, None if mqtt is None else mqtt.tls):
        if tls is not None and tls.key_file is not None:
            yield tls.place("key_file"), tls.key_file
    if mqtt is not None and mqtt.password_file is not None:
        yield "mqtt.password_file", mqtt.password_file
