"""The gRPC connection to Triton, as observing and acting both need it.

Owns the channel's options and the header that opens restricted protocols. It must not call
anything itself.
"""

import tritonclient.grpc.aio as triton

from controller.policy.credentials import CredentialError, secret_file
from controller.policy.model import TritonPolicy

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


class KeyFileError(Exception):
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
        secret = path.read_text(encoding="ascii").strip()
    except CredentialError as error:
        raise KeyFileError(f"triton.restricted_key_file: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
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
    """
    headers = read_headers(policy)
    client = triton.InferenceServerClient(policy.grpc, channel_args=list(_OPTIONS))
    return client, headers
