"""Where the embedded server's files live.

Owns the cache folder (installs, sample models) and the runtime folder (state of a running
server). It must not create anything at import.
"""

import os
import tempfile
from pathlib import Path

CACHE_ENV = "TRITON_GOVERNOR_CACHE"
_FOLDER = "triton-governor"


def cache_folder() -> Path:
    """Return the folder of installs and sample models, creating it.

    ``TRITON_GOVERNOR_CACHE`` wins, then ``$XDG_CACHE_HOME/triton-governor``, then
    ``~/.cache/triton-governor``.
    """
    override = os.environ.get(CACHE_ENV)
    if override:
        folder = Path(override).expanduser()
    else:
        xdg = os.environ.get("XDG_CACHE_HOME")
        # The XDG specification: a relative path is invalid and must be ignored.
        base = Path(xdg) if xdg and Path(xdg).is_absolute() else Path.home() / ".cache"
        folder = base / _FOLDER
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def runtime_folder() -> Path:
    """Return the private folder for state files and logs of running servers, creating it.

    Raises:
        PermissionError: somebody else owns the folder, so its content cannot be trusted.
    """
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if xdg and Path(xdg).is_absolute() and os.access(xdg, os.W_OK):
        folder = Path(xdg) / _FOLDER
    else:
        folder = Path(tempfile.gettempdir()) / f"{_FOLDER}-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(
            f"{folder} belongs to another user; set XDG_RUNTIME_DIR to a folder of your own"
        )
    return folder
