"""The gRPC connection to Triton, as observing and acting both need it.

Owns the channel's options, its TLS and the header that opens restricted protocols. It must not
call anything itself.
"""

import asyncio
import logging

import grpc
import tritonclient.grpc.aio as triton

from controller.policy.credentials import CredentialError, secret_file
from controller.policy.model import TlsPolicy, TritonPolicy
from controller.telemetry.small_file import LONGEST_SECRET_BYTES, read_small
from controller.telemetry.tls import (
    Credentials,
    CredentialsError,
    Mark,
    TlsError,
    marks,
    read_credentials,
)

_LOG = logging.getLogger(__name__)
_HEADER_PREFIX = "triton-grpc-protocol-"
# A server that restarts is back in about 2 s; gRPC's own back-off would look away for up to 120 s.
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Statistics of hundreds of models exceed the default of 4 MiB.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # A proxy in the environment is for the web, not for a server beside us.
    ("grpc.enable_http_proxy", 0),
)


_LOOK_S = 1.0  # between looks at the files of TLS
_LINGER_S = 5.0  # a call that is about to begin may still do so on the connection of before
_GRACE_S = 900.0  # the longest load ends earlier


class KeyFileError(CredentialsError):
    """The file with the secret of the restricted protocols cannot be used."""


def read_headers(policy: TritonPolicy) -> dict[str, str]:
    """Return the headers that every call carries; read anew, so that a key can be rotated.

    Raises:
        KeyFileError: the file is missing, unreadable, empty or not one line of ASCII.
    """
    if policy.restricted_key_file is None:
        return {}
    try:
        path = secret_file(policy.restricted_key_file)
        secret = read_small(str(path), LONGEST_SECRET_BYTES).decode("ascii").strip()
    except CredentialError as error:
        raise KeyFileError(f"triton.restricted_key_file: {error}") from error
    except (OSError, ValueError) as error:  # what is no ASCII is one, too
        raise KeyFileError(
            f"{path}: cannot read the key of the restricted protocols ({error}); "
            "check triton.restricted_key_file and the file's permissions"
        ) from error
    if not secret or not secret.isprintable():
        raise KeyFileError(f"{path}: must hold the key of the restricted protocols, on one line")
    # gRPC metadata keys are lower case; Triton compares them so.
    return {f"{_HEADER_PREFIX}{policy.restricted_key_name.lower()}": secret}


def open_client(policy: TritonPolicy) -> tuple[triton.InferenceServerClient, dict[str, str]]:
    """Return a client and the headers to give with each of its calls.

    Needs a running event loop and connects at the first call. The caller closes it.

    Raises:
        KeyFileError: see `read_headers`.
        TlsError: see `controller.telemetry.tls.read_credentials`.
    """
    headers = read_headers(policy)
    credentials = None if policy.tls is None else read_credentials(policy.tls)
    return _client(policy, credentials), headers


def _client(policy: TritonPolicy, found: Credentials | None) -> triton.InferenceServerClient:
    options: list[tuple[str, int | str]] = list(_OPTIONS)
    if policy.tls is None or found is None:
        return triton.InferenceServerClient(policy.grpc, channel_args=options)
    if policy.tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", policy.tls.server_name))
    credentials = grpc.ssl_channel_credentials(found.authorities, found.key, found.certificate)
    return triton.InferenceServerClient(policy.grpc, creds=credentials, channel_args=options)


class Link:
    """The client of one server, made anew when the files of its TLS change.

    What is under way then ends on the connection on which it began; later calls use the new one.
    Files that cannot be used change nothing: what was made of those before stays, if anything was,
    and a server is never called without TLS because of them. Build it in the running event loop.

    Args:
        policy: the server.
        use: what the connection is for, for the log.
    """

    def __init__(self, policy: TritonPolicy, use: str) -> None:
        self.problem: str | None = None  # with the files as they are now
        self.policy = policy  # another may be put here that differs in places only
        self._use = use
        self._client: triton.InferenceServerClient | None = None
        self._known: Mark = ()
        self._retired: dict[asyncio.Task[None], triton.InferenceServerClient] = {}
        self._task: asyncio.Task[None] | None = None
        if policy.tls is None:
            self._client = _client(policy, None)
            return
        self._known = marks(policy.tls)
        try:
            self._client = _client(policy, read_credentials(policy.tls))
        except TlsError as error:
            self.problem = str(error)
        self._task = asyncio.create_task(self._follow(), name="triton-tls")

    @property
    def client(self) -> triton.InferenceServerClient:
        """The client for the next call. Raises TlsError while there never was one."""
        if self._client is None:
            raise TlsError(self.problem)
        return self._client

    async def close(self) -> None:
        """Close every connection; calls under way fail."""
        tasks = [*self._retired, *([] if self._task is None else [self._task])]
        clients = [*self._retired.values(), *([] if self._client is None else [self._client])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            await client.close()

    async def _follow(self) -> None:
        before = self._known
        while (tls := self.policy.tls) is not None:
            await asyncio.sleep(_LOOK_S)
            try:
                mark = await asyncio.to_thread(marks, tls)  # may hang with its file system
                # What is in the middle of a change waits: key and certificate come one by one.
                if mark == before and (mark != self._known or self.problem is not None):
                    await self._renew(tls, mark)
                before = mark
            except Exception:  # noqa: BLE001 - the next change must still be read
                _LOG.exception("the files of triton.tls were not read again")

    async def _renew(self, tls: TlsPolicy, mark: Mark) -> None:
        try:
            credentials = await asyncio.to_thread(read_credentials, tls)
        except TlsError as error:
            self.problem, self._known = str(error), mark
            return
        before, self._client = self._client, _client(self.policy, credentials)
        self.problem, self._known = None, mark
        _LOG.info("the files of triton.tls were read: new calls for %s use them", self._use)
        if before is not None:
            task = asyncio.create_task(_retire(before), name="triton-tls-before")
            self._retired[task] = before
            task.add_done_callback(lambda task: self._retired.pop(task, None))


async def _retire(client: triton.InferenceServerClient) -> None:
    await asyncio.sleep(_LINGER_S)
    # The library's own close() ends what is under way; nothing public of it waits.
    await client._channel.close(_GRACE_S)  # noqa: SLF001
