"""Steers how many requests Triton traces, so that the data suffices and costs nothing.

Owns the trace settings of our aliases, through the trace API, of a server whose traces come to
us: level TIMESTAMPS at a rate of one in N while the receiver listens, OFF otherwise, and what was
there before at the end. It must never touch a setting that it could not read first, nor the
server's global ones.

A rate set for an alias yields the alias's span and its variant's (measured), and leaves every
other model as it was.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from controller.telemetry.source import Backoff, Clock, Ledger
from controller.telemetry.triton_statistics import describe

_log = logging.getLogger(__name__)

TARGET_TRACES_PER_S = 40.0
# Before 25.05 (2.58) a race at the end of a trace can end the whole server (server#7795): seen
# here on 2.51 after 4,000 to 14,000 traced requests at full load. Few traces make it rare.
FRAGILE_TARGET_PER_S = 8.0
FRAGILE_LEAST_RATE = 8  # one in so many, however quiet it is: a burst finds this rate in force
_STURDY_VERSION = (2, 58)
_HYSTERESIS = 2.0
_MAX_RATE = 1_000_000
_DEADLINE_S = 1.0
_KEYS = ("trace_level", "trace_rate", "trace_count")
_ON = "TIMESTAMPS"
_OFF = "OFF"

Settings = dict[str, list[str]]


def is_fragile(version: str | None) -> bool:
    """Return whether a server of this version can be ended by its own tracing; unknown: yes."""
    try:
        major, minor = (int(part) for part in (version or "").split(".")[:2])
    except ValueError:
        return True
    return (major, minor) < _STURDY_VERSION


def next_rate(
    present: int | None,
    requests_per_s: float,
    target_per_s: float = TARGET_TRACES_PER_S,
    least: int = 1,
) -> int:
    """Return N, so that tracing one in N requests gives about the target.

    A present N is kept while it is within a factor of two of what it should be, as each change
    is a call to the server.
    """
    wanted = min(max(least, round(requests_per_s / target_per_s)), _MAX_RATE)
    if present is None or present < 1:
        return wanted
    within = present / _HYSTERESIS < wanted < present * _HYSTERESIS
    return present if within else wanted


@dataclass(slots=True)
class _Alias:
    original: Settings
    inherited: bool  # the original is the server's global setting: restored by clearing
    rate: int | None = None  # what we set; None: nothing yet
    on: bool | None = None


class TraceSampling:
    """Keeps the trace settings of the aliases where they should be."""

    def __init__(self, *, clock: Clock, address: str) -> None:
        self.ledger: Ledger[int] = Ledger("sampling", clock=clock, backoff=Backoff(1.0, 30.0))
        self._clock = clock
        self._address = address
        self._fragile = True
        self._aliases: dict[str, _Alias] = {}
        self._destination_known = False  # traces are known to come to us

    def forget(self) -> None:
        """Drop what is known of a server that restarted: its settings are as at its start."""
        self._aliases.clear()
        self._destination_known = False
        self._tell()

    def rate(self, alias: str) -> int | None:
        """Return N of one in N traced requests; None: not ours, or off."""
        entry = self._aliases.get(alias)
        return entry.rate if entry is not None and entry.on else None

    async def steer(
        self,
        client: triton.InferenceServerClient,
        headers: Mapping[str, str],
        requests_per_s: Mapping[str, float],
        *,
        port: int | None,
        listening: bool,
        version: str | None,
    ) -> None:
        """Set what should be different by now. Never raises for what a server can do wrong.

        Args:
            client: to the server.
            headers: for each call.
            requests_per_s: arrivals, for each alias that is loaded.
            port: where we receive traces.
            listening: whether we do so now.
            version: the server's; decides how many traces it can bear.
        """
        self._fragile = is_fragile(version)
        now_s = self._clock()
        if self.ledger.retry_s is not None and now_s < self.ledger.retry_s:
            return
        try:
            if requests_per_s and not self._destination_known:
                await _check_destination(client, headers, port)
                self._destination_known = True
            for alias, arrivals in requests_per_s.items():
                await self._steer_one(client, headers, alias, arrivals, listening=listening)
        except InferenceServerException as error:
            self.ledger.fail(describe(error, self._address))
        except (ValueError, TimeoutError) as error:
            self.ledger.fail(f"Triton at {self._address}: {error}")
        else:
            self.ledger.succeed(len(self._aliases))
            self._tell()

    async def restore(
        self, client: triton.InferenceServerClient, headers: Mapping[str, str]
    ) -> None:
        """Put back what was there. Never raises for what a server can do wrong."""
        for alias, entry in self._aliases.items():
            if entry.on is None:
                continue
            settings: dict[str, list[str] | None] = dict(entry.original)
            if entry.inherited:
                settings = dict.fromkeys(entry.original)
            try:
                await client.update_trace_settings(
                    alias, settings, headers=dict(headers), client_timeout=_DEADLINE_S
                )
            except InferenceServerException as error:
                _log.warning("sampling: trace settings of %s not restored: %s", alias, error)
        self._aliases.clear()

    async def _steer_one(
        self,
        client: triton.InferenceServerClient,
        headers: Mapping[str, str],
        alias: str,
        requests_per_s: float,
        *,
        listening: bool,
    ) -> None:
        entry = self._aliases.get(alias)
        if entry is None:
            original = await _read(client, headers, alias)
            everywhere = await _read(client, headers, None)
            entry = self._aliases[alias] = _Alias(original, inherited=original == everywhere)
        if self._fragile:
            rate = next_rate(
                entry.rate, requests_per_s, FRAGILE_TARGET_PER_S, least=FRAGILE_LEAST_RATE
            )
        else:
            rate = next_rate(entry.rate, requests_per_s)
        if entry.on is listening and (not listening or entry.rate == rate):
            return
        # A count left over from somebody else would end the traces; -1 is without end.
        on = {"trace_level": [_ON], "trace_rate": [str(rate)], "trace_count": ["-1"]}
        settings = on if listening else {"trace_level": [_OFF]}
        await client.update_trace_settings(
            alias, settings, headers=dict(headers), client_timeout=_DEADLINE_S
        )
        entry.on, entry.rate = listening, rate if listening else None

    def _tell(self) -> None:
        rates = [f"{alias} 1/{entry.rate}" for alias, entry in self._aliases.items() if entry.on]
        self.ledger.detail = ", ".join(rates) or "off"


async def _check_destination(
    client: triton.InferenceServerClient, headers: Mapping[str, str], port: int | None
) -> None:
    """Make sure that what we switch on comes to us, and to no file or collector of others.

    Raises:
        ValueError: it does not; says what to do.
    """
    answer = await client.get_trace_settings(headers=dict(headers), client_timeout=_DEADLINE_S)
    mode = "".join(answer.settings["trace_mode"].value)
    url = "".join(answer.settings["url"].value)
    start_with = (
        "start it with --trace-config mode=opentelemetry and --trace-config "
        f"opentelemetry,url=http://127.0.0.1:{port}/v1/traces"
    )
    if mode != "opentelemetry":
        raise ValueError(f"it posts no traces (mode {mode or 'unknown'!r}); {start_with}")
    try:
        theirs = urlsplit(url).port
    except ValueError:
        theirs = None
    if port is None or theirs != port:
        raise ValueError(f"its traces go to {url!r}, so their rate is left alone; {start_with}")


async def _read(
    client: triton.InferenceServerClient, headers: Mapping[str, str], alias: str | None
) -> Settings:
    """Return the settings that we may change.

    Raises:
        ValueError: one of them is missing, so it could not be put back.
    """
    answer = await client.get_trace_settings(
        alias, headers=dict(headers), client_timeout=_DEADLINE_S
    )
    found = {key: [str(item) for item in value.value] for key, value in answer.settings.items()}
    missing = [key for key in _KEYS if key not in found]
    if missing:
        raise ValueError(f"{', '.join(missing)} cannot be read, so tracing is left alone")
    return {key: found[key] for key in _KEYS}
