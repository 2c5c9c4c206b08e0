"""The files of TLS: read together, checked before they are used, and read again when they change.

Owns what is wrong with a file, in a sentence that names the policy's key. It must not open
connections, and no key goes into a message.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NoReturn

from controller.policy.credentials import CredentialError, is_credential, secret_file
from controller.policy.model import TlsPolicy
from controller.telemetry.small_file import read_small

Mark = tuple[tuple[int, int, int, int, int] | None, ...]

_LONGEST_BYTES: Final = 1024 * 1024  # the system's bundle has a quarter of it
_HOUR_S: Final = 3600.0
_DAY_S: Final = 86400.0


class CredentialsError(Exception):
    """A file that the connection to Triton needs cannot be used; the text says which and why."""


class TlsError(CredentialsError):
    """The same of a file of TLS."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the files hold, as it was at one moment."""

    authorities: bytes
    certificate: bytes | None
    key: bytes | None = field(repr=False)


def marks(policy: TlsPolicy) -> Mark:
    """Return what tells one content of the files from another; blocking."""
    found: list[tuple[int, int, int, int, int] | None] = []
    with contextlib.suppress(TlsError):  # told by who reads them
        policy = _located(policy)
    for name in (policy.ca_file, policy.cert_file, policy.key_file):
        mark = None
        if name is not None:
            with contextlib.suppress(OSError):
                seen = Path(name).stat()
                mark = seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns
        found.append(mark)
    return tuple(found)


def read_credentials(policy: TlsPolicy) -> Credentials:
    """Return the files' contents, which fit each other; blocking.

    Raises:
        TlsError: a file is missing, unreadable or no PEM, the key is another certificate's, or
            the certificate is past its time.
    """
    policy = _located(policy)
    client_context(policy)
    return Credentials(
        _read(policy, "ca_file"),
        None if policy.cert_file is None else _read(policy, "cert_file"),
        None if policy.key_file is None else _read(policy, "key_file"),
    )


def client_context(policy: TlsPolicy) -> ssl.SSLContext:
    """Return how a server is verified, and what it is told of us; blocking.

    Raises:
        TlsError: as `read_credentials`.
    """
    policy = _located(policy)
    _read(policy, "ca_file")  # for the words: the library's name no file
    try:
        context = ssl.create_default_context(cafile=policy.ca_file)
    except (OSError, ValueError) as error:
        _refuse(policy, "ca_file", "holds no PEM certificates", error)
    if policy.cert_file is not None and policy.key_file is not None:
        _read(policy, "cert_file")
        _read(policy, "key_file")
        _load_own(context, policy, policy.cert_file, policy.key_file)
        ends_s = own_end_s(policy)
        if ends_s is not None and ends_s <= time.time():
            _refuse(policy, "cert_file", f"{describe_end(ends_s)}: renew it")
    return context


def _load_own(context: ssl.SSLContext, policy: TlsPolicy, cert_file: str, key_file: str) -> None:
    try:
        # Without a passphrase of ours the library would ask for one on the terminal.
        context.load_cert_chain(cert_file, key_file, password=_no_passphrase)
    except _PassphraseError as error:
        _refuse(policy, "key_file", "is encrypted: store it without a passphrase", error)
    except ssl.SSLError as error:
        reason = error.reason or ""
        if "MISMATCH" in reason:
            problem = f"is not the private key of {cert_file}"
            _refuse(policy, "key_file", problem, error)
        key = "key_file" if "-----BEGIN CERTIFICATE-----" in _text(cert_file) else "cert_file"
        problem = "holds no PEM private key" if key == "key_file" else "holds no PEM certificate"
        _refuse(policy, key, problem, error)
    except (OSError, ValueError) as error:
        _refuse(policy, "cert_file", f"cannot be read: {error}", error)


def own_end_s(policy: TlsPolicy) -> float | None:
    """Return when our own certificate ends (Unix seconds); None: we have none, or it is odd.

    The library tells the dates of a peer's certificate only, so it shows ours to itself.
    """
    with contextlib.suppress(TlsError):
        policy = _located(policy)
    if policy.cert_file is None or policy.key_file is None:
        return None
    shows = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    shows.check_hostname = False
    shows.verify_mode = ssl.CERT_NONE
    looks = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    looks.verify_mode = ssl.CERT_REQUIRED
    looks.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        for context in (shows, looks):
            context.load_cert_chain(policy.cert_file, policy.key_file, password=_no_passphrase)
        looks.load_verify_locations(policy.cert_file)
        return _peer_end_s(shows, looks)
    except ssl.SSLCertVerificationError as error:
        return 0.0 if error.verify_code == _EXPIRED else None
    except (OSError, ValueError):
        return None


_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED


def _peer_end_s(client: ssl.SSLContext, server: ssl.SSLContext) -> float | None:
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(back, there),
        server.wrap_bio(there, back, server_side=True),
    )
    done: set[ssl.SSLObject] = set()
    for _ in range(10):  # a handshake takes three
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                done.add(end)
        if len(done) == len(ends):
            return end_of(ends[1].getpeercert())
    return None


def end_of(certificate: object) -> float | None:
    """Return when a certificate ends (Unix seconds), as the ssl library describes it."""
    ends = certificate.get("notAfter") if isinstance(certificate, dict) else None
    return None if ends is None else float(ssl.cert_time_to_seconds(ends))


def describe_end(ends_s: float) -> str:
    """Return when a certificate ends or ended, for people."""
    left_s = ends_s - time.time()
    if left_s <= 0.0:
        ago = "" if ends_s <= 0.0 else f" {_span(-left_s)} ago"
        return f"is a certificate that ended{ago}"
    return f"ends in {_span(left_s)}"


def _span(seconds: float) -> str:
    if seconds < 2 * _DAY_S:
        return f"{seconds / _HOUR_S:.0f} h"
    return f"{seconds / _DAY_S:.0f} days"


class _PassphraseError(Exception):
    """A key wants one."""


def _no_passphrase() -> str:
    raise _PassphraseError


def _located(policy: TlsPolicy) -> TlsPolicy:
    """Return where the files are, of those that are credentials too. Raises TlsError."""
    found: dict[str, str] = {}
    for key in ("ca_file", "cert_file", "key_file"):
        named = getattr(policy, key)
        if is_credential(named):
            try:
                found[key] = str(secret_file(named))
            except CredentialError as error:
                raise TlsError(f"{policy.place(key)}: {error}") from error
    return replace(policy, **found)  # type: ignore[arg-type]


def _read(policy: TlsPolicy, key: str) -> bytes:
    try:
        return read_small(str(getattr(policy, key)), _LONGEST_BYTES)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        _refuse(policy, key, f"cannot be read: {reason}", error)


def _text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _refuse(
    policy: TlsPolicy, key: str, problem: str, error: BaseException | None = None
) -> NoReturn:
    raise TlsError(f"{policy.place(key)}: {getattr(policy, key)} {problem}") from error
