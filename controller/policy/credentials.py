"""Files that hold secrets: named by their path, or as a credential of the service manager.

Owns `credential:NAME` and where it leads to (see LoadCredential= in systemd.exec(5)). It must not
read a secret: who needs one reads it, when he needs it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PREFIX: Final = "credential:"
PATTERN: Final = rf"{PREFIX}(?!\.{{1,2}}$)[A-Za-z0-9_.-]{{1,128}}"
FOLDER_VARIABLE: Final = "CREDENTIALS_DIRECTORY"


class CredentialError(Exception):
    """There is no such credential; the text says what to do."""


def is_credential(named: object) -> bool:
    """Return whether a policy names a credential rather than a path."""
    return isinstance(named, str) and re.fullmatch(PATTERN, named) is not None


def secret_file(named: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the file that a policy names.

    Args:
        named: an absolute path, or `credential:NAME`.
        environment: where the service manager says which folder it put the credentials into.

    Raises:
        CredentialError: the service manager gave no such credential.
    """
    if not is_credential(named):
        return Path(named)
    name = named.removeprefix(PREFIX)
    folder = environment.get(FOLDER_VARIABLE)
    wanted = f"LoadCredential={name}:/path/of/the/secret"
    if not folder:
        raise CredentialError(
            f"this process was given no credentials: add {wanted} to the service's unit (systemctl"
            " edit), or name the file by its path"
        )
    file = Path(folder, name)
    if not file.is_file():
        try:
            others = sorted(path.name for path in Path(folder).iterdir())
        except OSError:
            others = []
        known = f" (there are: {', '.join(others)})" if others else ""
        raise CredentialError(
            f"no credential {name!r} was given to the service{known}: add {wanted} to its unit"
            " (systemctl edit) and restart it"
        )
    return file
