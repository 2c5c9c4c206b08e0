"""Messages between the governor and its dispatchers, which only who has the key can write.

Owns the format: a signature (HMAC-SHA256) over a body of JSON with a serial number that only
rises, so that an old message cannot be sent again. Of the standard library alone: Triton's Python
loads this very file. Whoever may send requests to Triton can call a dispatcher, but not command it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any


class SignatureError(Exception):
    """A message that is not the governor's, or not its newest; the text says which."""


def seal(key: bytes, serial: int, body: dict[str, Any]) -> bytes:
    """Return a message.

    Args:
        key: the secret.
        serial: greater than that of every message before.
        body: JSON values.
    """
    text = json.dumps({**body, "serial": serial}, separators=(",", ":")).encode()
    return _sign(key, text) + b"\n" + text


def unseal(key: bytes, message: bytes, after: int) -> dict[str, Any]:
    """Return a message's body.

    Args:
        key: the secret.
        message: what `seal` returned.
        after: the serial of the newest message so far.

    Raises:
        SignatureError: another key signed it, or it is not new.
    """
    signature, _, text = message.partition(b"\n")
    if not hmac.compare_digest(signature, _sign(key, text)):
        raise SignatureError("it was not signed with this dispatcher's key")
    body = json.loads(text)
    if not isinstance(body, dict) or not isinstance(body.get("serial"), int):
        raise SignatureError("it has no serial number")
    if body["serial"] <= after:
        raise SignatureError(f"it is older than the last one ({after})")
    return body


def _sign(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).hexdigest().encode()
