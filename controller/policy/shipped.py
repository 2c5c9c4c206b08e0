"""The example policies that come with the governor.

Owns finding them, in a checkout and where the wheel was installed. `policies/` at the top of the
repository is their one source; the wheel holds a copy beside this file. It must not read policies.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_INSTALLED: Final = Path(__file__).with_name("examples")
_CHECKOUT: Final = Path(__file__).parents[2] / "policies"


class UnknownExampleError(Exception):
    """There is no such example; the text names those there are."""


def examples() -> dict[str, str]:
    """Return the text of each example by its name, `example` first.

    Raises:
        OSError: they are not where they should be: the installation is broken.
    """
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    names = sorted(path.stem for path in folder.iterdir() if path.suffix == ".yaml")
    names.sort(key=lambda name: name != "example")
    return {name: (folder / f"{name}.yaml").read_text(encoding="utf-8") for name in names}


def example(name: str) -> str:
    """Return the text of one example.

    Raises:
        UnknownExampleError: there is none of this name.
        OSError: as `examples`.
    """
    found = examples()
    try:
        return found[name.removesuffix(".yaml")]
    except KeyError:
        raise UnknownExampleError(
            f"there is no example {name}; there are {', '.join(found)}"
        ) from None


def summary(text: str) -> str:
    """Return what an example says it is for: the first words of its first comment."""
    for block in text.split("\n\n"):
        comment = [line.lstrip("# ") for line in block.splitlines() if line.startswith("# ")]
        words = " ".join(line for line in comment if not line.startswith("yaml-language-server"))
        if words:
            return re.split(r"[.:(,] ?", words, maxsplit=1)[0].strip()
    return ""
