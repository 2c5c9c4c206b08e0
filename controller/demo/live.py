"""What a person sees while the demo runs: a live table, or plain lines where there is no terminal.

Owns the screen and nothing else. It draws only when it is told something: no thread, no timer, so
that it cannot disturb what is measured.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from controller.demo.arms import Result
from controller.demo.load import Progress

_BARS = " ▁▂▃▄▅▆▇█"
_HISTORY = 48
_PLAIN_EVERY_S = 5.0


class Quiet:
    """Says nothing."""

    def stage(self, text: str, ratio: float | None) -> None:
        """Say what is being prepared."""

    def set_objective(self, objective_ms: float) -> None:
        """Say which latency is to be met, once it is known."""

    def arm_started(self, name: str, seconds: float) -> None:
        """Say that an arm begins."""

    def arm_progress(self, progress: Progress, status: dict[str, Any] | None) -> None:
        """Say how the load goes."""

    def arm_ended(self, result: Result) -> None:
        """Say what came out."""

    def close(self) -> None:
        """Leave the screen in order."""


class Plain(Quiet):
    """A line now and then, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""
        self._next_s = 0.0

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stage(self, text: str, ratio: float | None) -> None:
        """Say what is being prepared, each thing once."""
        if text != self._said:
            self._said = text
            self._say(text if ratio is None else f"{ratio:4.0%}  {text}")

    def arm_started(self, name: str, seconds: float) -> None:
        """Say that an arm begins."""
        self._say(f"{name}: {seconds:.0f} s of load")

    def arm_progress(self, progress: Progress, status: dict[str, Any] | None) -> None:
        """Say how the load goes, every few seconds."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _PLAIN_EVERY_S
            model = _model(status)
            serving = f", serving {model['serving']}" if model.get("serving") else ""
            self._say(
                f"  {progress.time_s:5.0f} s  {progress.rate_rps:5.0f} requests/s, "
                f"p99 {_ms(progress.p99_ms)}, {progress.misses} missed in the last second{serving}"
            )

    def arm_ended(self, result: Result) -> None:
        """Say what came out."""
        score = result.score
        self._say(
            f"  {result.arm.name}: {score.slo_attainment:.2%} in time, effective quality "
            f"{score.effective_quality:.4f}, {score.failed} failed"
        )


class Screen(Quiet):
    """A table that is redrawn in place."""

    def __init__(self, console: Console, objective_ms: float) -> None:
        self._objective_ms = objective_ms
        self._results: list[Result] = []
        self._stage: tuple[str, float | None] | None = None
        self._arm: tuple[str, float] | None = None
        self._progress: Progress | None = None
        self._status: dict[str, Any] | None = None
        self._rates: deque[float] = deque(maxlen=_HISTORY)
        self._latencies: deque[float | None] = deque(maxlen=_HISTORY)
        self._misses = 0
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def close(self) -> None:
        """Give the terminal back, cursor and all."""
        self._live.stop()

    def stage(self, text: str, ratio: float | None) -> None:
        """Show what is being prepared."""
        self._stage = (text, ratio)
        self._draw()

    def set_objective(self, objective_ms: float) -> None:
        """Take the latency that is drawn as the limit."""
        self._objective_ms = objective_ms

    def arm_started(self, name: str, seconds: float) -> None:
        """Show a new arm."""
        self._stage, self._arm, self._progress, self._status = None, (name, seconds), None, None
        self._rates.clear()
        self._latencies.clear()
        self._misses = 0
        self._draw()

    def arm_progress(self, progress: Progress, status: dict[str, Any] | None) -> None:
        """Show the load's last second."""
        self._progress, self._status = progress, status
        self._rates.append(progress.rate_rps)
        self._latencies.append(progress.p99_ms)
        self._draw()

    def arm_ended(self, result: Result) -> None:
        """Add an arm to the table."""
        self._results.append(result)
        self._arm = None
        self._draw()

    def _draw(self) -> None:
        parts: list[Any] = []
        if self._stage is not None:
            parts.append(_stage_line(*self._stage))
        if self._arm is not None:
            parts += [self._now(*self._arm), Text()]
        if self._results:
            parts.append(arms_table(self._results))
        self._live.update(Group(*parts), refresh=True)

    def _now(self, name: str, seconds: float) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim", width=10)
        table.add_column(width=26)
        table.add_column(width=_HISTORY, no_wrap=True)
        progress = self._progress
        past_s = 0.0 if progress is None else progress.time_s
        title = Text(name, style="bold")
        if progress is None:
            table.add_row("arm", title, "starting")
            return table
        phase = "warming up" if past_s < 0 else f"{max(seconds - past_s, 0.0):3.0f} s left"
        table.add_row("arm", title, phase)
        table.add_row("load", f"{progress.rate_rps:5.0f} requests/s", _bars(list(self._rates)))
        latency = Text(f"{_ms(progress.p99_ms)} p99")
        if progress.p99_ms is None or progress.p99_ms > self._objective_ms:
            latency.stylize("red")
        table.add_row("latency", latency, _limit_bars(list(self._latencies), self._objective_ms))
        table.add_row("in flight", f"{progress.in_flight:5d}", "")
        missed = Text(f"{progress.misses:5d} in the last second")
        if progress.misses:
            missed.stylize("red")
        table.add_row("missed", missed, f"{progress.failed} failed so far")
        model = _model(self._status)
        if model:
            reason = str(model.get("reason") or "").replace("_", " ")
            table.add_row("variant", Text(str(model.get("serving")), style="bold cyan"), reason)
            table.add_row(
                "predicted",
                f"{_ms(model.get('predicted_p99_ms'))} p99",
                f"measured by the governor: {_ms(model.get('measured_p99_ms'))}",
            )
            table.add_row("switches", f"{model.get('switches') or 0:5d}", "")
        else:
            table.add_row("variant", Text(name.partition(":")[2], style="bold"), "fixed")
        return table


def arms_table(results: list[Result]) -> Table:
    """Return the table of the arms that have ended; the best effective quality stands out."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("arm", no_wrap=True)
    titles = ("requests", "failed", "in time", "effective", "quality", "p50 ms", "p99 ms")
    for title in (*titles, "switches"):
        table.add_column(title, justify="right", no_wrap=True)
    best = max(result.score.effective_quality for result in results)
    for result in results:
        score = result.score
        table.add_row(
            result.arm.name,
            str(score.requests),
            str(score.failed),
            f"{score.slo_attainment:.2%}",
            f"{score.effective_quality:.4f}",
            "-" if score.mean_quality is None else f"{score.mean_quality:.4f}",
            _number(score.p50_ms),
            _number(score.p99_ms),
            str(len(result.governed.switches)) if result.governed else "-",
            style="bold green" if score.effective_quality == best else None,
        )
    return table


def _stage_line(text: str, ratio: float | None) -> Table:
    table = Table.grid(padding=(0, 1))
    if ratio is not None:
        table.add_row(ProgressBar(total=1.0, completed=ratio, width=30), f"{ratio:4.0%}", text)
    else:
        table.add_row(Text("…"), text)
    return table


def _model(status: dict[str, Any] | None) -> dict[str, Any]:
    models = (status or {}).get("models") or [{}]
    model: dict[str, Any] = models[0]
    return model


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{_number(value)} ms"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _bars(values: list[float]) -> str:
    top = max(values, default=0.0) or 1.0
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in values)


def _limit_bars(values: list[float | None], limit: float) -> Text:
    """Draw latencies against a limit: full height is twice the limit, what is above it red."""
    text = Text()
    for value in values:
        ratio = 1.0 if value is None else min(value / (2 * limit), 1.0)
        over = value is None or value > limit
        text.append(_BARS[round(ratio * (len(_BARS) - 1))], style="red" if over else "green")
    return text
