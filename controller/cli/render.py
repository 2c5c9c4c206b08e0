"""The daemon's JSON as text that people like to read.

Owns what `status`, `explain` and `history` show and in which words. It must not
read a terminal, a clock or a socket, and survives JSON with parts missing. Text from the daemon may
come from anybody: nothing unprintable of it reaches a terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from controller.cli.head import fitted, head
from controller.cli.table import (
    NONE,
    Column,
    Json,
    Paper,
    clean,
    duration,
    list_of,
    milliseconds,
    number_of,
    part_of,
    percent,
    table,
    verdict,
)
from controller.cli.table import ms_cell as _ms
from controller.cli.table import number_cell as _number
from controller.cli.table import share_cell as _share
from controller.cli.table import text_cell as _name


def render_status(status: Json, paper: Paper) -> str:
    """Return the daemon, its sources and a table of its models."""
    lines = head(status, paper)
    lines += [fitted(paper, "!", note, "warn") for note in notes(status)]
    lines.append("")
    now_unix_s = number_of(status, "time_unix_s")
    lines += table(
        _STATUS_COLUMNS,
        list_of(status, "models"),
        paper,
        lambda model: model_notes(model, now_unix_s),
    )
    return "\n".join(lines)


def render_last(models: Sequence[Json], age_s: float, paper: Paper) -> str:
    """Return the models' last known states, marked old."""
    title = paper.ink(f"OLD: the last state in the journal, {duration(age_s)} ago", "warn")
    return "\n".join([title, "", *table(_LAST_COLUMNS, models, paper, lambda _: [])])


def render_explanation(entry: Json, paper: Paper) -> str:
    """Return one model's paragraph and the candidates that were compared."""
    decision = entry.get("decision") or {}
    target = decision.get("target") or decision.get("serving")
    rows = [
        {**row, "chosen": row.get("variant") == target} for row in list_of(decision, "candidates")
    ]
    lines = textwrap.wrap(clean(entry.get("text") or ""), min(paper.width, 100))
    last = entry.get("last_switch") or {}
    ago_s = number_of(last, "ago_s")  # before that, the newest decision is the same
    if ago_s is not None and ago_s >= 1.0:
        told = f"The last switch was {duration(ago_s)} ago: {last.get('text') or ''}"
        lines += ["", *textwrap.wrap(clean(told), min(paper.width, 100))]
    if rows:
        lines += ["", *table(_CANDIDATE_COLUMNS, rows, paper, lambda _: [])]
    return "\n".join(lines)


def render_history(actions: Sequence[Json], paper: Paper, local: Callable[[float], str]) -> str:
    """Return a table of actions; `local` spells a Unix time."""
    if not actions:
        return "no actions yet"
    columns = (
        Column(
            "TIME", 0, lambda a: (local(number_of(a, "time_unix_s") or 0.0), "dim"), right=False
        ),
        *_ACTION_COLUMNS,
    )
    return "\n".join(table(columns, actions, paper, _action_notes))


def local_time(time_unix_s: float) -> str:
    """Return a Unix time as the clock on the wall shows it, with the date."""
    import time

    try:
        return time.strftime("%m-%d %H:%M:%S", time.localtime(time_unix_s))
    except (OverflowError, ValueError, OSError):  # no time that a calendar has
        return NONE


def notes(status: Json) -> list[str]:
    """Return a sentence for everything that is not as it should be."""
    daemon, triton = part_of(status, "daemon"), part_of(status, "triton")
    now = number_of(status, "time_unix_s")
    found: list[str] = []
    if daemon.get("paused"):
        found.append(_by_whom("paused", daemon["paused"], now))
    if daemon.get("policy_error"):
        found.append(f"the changed policy was {clean(daemon['policy_error'])}")
    limits = (daemon.get("advice"), triton.get("capability"))
    found += [clean(text) for text in dict.fromkeys(str(text) for text in limits if text)]
    found += [
        f"source {clean(source.get('name'))}{'' if source.get('up') else ' is down'}: "
        f"{clean(source.get('error') or 'no reason')}"
        for source in list_of(status, "sources")
        if source.get("error") or not source.get("up")
    ]
    found += [
        f"gpu {clean(gpu.get('index'))}: {clean(gpu['error'])}"
        for gpu in list_of(status, "gpu")
        if gpu.get("error")
    ]
    unmeasured = part_of(status, "memory").get("host_unmeasured")
    if unmeasured:
        told = f"what variants take of the host is not measured ({clean(unmeasured)})"
        found.append(f"{told}: what the policy declares counts")
    at_limit = status.get("limits")
    found += [clean(sentence) for sentence in (at_limit if isinstance(at_limit, list) else ())]
    for name in ("journal", "mqtt", "prometheus"):
        part = part_of(status, name)
        if part and not part.get("up"):
            found.append(f"{name} is down: {clean(part.get('error') or 'no reason')}")
        if part.get("dropped"):
            found.append(f"{name}: {clean(part['dropped'])} records dropped")
    return found


def model_notes(model: Json, now: float | None) -> list[str]:
    """Return a sentence for everything an operator must know of a model."""
    found = []
    if model.get("pinned"):
        pin = model["pinned"]
        variant = clean(pin.get("variant") if isinstance(pin, Mapping) else pin)
        found.append(_by_whom(f"pinned to {variant}", pin, now))
    if model.get("paused"):
        found.append(_by_whom("paused", model["paused"], now))
    if model.get("released"):
        taken = _by_whom("RELEASED", model["released"], now)
        name = clean(model.get("name"))
        found.append(f"{taken}; not acted on until `governor adopt {name}`")
        if model.get("serving_model") is None:
            found.append(f"nothing serves {name}, and nobody puts its alias back while released")
    if model.get("mode") == "advise":
        found.append("only advised on; `governor advice` tells what it would do")
    if model.get("held"):
        found.append(f"held: {clean(model['held'])}; `governor resume` ends it")
    dispatcher = part_of(model, "dispatcher")
    if dispatcher:
        found.append(_dispatcher_note(dispatcher))
    refused = number_of(model, "rejected_rps")
    if refused:
        found.append(f"Triton refuses {refused:.1f} requests a second: its queue is at its limit")
    if model.get("failed_actions"):
        found.append(f"{clean(model['failed_actions'])} actions failed; see `governor history`")
    return found


def _dispatcher_note(dispatcher: Json) -> str:
    """Return how a dispatcher is, and whom it gave its requests."""
    if not dispatcher.get("healthy"):
        return (
            f"its dispatcher is not well: {clean(dispatcher.get('error') or 'it has no plan yet')}"
        )
    left_s = number_of(dispatcher, "left_for_s")
    if left_s is not None:
        return f"its dispatcher was late and a variant is not: tried again in {left_s:.0f} s"
    served = part_of(dispatcher, "served")
    total = sum(count for count in served.values() if isinstance(count, int))
    shares = ", ".join(
        f"{clean(name)} {percent(count / total, 0)} %"
        for name, count in sorted(served.items(), key=lambda one: -one[1])
    )
    text = f"late binding: of {total} requests {shares}" if total else "late binding: none so far"
    alone = part_of(dispatcher, "left_alone")
    return text + "".join(f"; {clean(name)} left alone: {clean(alone[name])}" for name in alone)


def _action_notes(action: Json) -> list[str]:
    return [clean(action["error"])] if action.get("error") else []


def _by_whom(what: str, entry: Any, now_unix_s: float | None) -> str:
    if not isinstance(entry, Mapping):
        return what
    text = what + (f" by {clean(entry['who'])}" if entry.get("who") else "")
    until = number_of(entry, "until_unix_s")
    if until is not None and now_unix_s is not None:
        text += f" for another {duration(until - now_unix_s)}"
    return text + (f": {clean(entry['why'])}" if entry.get("why") else "")


def _against_goal(key: str) -> Callable[[Json], tuple[str, str]]:
    def cell(row: Json) -> tuple[str, str]:
        value, goal = number_of(row, key), number_of(part_of(row, "objective"), "latency_ms")
        late = value is not None and goal is not None and value > goal
        return milliseconds(value), "bad" if late else ""

    return cell


def _met(row: Json) -> tuple[str, str]:
    value = number_of(row, "attainment")
    goal = number_of(part_of(row, "objective"), "percentile")
    if value is None or goal is None:
        return percent(value, 2), ""
    return percent(value, 2), "good" if 100.0 * value >= goal else "bad"


def _goal(row: Json) -> tuple[str, str]:
    objective = part_of(row, "objective")
    return milliseconds(number_of(objective, "latency_ms")), ""


def _reason(row: Json) -> tuple[str, str]:
    reason = clean(row.get("reason") or NONE).replace("_", " ")
    return reason, "" if reason in ("steady", "best feasible") else "warn"


def _since(row: Json) -> tuple[str, str]:
    return duration(number_of(row, "serving_for_s")), ""


def _age(row: Json) -> tuple[str, str]:
    return duration(number_of(row, "age_s")), "warn"


def _chosen(row: Json) -> tuple[str, str]:
    name = clean(row.get("variant") or NONE)
    return (f"> {name}", "bold") if row.get("chosen") else (f"  {name}", "")


_STATUS_COLUMNS: Final = (
    Column("MODEL", 0, _name("name", "bold"), right=False),
    Column("SERVING", 1, _name("serving"), right=False),
    Column("FOR", 11, _since),
    Column("QUALITY", 9, _number("quality", 3)),
    Column("RATE/S", 2, _number("rate_rps", 0)),
    Column("QUEUE", 8, _number("queue", 0)),
    Column("PRED MS", 5, _against_goal("predicted_p99_ms")),
    Column("P99 MS", 3, _against_goal("measured_p99_ms")),
    Column("GOAL MS", 4, _goal),
    Column("MET %", 6, _met),
    Column("BURN", 13, _number("burn_rate", 1)),
    Column("EFF.Q", 10, _number("effective_quality", 3)),
    Column("SWITCHES", 12, _number("switches", 0)),
    Column("WHY", 7, _reason, right=False),
)

_LAST_COLUMNS: Final = (
    Column("MODEL", 0, _name("name", "bold"), right=False),
    Column("SERVED", 1, _name("serving"), right=False),
    Column("AGE", 2, _age),
    Column("RATE/S", 3, _number("rate_rps", 0)),
    Column("QUEUE", 5, _number("queue", 0)),
    Column("PRED MS", 4, _ms("predicted_p99_ms")),
    Column("WHY", 6, _reason, right=False),
)

_CANDIDATE_COLUMNS: Final = (
    Column("  VARIANT", 0, _chosen, right=False),
    Column("QUALITY", 1, _number("quality", 3)),
    Column("SERVICE MS", 7, _ms("service_ms")),
    Column("LOAD %", 4, _share("utilization_ratio")),
    Column("P50 MS", 6, _ms("p50_ms")),
    Column("P99 MS", 2, _ms("p99_ms")),
    Column("LATE %", 3, _share("miss_ratio", 2)),
    Column("VALUE", 8, _number("value", 3)),
    Column("VERDICT", 5, verdict, right=False),
)


def _outcome(row: Json) -> tuple[str, str]:
    outcome = clean(row.get("outcome") or NONE)
    style = {"done": "good", "nothing_to_do": "dim", "busy": "dim"}.get(outcome, "bad")
    return outcome.replace("_", " "), style


def _seconds_as_ms(key: str) -> Callable[[Json], tuple[str, str]]:
    def cell(row: Json) -> tuple[str, str]:
        value = number_of(row, key)
        return milliseconds(None if value is None else value * 1e3), ""

    return cell


_ACTION_COLUMNS: Final = (
    Column("MODEL", 1, _name("model", "bold"), right=False),
    Column("ACTION", 2, _name("kind"), right=False),
    Column("FROM", 6, _name("source"), right=False),
    Column("TO", 3, _name("target"), right=False),
    Column("OUTCOME", 4, _outcome, right=False),
    Column("MS", 5, _seconds_as_ms("switch_s")),
    Column("PROVEN MS", 8, _seconds_as_ms("transaction_s")),
    Column("WHY", 7, _reason, right=False),
)
