"""Bytes from a keyboard as keys.

Pure: it must not read the terminal, and gives nothing for what it does not know, so that a paste
or an answer of the terminal does not press keys that nobody pressed.
"""

from __future__ import annotations

import re
from typing import Final

_ESC: Final = 0x1B
_SEQUENCE: Final = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~])")
_UNFINISHED: Final = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|O)?")
_LONGEST_SEQUENCE: Final = 32
_NAMED: Final = {
    b"A": "up",
    b"B": "down",
    b"H": "home",
    b"F": "end",
    b"M": "enter",  # of the keypad
    b"1~": "home",
    b"4~": "end",
    b"5~": "pageup",
    b"6~": "pagedown",
    b"7~": "home",
    b"8~": "end",
}
_CONTROL: Final = {0x0D: "enter", 0x0A: "enter", 0x0C: "redraw"}


def decode(data: bytes) -> tuple[list[str], bytes]:
    """Return the keys, and the bytes of one that has not ended yet.

    Printable ASCII is itself; others are `up`, `down`, `pageup`, `pagedown`, `home`, `end`,
    `enter`, `redraw` (Ctrl-L) and, from `flush`, `esc`.
    """
    keys: list[str] = []
    at = 0
    while at < len(data):
        byte = data[at]
        if byte == _ESC:
            found = _SEQUENCE.match(data, at)
            if found is None:
                rest = data[at:]
                if _UNFINISHED.fullmatch(rest) and len(rest) < _LONGEST_SEQUENCE:
                    return keys, rest
                if data[at + 1 : at + 2] == b"\x1b":
                    keys.append("esc")
                    at += 1
                else:
                    at += 2  # Alt with a key
                continue
            name = _NAMED.get(found.group()[2:])
            if name is not None:
                keys.append(name)
            at = found.end()
            continue
        if 0x20 <= byte < 0x7F:
            keys.append(chr(byte))
        elif byte in _CONTROL:
            keys.append(_CONTROL[byte])
        at += 1
    return keys, b""


def flush(rest: bytes) -> list[str]:
    """Return what an unfinished key was when nothing follows: Escape itself, or nothing."""
    return ["esc"] if rest == b"\x1b" else []
