"""Triton's spans, joined into what one request saw.

Owns the reading of OTLP/JSON as a real tritonserver posts it, the join of an alias's span with
that of the variant which served it, and the mapping of Triton's clock onto ours. No sockets and
no clock: the receiver hands over a body and when it came. Input is hostile until proven: every
shape that is not Triton's is refused with `MalformedTraceError`, and all memory is bounded.

Triton stamps spans with Unix time, from one steady clock plus an offset per trace: requests of
one batch share their COMPUTE_START to within some ten nanoseconds, not exactly.
"""

import json
import re
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from controller.telemetry.observation import RequestSample

_NS = 1e-9
_NUMBER = re.compile(r"[0-9]{1,20}")
_ID = re.compile(r"[0-9a-fA-F]{1,64}")
_MAX_SPANS_PER_BODY = 50_000
_MAX_WAITING = 8192
_LONGEST_NAME = 512
_MAX_BATCHES = 256
_SAME_BATCH_NS = 5_000
_FUTURE_S = 0.05
_STALE_S = 60.0
_LONGEST_S = 3600.0


class MalformedTraceError(Exception):
    """The body is not OTLP/JSON as Triton posts it."""


@dataclass(frozen=True, slots=True)
class Span:
    """What is wanted of one span; times in Unix nanoseconds, by event name."""

    trace: str
    span: str
    parent: str
    name: str
    model: str | None
    end_ns: int
    events: dict[str, int]


def read_spans(body: bytes) -> list[Span]:
    """Return the spans of one OTLP/JSON body, in its order.

    Raises:
        MalformedTraceError: it is not JSON, not OTLP, or longer than any real one.
    """
    try:
        document = json.loads(body)
        spans: list[Span] = []
        for raw in _raw_spans(document):
            if len(spans) >= _MAX_SPANS_PER_BODY:
                raise MalformedTraceError(f"more than {_MAX_SPANS_PER_BODY} spans in one body")
            spans.append(_read_span(raw))
    except (ValueError, RecursionError) as error:
        raise MalformedTraceError(f"not JSON: {error}") from error
    return spans


def _raw_spans(document: Any) -> Iterator[dict[str, Any]]:
    top = _mapping(document, "the body")
    if "resourceSpans" not in top:
        raise MalformedTraceError("resourceSpans is missing")
    for resource in _items(top, "resourceSpans"):
        for scope in _items(resource, "scopeSpans"):
            yield from _items(scope, "spans")


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedTraceError(f"{what} is not an object")
    return value


def _items(holder: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    values = holder.get(key) or []
    if not isinstance(values, list):
        raise MalformedTraceError(f"{key} is not a list")
    for value in values:
        yield _mapping(value, f"an item of {key}")


def _text(holder: dict[str, Any], key: str) -> str:
    value = holder.get(key, "")
    if not isinstance(value, str):
        raise MalformedTraceError(f"{key} is not a string")
    return value


def _hex(holder: dict[str, Any], key: str, *, required: bool) -> str:
    value = _text(holder, key)
    if (value or required) and not _ID.fullmatch(value):
        raise MalformedTraceError(f"{key} is not a hexadecimal id")
    return value


def _nanoseconds(holder: dict[str, Any], key: str) -> int:
    value = holder.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and _NUMBER.fullmatch(value):
        number = int(value)
    else:
        raise MalformedTraceError(f"{key} is not a time in nanoseconds")
    if not 0 <= number < 1 << 64:
        raise MalformedTraceError(f"{key} is out of range")
    return number


def _read_span(raw: dict[str, Any]) -> Span:
    model = None
    for attribute in _items(raw, "attributes"):
        if attribute.get("key") == "triton.model_name":
            model = _text(_mapping(attribute.get("value"), "an attribute's value"), "stringValue")
            if len(model) > _LONGEST_NAME or not model.isprintable():
                raise MalformedTraceError("triton.model_name is no name of a model")
    events: dict[str, int] = {}
    for event in _items(raw, "events"):
        events[_text(event, "name")] = _nanoseconds(event, "timeUnixNano")
    return Span(
        trace=_hex(raw, "traceId", required=True),
        span=_hex(raw, "spanId", required=True),
        parent=_hex(raw, "parentSpanId", required=False),
        name=_text(raw, "name"),
        model=model,
        end_ns=_nanoseconds(raw, "endTimeUnixNano"),
        events=events,
    )


class ClockMap:
    """Maps Triton's Unix time onto our monotonic clock and watches the offset.

    On one machine both run on the same clock, and the offset of our own clocks is exact. Only
    when most bodies arrive before their spans ended, or impossibly late, are the clocks held
    for different ones, and the least delay seen takes the offset's place.
    """

    _WINDOW = 32
    _ENOUGH = 8
    _ANOTHER_CLOCK_S = 10.0  # no exporter waits so long: its longest default is 5 s

    def __init__(self) -> None:
        self._delays_s: deque[float] = deque(maxlen=self._WINDOW)
        self.correction_s = 0.0

    @property
    def delay_s(self) -> float | None:
        """The least delay from a span's end to its arrival, after correction; None: unknown."""
        return min(self._delays_s) - self.correction_s if self._delays_s else None

    def observe(self, delay_s: float) -> None:
        """Take in one body's delay: its arrival less the end of its newest span, in seconds."""
        self._delays_s.append(delay_s)
        early = sum(delay < -_FUTURE_S for delay in self._delays_s)
        late = sum(delay > self._ANOTHER_CLOCK_S for delay in self._delays_s)
        count = len(self._delays_s)
        if count >= self._ENOUGH and 2 * max(early, late) > count:
            self.correction_s = min(self._delays_s)
        else:
            self.correction_s = 0.0


@dataclass(slots=True)
class _Batch:
    start_ns: int
    requests: int = 0


@dataclass(slots=True)
class JoinCounts:
    """What became of spans."""

    samples: int = 0
    from_the_future: int = 0
    stale: int = 0
    unjoined: int = 0  # an alias's span whose variant is unknown
    spans: int = 0


class SpanJoiner:
    """Joins spans of aliases with those of the variants that served them."""

    def __init__(self, aliases: Iterable[str]) -> None:
        self.aliases = frozenset(aliases)
        self.clock_map = ClockMap()
        self.counts = JoinCounts()
        # A parent ends after its children, but an export may cut between them.
        self._children: OrderedDict[tuple[str, str], Span] = OrderedDict()
        self._batches: OrderedDict[str, deque[_Batch]] = OrderedDict()

    def take(
        self, spans: list[Span], arrived_s: float, unix_offset_s: float
    ) -> list[RequestSample]:
        """Return the samples that these spans complete.

        Args:
            spans: of one body.
            arrived_s: when it came, on the monotonic clock.
            unix_offset_s: Unix time less monotonic time, on our machine, now.
        """
        self.counts.spans += len(spans)
        if not spans:
            return []
        newest_ns = max(span.end_ns for span in spans)
        self.clock_map.observe(arrived_s - (newest_ns * _NS - unix_offset_s))
        offset_s = unix_offset_s - self.clock_map.correction_s
        models = {span.span: span.model for span in spans if span.model is not None}
        for span in spans:
            if not span.parent:
                continue
            self._children[span.trace, span.parent] = span
            if "COMPUTE_START" in span.events:
                self._count_batch(span, models.get(span.parent, ""))
        while len(self._children) > _MAX_WAITING:
            self._children.popitem(last=False)
        samples = []
        for span in spans:
            if span.model in self.aliases:
                sample = self._join(span, arrived_s, offset_s)
                if sample is not None:
                    samples.append(sample)
        self.counts.samples += len(samples)
        return samples

    def _count_batch(self, compute: Span, model: str | None) -> None:
        start_ns = compute.events["COMPUTE_START"]
        batches = self._batches.setdefault(model or "", deque(maxlen=_MAX_BATCHES))
        while len(self._batches) > _MAX_BATCHES:
            self._batches.popitem(last=False)
        batch = _find(batches, start_ns)
        if batch is None:
            batch = _Batch(start_ns)
            batches.append(batch)
        batch.requests += 1

    def _join(self, alias: Span, arrived_s: float, offset_s: float) -> RequestSample | None:
        start_ns, end_ns = alias.events.get("REQUEST_START"), alias.events.get("REQUEST_END")
        if start_ns is None or end_ns is None or not 0 <= (end_ns - start_ns) * _NS <= _LONGEST_S:
            return None
        end_s = end_ns * _NS - offset_s
        if end_s > arrived_s + _FUTURE_S:
            self.counts.from_the_future += 1
            return None
        if end_s < arrived_s - _STALE_S:
            self.counts.stale += 1
            return None
        variant = self._children.pop((alias.trace, alias.span), None)
        compute = None
        if variant is None:
            self.counts.unjoined += 1
        else:
            compute = self._children.pop((variant.trace, variant.span), None)
        queue_s = compute_s = requests = None
        if variant is not None and compute is not None:
            queue_s = _between(variant.events.get("QUEUE_START"), compute.events, "COMPUTE_START")
            compute_s = _between(compute.events.get("COMPUTE_START"), compute.events, "COMPUTE_END")
            batches = self._batches.get(variant.model or "", deque())
            batch = _find(batches, compute.events.get("COMPUTE_START"))
            requests = batch.requests if batch is not None else None
        return RequestSample(
            alias=str(alias.model),
            model=variant.model if variant is not None else None,
            start_s=start_ns * _NS - offset_s,
            latency_s=(end_ns - start_ns) * _NS,
            queue_s=queue_s,
            compute_s=compute_s,
            batch_requests=requests,
        )


def _find(batches: deque[_Batch], start_ns: int | None) -> _Batch | None:
    if start_ns is None:
        return None
    for batch in reversed(batches):
        if abs(batch.start_ns - start_ns) <= _SAME_BATCH_NS:
            return batch
    return None


def _between(start_ns: int | None, events: dict[str, int], name: str) -> float | None:
    end_ns = events.get(name)
    if start_ns is None or end_ns is None or end_ns < start_ns:
        return None
    return (end_ns - start_ns) * _NS
