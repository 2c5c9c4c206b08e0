"""Triton's `/metrics` page: queue depth now, and counters as increments.

Owns the deadline of a fetch and a parser for the few families that are wanted. It runs at every
tick, so the parser looks each line up instead of taking it apart. It must not guess: what is not
on the page is absent, and a page that does not parse is a failure.
"""

import asyncio
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import attrgetter, lt

from controller.policy.model import TlsPolicy
from controller.telemetry.observation import VariantReading
from controller.telemetry.page_client import PageClient, PageError, UnreachableError
from controller.telemetry.source import Clock
from controller.telemetry.tls import TlsError

MAX_PAGE_BYTES = 8 * 1024 * 1024
_MAX_KNOWN_SERIES = 50_000
_US = 1e-6
_REJECTED = b'reason="REJECTED"'
_MODEL = re.compile(rb'[{,]\s*model="((?:[^"\\]|\\.)*)"')


class MalformedPageError(Exception):
    """The page is not what Triton's metrics look like."""


class MetricsReadError(Exception):
    """The page could not be fetched."""


class MetricsRefusedError(MetricsReadError):
    """Nobody listens there: Triton is gone, or its metrics are elsewhere."""


@dataclass(slots=True)
class ModelCounters:
    """The running totals of one Triton model, summed over its versions and devices."""

    pending_requests: float | None = None
    completed_requests: float = 0.0
    failed_requests: float = 0.0  # those refused not among them
    rejected_requests: float = 0.0  # that a limit of its queue refused
    completed_rows: float = 0.0
    executions: float = 0.0
    queue_us: float = 0.0
    compute_us: float = 0.0  # input, infer and output


_totals = attrgetter(*(f.name for f in fields(ModelCounters) if f.name != "pending_requests"))
_FAMILIES = {
    b"nv_inference_pending_request_count": "pending_requests",
    b"nv_inference_request_success": "completed_requests",
    b"nv_inference_request_failure": "failed_requests",
    b"nv_inference_count": "completed_rows",
    b"nv_inference_exec_count": "executions",
    b"nv_inference_queue_duration_us": "queue_us",
    b"nv_inference_compute_input_duration_us": "compute_us",
    b"nv_inference_compute_infer_duration_us": "compute_us",
    b"nv_inference_compute_output_duration_us": "compute_us",
}


class PageParser:
    """Parses pages of one server; remembers what each series means."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str, str] | None] = {}

    def parse(self, page: bytes) -> dict[str, ModelCounters]:
        """Return the counters per Triton model.

        Raises:
            MalformedPageError: a wanted line does not parse, or nothing is Triton's.
        """
        models: dict[str, ModelCounters] = {}
        known = self._known
        for line in page.splitlines():
            series, _, text = line.rpartition(b" ")
            try:
                meaning = known[series]
            except KeyError:
                meaning = self._learn(series, line)
            if meaning is None:
                continue
            model, name = meaning
            counters = models.get(model)
            if counters is None:
                counters = models[model] = ModelCounters()
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not 0.0 <= value < math.inf:
                raise MalformedPageError(f"not a count: {line[:120]!r}")
            setattr(counters, name, (getattr(counters, name) or 0.0) + value)
        if not models and b"# TYPE nv_" not in page:
            raise MalformedPageError("no line of it is a metric of Triton; check triton.metrics")
        return models

    def _learn(self, series: bytes, line: bytes) -> tuple[str, str] | None:
        family, brace, _ = series.partition(b"{")
        name = _FAMILIES.get(family) if brace else None
        meaning: tuple[str, str] | None = None
        if name is not None:
            found = _MODEL.search(series)
            if found is None or not series.endswith(b"}"):
                raise MalformedPageError(f"no model is named: {line[:120]!r}")
            if name == "failed_requests" and _REJECTED in series.replace(found[0], b""):
                name = "rejected_requests"
            label = re.sub(rb"\\(.)", _unescape, found[1])
            meaning = (label.decode("utf-8", "replace"), name)
        if len(self._known) >= _MAX_KNOWN_SERIES:
            self._known.clear()
        self._known[series] = meaning
        return meaning


def without_password(url: str) -> str:
    """Return a URL as it may be told: without the user name and password that it may have."""
    scheme, slashes, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}"


def _unescape(match: re.Match[bytes]) -> bytes:
    return b"\n" if match[1] == b"n" else match[1]


@dataclass(frozen=True, slots=True)
class Page:
    """The counters of all models, and when they were read (the clock's seconds)."""

    at_s: float
    counters: Mapping[str, ModelCounters]


class MetricsReader:
    """Fetches and parses the page over one keep-alive connection."""

    def __init__(
        self, url: str, *, clock: Clock, deadline_s: float = 1.0, tls: TlsPolicy | None = None
    ) -> None:
        self._url = without_password(url)
        self._clock = clock
        self._deadline_s = deadline_s
        self._parser = PageParser()
        self._client = PageClient(url, longest_bytes=MAX_PAGE_BYTES, tls=tls)

    @property
    def problem(self) -> str | None:
        """What is wrong with files of TLS that changed; those of before are still used."""
        return self._client.problem

    async def fetch(self) -> Page:
        """Read the page once.

        Raises:
            MetricsReadError: not reachable, not answered in time, refused or too long.
            MalformedPageError: answered with something else.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                page = await self._client.get()
        except TimeoutError as error:
            raise MetricsReadError(
                f"{self._url} did not answer within {self._deadline_s:g} s"
            ) from error
        except UnreachableError as error:
            raise MetricsRefusedError(f"{self._url} is not reachable: {error}") from error
        except TlsError as error:
            raise MetricsReadError(str(error)) from error
        except PageError as error:
            raise MetricsReadError(f"{self._url}: {error}") from error
        at_s = self._clock()
        return Page(at_s, self._parser.parse(page))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def difference(
    model: str, before: ModelCounters | None, after: ModelCounters, *, ready: bool | None
) -> VariantReading:
    """Return what a model did between two pages; never negative.

    Without a page before there is no increment. A counter that falls was started from zero
    (the model was unloaded or the server restarted): then all of the model's were, and what
    they show now is the increment.
    """
    pending = after.pending_requests
    base = after if before is None else before
    if any(map(lt, _totals(after), _totals(base))):
        base = ModelCounters()
    rejected = round(after.rejected_requests - base.rejected_requests)
    return VariantReading(
        model=model,
        ready=ready,
        pending_requests=None if pending is None else round(pending),
        completed_requests=round(after.completed_requests - base.completed_requests),
        completed_rows=round(after.completed_rows - base.completed_rows),
        executions=round(after.executions - base.executions),
        failed_requests=round(after.failed_requests - base.failed_requests) + rejected,
        rejected_requests=rejected,
        queue_s=(after.queue_us - base.queue_us) * _US,
        compute_s=(after.compute_us - base.compute_us) * _US,
    )
