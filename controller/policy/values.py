"""What a single value of a policy may be: names, addresses, paths, quantities.

Owns the check of a value, its sentence for the operator and its JSON Schema, side by side, so that
an editor and the daemon agree. It must not know which setting a value belongs to.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from controller.policy import compose, credentials, units
from controller.policy.problems import quoted

_NAME: Final = r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,128}"  # `..` is a folder, not a name
_TIME_OF_DAY: Final = "([01][0-9]|2[0-3]):([0-5][0-9])"
_HOST: Final = "[A-Za-z0-9_.-]{1,253}"
_HOST_PORT: Final = rf"({_HOST}|\[[0-9A-Fa-f:.]{{2,45}}\]):([0-9]{{1,5}})"


@dataclass(frozen=True, slots=True, eq=False)  # typing hashes what it is given
class Rule:
    """A check that pydantic runs in place of its own, with the JSON Schema that says the same.

    `convert` returns the value as the program wants it, or raises ValueError with a sentence.
    """

    convert: Callable[[object], Any]
    schema: dict[str, Any]

    def __get_pydantic_core_schema__(
        self, _source: object, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Tell pydantic how to validate."""
        return core_schema.no_info_plain_validator_function(self.convert)

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Tell editors what is accepted."""
        return dict(self.schema)


def _matches(pattern: str, what: str) -> Rule:
    compiled = re.compile(pattern)

    def convert(value: object) -> str:
        text = _text(value, what)
        if compiled.fullmatch(text) is None:
            raise ValueError(f"must be {what}, not {quoted(text)}")
        return text

    return Rule(convert, {"type": "string", "pattern": f"^{pattern}$"})


def _text(value: object, what: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise ValueError(f"has no value: must be {what}")
    if isinstance(value, (bool, int, float)):
        raise ValueError(f'must be {what}: write it in quotes, "{value}", if that is meant')  # noqa: TRY004 - pydantic reports ValueError
    raise ValueError(f"must be {what}, not {'a mapping' if isinstance(value, dict) else 'a list'}")


def _host_port(value: object) -> str:
    what = "HOST:PORT such as 127.0.0.1:8001"
    text = _text(value, what)
    match = re.fullmatch(_HOST_PORT, text)
    if match is None:
        scheme = "://" in text
        hint = " (without http:// and without a path)" if scheme else ""
        raise ValueError(f"must be {what}, not {quoted(text)}{hint}")
    host, port = match.groups()
    if host.startswith("["):
        _check_ipv6(host[1:-1])
    if not 1 <= int(port) <= 65_535:
        raise ValueError(f"port {port} is not between 1 and 65535")
    return text


def _check_ipv6(text: str) -> None:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError(f"{quoted(text)} is no IPv6 address") from None


def _host(value: object) -> str:
    text = _text(value, "a host name or an address")
    if re.fullmatch(_HOST, text) is None:
        if ":" not in text:
            raise ValueError(f"must be a host name or an address, not {quoted(text)}")
        _check_ipv6(text)
    return text


def _http_url(value: object) -> str:
    what = "a URL such as http://127.0.0.1:8002/metrics"
    text = _text(value, what)
    try:
        parts = urllib.parse.urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or re.fullmatch(r"[!-~]{1,2048}", text) is None:
        raise ValueError(f"must be {what}, not {quoted(text)}")
    return text


def _duration_or_auto(value: object) -> float | None:
    if value == "auto":
        return None
    duration_s: float = duration("20ms", "1s").convert(value)
    return duration_s


def _version(value: object) -> int:
    if value != 1 or isinstance(value, (bool, float)):
        raise ValueError("must be 1, the only version of this format so far")
    return 1


def _devices(value: object) -> tuple[int, ...] | None:
    if value == "all":
        return None
    what = "`all` or a list of NVML indices such as [0, 1]"
    indices = _integers(value, what, low=0, high=1023)
    if not indices:
        raise ValueError(f"must be {what}; to watch no GPU write `source: none`")
    return indices


def _gpus(value: object) -> tuple[int, ...]:
    if value == "auto":
        return ()
    what = "`auto` or a list of the GPUs that are allowed, such as [0, 1]"
    indices = _integers(value, what, low=0, high=1023)
    if not indices:
        raise ValueError(f"must be {what}")
    return indices


def _batches(value: object) -> tuple[int, ...]:
    return _integers(value, "a list of batch sizes such as [1, 4, 8]", low=1, high=65_536)


def _integers(value: object, what: str, *, low: int, high: int) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError(f"must be {what}")  # noqa: TRY004 - pydantic reports ValueError
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or not low <= item <= high:
            raise ValueError(f"must be {what}: {quoted(item)} is not in {low} to {high}")
    if len(set(value)) < len(value):
        raise ValueError("names a number twice")
    return tuple(value)


def _integers_schema(low: int, high: int, **more: Any) -> dict[str, Any]:
    items = {"type": "integer", "minimum": low, "maximum": high}
    return {"type": "array", "items": items, "uniqueItems": True, **more}


def _quantity(
    parse: Callable[[object], float],
    what: str,
    written_in: str,
    low: str,
    high: str,
    examples: list[str],
) -> Rule:
    lowest, highest = parse(low), parse(high)

    def convert(value: object) -> float:
        amount = parse(value)
        if not lowest <= amount <= highest:
            raise ValueError(f"must be between {low} and {high}, not {value}")
        return amount

    # Editors pass the x-keys over; the reference and `policy explain` tell them.
    limits = {"x-quantity": what, "x-minimum": low, "x-maximum": high}
    return Rule(convert, {"type": "string", "pattern": written_in, "examples": examples, **limits})


def duration(low: str, high: str) -> Rule:
    """Return the rule of a duration in seconds between two, both included."""
    pattern = units.pattern(units.DURATION_UNITS)
    examples = ["60ms", "2s", "10m"]
    return _quantity(units.parse_duration, "a duration", pattern, low, high, examples)


def size(low: str, high: str) -> Rule:
    """Return the rule of a size in bytes between two, both included."""
    pattern = units.pattern(units.BYTE_UNITS)
    return _quantity(units.parse_bytes, "a size", pattern, low, high, ["256MiB"])


def temperature(low: str, high: str) -> Rule:
    """Return the rule of a temperature in degrees Celsius between two, both included."""
    pattern = units.pattern(units.TEMPERATURE_UNITS)
    return _quantity(units.parse_temperature, "a temperature", pattern, low, high, ["84C"])


def power(low: str, high: str) -> Rule:
    """Return the rule of a power in watts between two, both included."""
    pattern = units.pattern(units.POWER_UNITS)
    return _quantity(units.parse_power, "a power", pattern, low, high, ["300W"])


def percentage(low: str, high: str) -> Rule:
    """Return the rule of a percentage, a ratio inside, between two, both included."""
    pattern = units.pattern(units.PERCENT_UNITS)
    return _quantity(units.parse_percentage, "a percentage", pattern, low, high, ["5%"])


def _time_of_day(value: object) -> int:
    what = 'a time of day such as "22:00"'
    text = _text(value, what)
    match = re.fullmatch(_TIME_OF_DAY, text)
    if match is None:
        raise ValueError(f"must be {what}, not {quoted(text)}")
    return 60 * int(match[1]) + int(match[2])


def _part(value: object) -> object:
    if not isinstance(value, dict):
        raise ValueError("must be a mapping: what is different on these hosts")  # noqa: TRY004 - pydantic reports ValueError
    return value


NAME: Final = _matches(_NAME, "a name of letters, digits and `_ . -`, at most 128")
ABSOLUTE_PATH: Final = _matches(r"/[^\x00-\x1f]{0,1023}", "an absolute path, starting with /")
SECRET_FILE: Final = _matches(
    rf"(/[^\x00-\x1f]{{0,1023}}|{credentials.PATTERN})",
    "an absolute path, starting with /, or credential:NAME of systemd's LoadCredential=NAME:FILE",
)
TEXT: Final = _matches(r"[^\x00-\x1f]{1,256}", "text of 1 to 256 characters")
TOPIC_PREFIX: Final = _matches(
    r"[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,7}",
    "an MQTT topic such as fleet/triton-governor, without wildcards",
)
HOST: Final = Rule(_host, {"type": "string", "pattern": "^[A-Za-z0-9_.:-]{1,253}$"})
HOST_PORT: Final = Rule(
    _host_port, {"type": "string", "pattern": f"^{_HOST_PORT}$", "examples": ["127.0.0.1:8001"]}
)
HTTP_URL: Final = Rule(_http_url, {"type": "string", "pattern": "^https?://[!-~]+$"})
FILE_NAME: Final = _matches(
    r"[^/\x00-\x1f][^\x00-\x1f]{0,1023}", "a file's name, relative to this file"
)
HOST_PATTERN: Final = _matches(
    compose.HOST_PATTERN, "a host name, or a pattern such as edge-* or gpu-[0-9]"
)
HOST_PART: Final = Rule(
    _part, {"type": "object", "description": "What is different there: any keys of a policy."}
)
TIME_OF_DAY: Final = Rule(
    _time_of_day, {"type": "string", "pattern": f"^{_TIME_OF_DAY}$", "examples": ["22:00"]}
)
VERSION: Final = Rule(_version, {"const": 1})
INTERVAL: Final = Rule(
    _duration_or_auto,
    {"anyOf": [{"const": "auto"}, duration("20ms", "1s").schema]},
)
DEVICES: Final = Rule(
    _devices, {"anyOf": [{"const": "all"}, _integers_schema(0, 1023, minItems=1)]}
)
GPUS: Final = Rule(_gpus, {"anyOf": [{"const": "auto"}, _integers_schema(0, 1023, minItems=1)]})
GPU_INDEX: Final = _matches(r"(0|[1-9][0-9]{0,2})", "NVML's index of a GPU, such as 0")
BATCHES: Final = Rule(_batches, _integers_schema(1, 65_536))
